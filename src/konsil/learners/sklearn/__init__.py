"""scikit-learn: linear models, multi-layer perceptrons, and pipelines whose preprocessing is fitted together.

``estimators`` has the models, ``pooled`` the values that a swarm fits from sums, ``steps`` what is known of
each kind of preprocessing, ``walk`` finds them in a pipeline, ``pipeline`` is its learner, ``refusals`` says
why other estimators cannot be merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from konsil.learners.sklearn.columns import columns_of
from konsil.learners.sklearn.estimators import (
    LinearLearner,
    PerceptronsLearner,
    estimator_learner,
    prepare_estimator,
)
from konsil.learners.sklearn.pipeline import PipelineLearner, is_pipeline, prepare_pipeline

__all__ = ["LinearLearner", "PerceptronsLearner", "PipelineLearner", "learner_of", "prepare"]


def learner_of(model: Any) -> LinearLearner | PerceptronsLearner | PipelineLearner:
    """The learner for an estimator or a pipeline.

    Raises:
        ConfigError: not a kind that can be merged, or not prepared.
    """
    return PipelineLearner(model) if is_pipeline(model) else estimator_learner(model)


def prepare(
    model: Any,
    n_features: SupportsIndex | Iterable[str],
    classes: Sequence[Any] | None = None,
    dtype: Any = "float64",
) -> Any:
    """Give a model that was never fitted its shapes, so that it can join before it has seen data.

    A hospital that has not met every class yet would otherwise have fewer coefficients than the others.

    Args:
        model: a linear model, a multi-layer perceptron, or a Pipeline that ends in one; changed in place.
            What it had learned is forgotten.
        n_features: how many columns the rows have, ``X.shape[1]``; where they are data frames, the columns'
            names, ``X.columns``: then the same in the same order at every member.
        classes: for a classifier: all classes that any member has, the same at every member.
        dtype: of the rows that it will be trained on: scikit-learn's SGD refuses float32 rows where the
            coefficients are float64, and the other way round. The same at every member.

    Returns:
        The model. A linear one starts at zero, a perceptron at its random start; a Pipeline's preprocessing
        is not fitted until the swarm has fitted it.

    Raises:
        ConfigError: a classifier without classes, not a kind that can be merged, or rows where their number
            or names of columns should be.
    """
    columns = columns_of(n_features)
    if is_pipeline(model):
        return prepare_pipeline(model, columns, classes, dtype)
    return prepare_estimator(model, columns, classes, dtype)
