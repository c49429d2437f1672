"""scikit-learn estimators: linear models and multi-layer perceptrons.

Only coefficients and intercepts travel. What an optimiser keeps (momenta, the step counter of a learning-rate
schedule) stays at each member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.base import Array

_WITHOUT_A_START = ("LinearRegression", "Ridge")  # closed-form: `fit` never starts from given coefficients


class LinearLearner:
    """A linear model: ``coef_`` and ``intercept_``.

    For models trained by ``partial_fit`` (SGD, Perceptron, PassiveAggressive) and for those whose ``fit``
    goes on from what they hold (``LogisticRegression(warm_start=True)``). A closed-form ``LinearRegression``
    or ``Ridge`` does not go on from a merge: one round averages its coefficients, more change nothing.
    """

    _names = ("coef_", "intercept_")

    def __init__(self, model: Any) -> None:
        """Use a model that has coefficients.

        Raises:
            ConfigError: not prepared, averaging, or its ``fit`` would forget the merge.
        """
        _require_shapes(model, "coef_")
        if getattr(model, "average", False):
            raise _unusable(
                model, "averages its coefficients over its steps, which a merge would upset", "average=False"
            )
        forgets = not hasattr(model, "partial_fit") and type(model).__name__ not in _WITHOUT_A_START
        if forgets and not getattr(model, "warm_start", False):
            raise _unusable(model, "starts anew at every `fit` and would forget the merge", "warm_start=True")
        self._model = model

    def parameters(self) -> dict[str, Array]:
        """``coef_`` [classes or outputs, features] or [features], ``intercept_`` [classes or outputs]."""
        return {name: np.asarray(getattr(self._model, name)) for name in self._names}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in."""
        for name, values in arrays.items():
            held = getattr(self._model, name)
            if isinstance(held, np.ndarray):
                np.copyto(held, values)
            else:  # some models hold a single intercept as a number
                setattr(self._model, name, values.dtype.type(values))


class PerceptronsLearner:
    """A multi-layer perceptron: ``coefs_.0`` [features, units] ..., ``intercepts_.0`` [units] ..."""

    _names = ("coefs_", "intercepts_")

    def __init__(self, model: Any) -> None:
        """Use a model that has coefficients.

        Raises:
            ConfigError: not prepared.
        """
        _require_shapes(model, "coefs_")
        self._model = model

    def parameters(self) -> dict[str, Array]:
        """The layers' own arrays."""
        return {
            f"{name}.{number}": array
            for name in self._names
            for number, array in enumerate(getattr(self._model, name))
        }

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in, in place: the optimiser holds references to these very arrays."""
        own = self.parameters()
        for name, values in arrays.items():
            np.copyto(own[name], values)


def learner_of(model: Any) -> LinearLearner | PerceptronsLearner:
    """The learner for an estimator.

    Raises:
        ConfigError: not a kind that can be merged, or not prepared.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "BaseMultilayerPerceptron" in kinds:
        return PerceptronsLearner(model)
    if kinds & {"LinearModel", "LinearClassifierMixin", "BaseSGD"}:
        return LinearLearner(model)
    raise ConfigError(
        f"{type(model).__name__} has no coefficients that can be merged.",
        safe="Nothing was sent; the model is untouched.",
        do="Use a linear model or a multi-layer perceptron; of a Pipeline, pass the last step.",
    )


def prepare(model: Any, n_features: int, classes: Sequence[Any] | None = None) -> Any:
    """Give a model that was never fitted its shapes, so that it can join before it has seen data.

    A hospital that has not met every class yet would otherwise have fewer coefficients than the others.

    Args:
        model: a linear model or a multi-layer perceptron; changed in place.
        n_features: columns of the data.
        classes: for a classifier: all classes that any member has, the same at every member.

    Returns:
        The model. A linear one starts at zero, a perceptron at its random start.

    Raises:
        ConfigError: a classifier without classes, or not a kind that can be merged.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "ClassifierMixin" in kinds and (classes is None or len(set(classes)) < 2):  # noqa: PLR2004 - a choice needs two
        raise _unusable(
            model,
            "is a classifier, and its classes are not known",
            "prepare(model, n_features, classes=[0, 1])",
        )
    labels = None if classes is None else np.unique(np.asarray(classes))
    if "BaseMultilayerPerceptron" in kinds:
        _prepare_by_training(model, n_features, labels)
        # Made anew at the next step, without the moments of this made-up one.
        vars(model).pop("_optimizer", None)
        return model
    if hasattr(model, "partial_fit"):
        _prepare_by_training(model, n_features, labels)
        model.t_ = 1.0
    else:
        _prepare_by_hand(model, n_features, labels)
    LinearLearner(model)
    model.coef_ = np.zeros_like(model.coef_)
    model.intercept_ = np.zeros_like(model.intercept_)
    return model


def _prepare_by_training(model: Any, n_features: int, labels: Array | None) -> None:
    rows = 2 if labels is None else len(labels)
    nothing = np.zeros((rows, n_features))
    if labels is None:
        model.partial_fit(nothing, np.zeros(rows))
    else:
        model.partial_fit(nothing, labels, classes=labels)


def _prepare_by_hand(model: Any, n_features: int, labels: Array | None) -> None:
    model.n_features_in_ = n_features
    if labels is None:
        model.coef_, model.intercept_ = np.zeros(n_features), np.float64(0)
        return
    rows = 1 if len(labels) == 2 else len(labels)  # noqa: PLR2004 - two classes need one row
    model.classes_ = labels
    model.coef_, model.intercept_ = np.zeros((rows, n_features)), np.zeros(rows)


def _require_shapes(model: Any, name: str) -> None:
    if not hasattr(model, name):
        raise _unusable(
            model,
            "was never fitted, so the shapes of its parameters are not known",
            "konsil.learners.sklearn.prepare(model, n_features, classes), or call `partial_fit` once",
        )


def _unusable(model: Any, why: str, instead: str) -> ConfigError:
    return ConfigError(
        f"This {type(model).__name__} {why}.",
        safe="Nothing was sent; the model is untouched.",
        do=f"Use {instead}.",
    )
