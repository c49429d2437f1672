"""Linear models and multi-layer perceptrons.

Only coefficients and intercepts travel. What an optimiser keeps (momenta, the step counter of a learning-rate
schedule) stays at each member, where `resume` keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from konsil.core.parameters import is_mark
from konsil.errors import ConfigError
from konsil.learners.protocols import Array
from konsil.learners.sklearn.columns import Columns
from konsil.learners.sklearn.meaning import marks_of, note_columns
from konsil.learners.sklearn.refusals import (
    REFUSED_ESTIMATORS,
    REFUSED_SOLVERS,
    has_trees,
    kinds_of,
    refuse_trees,
    unusable,
)
from konsil.learners.sklearn.resuming import (
    linear_state,
    load_linear_state,
    load_perceptron_state,
    perceptron_state,
)

_BY_STEPS = ("BaseSGD",)  # partial_fit: SGD, Perceptron, PassiveAggressive
_BY_WARM_START = ("LogisticRegression", "ElasticNet", "_GeneralizedLinearRegressor")
_ONCE = ("LinearRegression", "Ridge")  # closed form: `fit` never starts from given coefficients
_NO_STEP = 1e-300
"""A learning rate whose steps are lost in the rounding of any parameter, and still above zero."""


class LinearLearner:
    """A linear model: ``coef_`` and ``intercept_``.

    For models trained by ``partial_fit`` (SGD, Perceptron, PassiveAggressive), those whose ``fit`` goes on
    from what they hold (``LogisticRegression``, ``Lasso``, ``ElasticNet``, Poisson, gamma and Tweedie
    regression with ``warm_start=True``), and the closed-form ``LinearRegression`` and ``Ridge``.

    A ``fit`` that runs until it has converged ends at its own hospital's optimum, wherever it starts: then
    one round averages the hospitals' optima, and more change nothing. That holds for the closed form, and for
    a warm start unless ``max_iter`` stops it after a few steps.
    """

    _names = ("coef_", "intercept_")

    def __init__(self, model: Any) -> None:
        """Use a model that has coefficients.

        Raises:
            ConfigError: not prepared, averaging, or its ``fit`` would forget the merge.
        """
        _require_mergeable(model)
        _require_shapes(model, "coef_")
        self._model = model
        self._marks = marks_of(model)  # of now: what a `fit` finds in a hospital's own rows is not asked

    def parameters(self) -> dict[str, Array]:
        """``coef_`` [classes or outputs, features] or [features], ``intercept_`` [classes or outputs]; and
        names that stand for columns and classes.
        """
        return {name: np.asarray(getattr(self._model, name)) for name in self._names} | self._marks

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in."""
        for name, values in arrays.items():
            if is_mark(name):
                continue
            held = getattr(self._model, name)
            if isinstance(held, np.ndarray):
                np.copyto(held, values)
            else:  # some models hold a single intercept as a number
                setattr(self._model, name, values.dtype.type(values))

    def local_state(self) -> dict[str, Array]:
        """The step counter of the learning-rate schedule, if there is one."""
        return linear_state(self._model)

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take it back.

        Raises:
            ConfigError: it is another model's; nothing was changed.
        """
        load_linear_state(self._model, arrays)


class PerceptronsLearner:
    """A multi-layer perceptron: ``coefs_.0`` [features, units] ..., ``intercepts_.0`` [units] ..."""

    _names = ("coefs_", "intercepts_")

    def __init__(self, model: Any) -> None:
        """Use a model that has coefficients.

        Raises:
            ConfigError: not prepared, or its solver has no steps between which it could be merged.
        """
        _require_steps(model)
        _require_shapes(model, "coefs_")
        self._model = model
        self._marks = marks_of(model)

    def parameters(self) -> dict[str, Array]:
        """The layers' own arrays; and names that stand for columns and classes."""
        return self._own() | self._marks

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in, in place: the optimiser holds references to these very arrays."""
        own = self._own()
        for name, values in arrays.items():
            if not is_mark(name):
                np.copyto(own[name], values)

    def local_state(self) -> dict[str, Array]:
        """Counters, and the optimiser's moments and numbers."""
        return perceptron_state(self._model)

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take them back.

        Raises:
            ConfigError: they are another model's or another optimiser's; nothing was changed.
        """
        load_perceptron_state(self._model, arrays)

    def _own(self) -> dict[str, Array]:
        return {
            f"{name}.{number}": array
            for name in self._names
            for number, array in enumerate(getattr(self._model, name))
        }


def estimator_learner(model: Any) -> LinearLearner | PerceptronsLearner:
    """The learner for an estimator.

    Raises:
        ConfigError: not a kind that can be merged, or not prepared.
    """
    return PerceptronsLearner(model) if _has_layers(model) else LinearLearner(model)


def prepare_estimator(model: Any, columns: Columns, classes: Sequence[Any] | None, dtype: Any) -> Any:
    """`konsil.prepare` for a single estimator.

    Raises:
        ConfigError: a classifier without classes, or not a kind that can be merged.
    """
    _require_steps(model) if _has_layers(model) else _require_mergeable(model)
    if "ClassifierMixin" in kinds_of(model) and (classes is None or len(set(classes)) < 2):  # noqa: PLR2004 - a choice needs two
        raise unusable(
            model,
            "is a classifier, and its classes are not known",
            "`konsil.prepare(model, n_features, classes=[0, 1])`",
        )
    labels = None if classes is None else np.unique(np.asarray(classes))
    n_features = columns if isinstance(columns, int) else len(columns)
    vars(model).pop("feature_names_in_", None)
    if _has_layers(model):
        _prepare_perceptrons(model, n_features, labels, dtype)
    else:
        _prepare_linear(model, n_features, labels, dtype)
    if not isinstance(columns, int):  # from now on scikit-learn, too, compares each data frame's columns
        model.feature_names_in_ = np.array(columns, dtype=object)
    note_columns(model, columns)
    return model


def _prepare_linear(model: Any, n_features: int, labels: Array | None, dtype: Any) -> None:
    if hasattr(model, "partial_fit"):
        _train_on_nothing(model, n_features, labels, dtype)
        model.t_ = 1.0
    else:
        _prepare_by_hand(model, n_features, labels, dtype)
    model.coef_ = np.zeros_like(model.coef_)
    model.intercept_ = np.zeros_like(model.intercept_)


def _prepare_perceptrons(model: Any, n_features: int, labels: Array | None, dtype: Any) -> None:
    for name in ("coefs_", "_optimizer"):
        vars(model).pop(name, None)  # so that it begins at its random start, whatever it held
    rate = model.learning_rate_init
    model.learning_rate_init = _NO_STEP
    try:
        _train_on_nothing(model, n_features, labels, dtype)
    finally:
        model.learning_rate_init = rate
    # Made anew at the next step, at the right rate and without the moments of this made-up one.
    vars(model).pop("_optimizer", None)
    model.t_, model.n_iter_, model.loss_curve_, model.best_loss_ = 0, 0, [], np.inf


def _train_on_nothing(model: Any, n_features: int, labels: Array | None, dtype: Any) -> None:
    rows = 2 if labels is None else len(labels)
    nothing = np.zeros((rows, n_features), dtype)
    vars(model).pop("coef_", None)  # another width than before would be an error, not a new start
    if labels is None:
        model.partial_fit(nothing, np.zeros(rows))
    else:
        vars(model).pop("classes_", None)
        model.partial_fit(nothing, labels, classes=labels)


def _prepare_by_hand(model: Any, n_features: int, labels: Array | None, dtype: Any) -> None:
    model.n_features_in_ = n_features
    if labels is None:
        model.coef_, model.intercept_ = np.zeros(n_features, dtype), np.zeros((), dtype)[()]
        return
    rows = 1 if len(labels) == 2 else len(labels)  # noqa: PLR2004 - two classes need one row
    model.classes_ = labels
    model.coef_, model.intercept_ = np.zeros((rows, n_features), dtype), np.zeros(rows, dtype)


def _has_layers(model: Any) -> bool:
    return "BaseMultilayerPerceptron" in kinds_of(model)


def _require_steps(model: Any) -> None:
    if model.solver == "lbfgs":
        raise unusable(
            model,
            "has a solver that takes all its steps at once (lbfgs), with no place for a merge between them",
            "solver='adam' or 'sgd', and partial_fit",
        )


def _require_mergeable(model: Any) -> None:
    """See that this is a linear model that a merge would reach."""
    kinds = kinds_of(model)
    if has_trees(kinds):
        raise refuse_trees(model)
    # The nearest class decides: MultiTaskLasso derives from Lasso.
    known = {*REFUSED_ESTIMATORS, *_BY_STEPS, *_BY_WARM_START, *_ONCE}
    kind = next((kind for kind in kinds if kind in known), None)
    if kind is None:
        raise ConfigError(
            f"{type(model).__name__} has no coefficients that can be merged.",
            safe="Nothing was sent; the model is untouched.",
            do="Use a linear model or a multi-layer perceptron, or a Pipeline that ends in one.",
        )
    if kind in REFUSED_ESTIMATORS:
        raise unusable(model, *REFUSED_ESTIMATORS[kind])
    if getattr(model, "average", False):
        raise unusable(
            model, "averages its coefficients over its steps, which a merge would upset", "average=False"
        )
    if kind not in _BY_WARM_START:
        return
    if not model.warm_start:
        raise unusable(model, "starts anew at every `fit` and would forget the merge", "warm_start=True")
    solver = getattr(model, "solver", "")
    if solver in REFUSED_SOLVERS:
        raise unusable(
            model,
            f"{REFUSED_SOLVERS[solver]} (solver={solver!r})",
            "solver='lbfgs', or SGDClassifier(loss='log_loss', penalty='l1') with partial_fit",
        )


def _require_shapes(model: Any, name: str) -> None:
    if not hasattr(model, name):
        raise unusable(
            model,
            "was never fitted, so the shapes of its parameters are not known",
            "`konsil.prepare(model, n_features, classes)`, or call `partial_fit` once",
        )
