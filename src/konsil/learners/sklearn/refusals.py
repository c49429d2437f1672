"""Why a kind of estimator cannot be merged, and what to use instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from konsil.errors import ConfigError

_OWN_FIT = "starts anew at every `fit` and would forget the merge"
_OWN_CHOICE = "chooses its penalty by cross-validation on each hospital's own rows"

REFUSED_ESTIMATORS: Mapping[str, tuple[str, str]] = {
    # First those that derive from a kind that can be merged: the nearest class decides.
    "LogisticRegressionCV": (_OWN_CHOICE, "LogisticRegression(warm_start=True) with a `C` that all agree on"),
    "LinearModelCV": (_OWN_CHOICE, "Lasso or ElasticNet with an `alpha` that all agree on"),
    "_BaseRidgeCV": (_OWN_CHOICE, "Ridge with an `alpha` that all agree on"),
    "MultiTaskElasticNet": (
        "drops a feature for all outputs at once, which no merge of coefficients keeps",
        "SGDRegressor(penalty='l1' or 'elasticnet') with partial_fit, one for each output",
    ),
    "SGDOneClassSVM": ("has an offset instead of intercepts", "SGDClassifier, or a model of your own"),
    "HuberRegressor": (
        "estimates the scale of its errors beside its coefficients",
        "SGDRegressor(loss='huber') with partial_fit",
    ),
    "LinearSVC": (_OWN_FIT, "SGDClassifier(loss='hinge') with partial_fit"),
    "LinearSVR": (_OWN_FIT, "SGDRegressor(loss='epsilon_insensitive') with partial_fit"),
    "QuantileRegressor": (_OWN_FIT, "SGDRegressor(loss='epsilon_insensitive') with partial_fit"),
    "RidgeClassifier": (_OWN_FIT, "SGDClassifier(loss='squared_error') with partial_fit"),
    "LinearDiscriminantAnalysis": (
        "computes its coefficients from the rows' means and covariance, and never starts from given ones",
        "SGDClassifier(loss='log_loss') with partial_fit",
    ),
    **dict.fromkeys(
        ("Lars", "OrthogonalMatchingPursuit", "BayesianRidge", "ARDRegression", "TheilSenRegressor"),
        (_OWN_FIT, "SGDRegressor with partial_fit"),
    ),
}
"""Linear models, by the name of the class or of one it derives from -> why not, what instead."""

_FORGETS_GRADIENTS = (
    "has a solver that forgets its memory of gradients at every `fit`, so that a few iterations from a merge"
    " lead away from where it should get"
)

REFUSED_SOLVERS: Mapping[str, str] = {
    "liblinear": "has a solver that starts anew even with warm_start=True",
    "sag": _FORGETS_GRADIENTS,
    "saga": _FORGETS_GRADIENTS,
}
"""Solvers of LogisticRegression -> why a merge does not reach it."""

_TREES = (
    "BaseDecisionTree",
    "BaseForest",
    "BaseGradientBoosting",
    "BaseHistGradientBoosting",
    "IsolationForest",
    "BaseWeightBoosting",
    "XGBModel",
    "Booster",
    "LGBMModel",
    "CatBoost",
)


def kinds_of(model: Any) -> list[str]:
    """The names of a model's class and of those that it derives from, the nearest first."""
    return [kind.__name__ for kind in type(model).__mro__]


def has_trees(kinds: Iterable[str]) -> bool:
    """Whether such a model is made of trees."""
    return not set(_TREES).isdisjoint(kinds)


def refuse_trees(model: Any) -> ConfigError:
    """The error for a forest, a booster or a tree; also for those that are no scikit-learn estimators."""
    return ConfigError(
        f"{type(model).__name__} is made of trees, and trees cannot be merged: two hospitals' trees ask"
        " different questions at the same place, so there is nothing to average element by element.",
        safe="Nothing was sent; the model is untouched.",
        do='Use a linear model or a multi-layer perceptron; docs/data-scientist.md, "XGBoost and other'
        ' trees", says what a swarm of trees would take.',
    )


def unusable(model: Any, why: str, instead: str) -> ConfigError:
    """The error for a model or a step that cannot be used as it is."""
    return ConfigError(
        f"This {type(model).__name__} {why}.",
        safe="Nothing was sent; the model is untouched.",
        do=f"Use {instead}.",
    )
