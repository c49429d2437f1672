"""What is known of each kind of preprocessing: what has to be pooled for it, or that nothing has to be.

A step is *stateless* (fitted by the shape of the rows alone), *pooled* (fitted from means over all rows), or
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Protocol

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.protocols import Array
from konsil.learners.sklearn.pooled import Floats
from konsil.learners.sklearn.refusals import kinds_of, unusable

_CONSTANT = 2.0**-43
"""A standard deviation below this share of the mean is rounding: the column is constant."""


class PooledKind(Protocol):
    """A kind of step that is fitted from means over all rows. ``of_squares``: which means are of squares."""

    of_squares: frozenset[str]

    def means(self, step: Any) -> tuple[str, ...]:
        """The means that it needs, in the order in which they are fitted; none if it has no state.

        Raises:
            ConfigError: with these settings it cannot be fitted from means.
        """
        ...

    def values(self, step: Any, name: str, rows: Array, known: Mapping[str, Floats]) -> Floats:
        """What the mean is taken of: float64 [rows, features], NaN where a row does not count.

        Args:
            step: the step.
            name: of the mean, one of `means`.
            rows: as the steps before leave them, [rows, features].
            known: the step's means that are fitted already.
        """
        ...

    def needs_all(self, step: Any) -> bool:
        """Whether every column must have a value at some member."""
        ...

    def fit(self, step: Any, known: Mapping[str, Floats], row: Any) -> None:
        """Set the fitted attributes.

        Args:
            step: the step, not fitted.
            known: all of `means`.
            row: a made-up row, of the columns that the step gets.
        """
        ...


class Imputer:
    """``SimpleImputer``: the mean of what is not missing."""

    of_squares: frozenset[str] = frozenset()

    def means(self, step: Any) -> tuple[str, ...]:
        """One, unless it fills in a constant."""
        if step.add_indicator:
            raise unusable(
                step,
                "adds columns that say what is missing, and other columns have gaps at other hospitals",
                "add_indicator=False",
            )
        if step.strategy == "constant":
            return ()
        if step.strategy != "mean":
            raise unusable(
                step,
                f"fills in by strategy={step.strategy!r}, which no sums over a hospital's rows give",
                "strategy='mean' or 'constant'",
            )
        if not isinstance(step.missing_values, Real):
            raise unusable(
                step, f"takes {step.missing_values!r} for what is missing", "NaN or a number: missing_values"
            )
        return ("mean",)

    def values(self, step: Any, _name: str, rows: Array, _known: Mapping[str, Floats]) -> Floats:
        """The rows, with NaN for what is missing."""
        floats = as_floats(rows)
        return np.where(floats == step.missing_values, np.nan, floats)  # NaN equals nothing: it stays

    def needs_all(self, step: Any) -> bool:
        """A column without any value would be dropped, and the model would have another width."""
        return not step.keep_empty_features

    def fit(self, step: Any, known: Mapping[str, Floats], row: Any) -> None:
        """The mean is what is filled in; 0 for a column that nobody has."""
        step.fit(row)
        step.statistics_ = np.nan_to_num(known["mean"], nan=0.0)


class Scaler:
    """``StandardScaler``: the mean, then the mean squared distance from it.

    In two rounds, since a variance out of sums of squares loses its digits where a feature is far from 0.
    """

    of_squares: frozenset[str] = frozenset({"variance"})

    def means(self, step: Any) -> tuple[str, ...]:
        """Two; one if it does not scale; none if it does nothing."""
        if not step.with_std:
            return ("mean",) if step.with_mean else ()
        return ("mean", "variance")

    def values(self, _step: Any, name: str, rows: Array, known: Mapping[str, Floats]) -> Floats:
        """The rows; for the variance, their squared distances from the agreed mean."""
        floats = as_floats(rows)
        return floats if name == "mean" else np.square(floats - known["mean"])

    def needs_all(self, _step: Any) -> bool:
        """A column without any value has no scale."""
        return True

    def fit(self, step: Any, known: Mapping[str, Floats], row: Any) -> None:
        """As scikit-learn does, but for ``n_samples_seen_``, which nobody knows: it stays at 1."""
        mean = known["mean"]
        step.fit(row)
        step.mean_ = mean.copy()
        if step.with_std:
            step.var_ = known["variance"].copy()
            deviation = np.sqrt(step.var_)
            step.scale_ = np.where(deviation <= _CONSTANT * np.abs(mean), 1.0, deviation)


_POOLED: Mapping[str, PooledKind] = {"SimpleImputer": Imputer(), "StandardScaler": Scaler()}

_STATELESS = ("FunctionTransformer", "Normalizer", "Binarizer", "PolynomialFeatures")

ENCODERS = frozenset({"OneHotEncoder", "OrdinalEncoder"})

_SCALE = "StandardScaler, or a FunctionTransformer with bounds that all agree on"
_QUANTILES = "needs quantiles over all hospitals' rows, which no sums give"
_EXTREMES = "needs the smallest and the largest value of all, which are single patients' values and no sums"
_CHOICE = "chooses columns by each hospital's own rows"

_REFUSED: Mapping[str, tuple[str, str]] = {
    "MinMaxScaler": (_EXTREMES, _SCALE),
    "MaxAbsScaler": (_EXTREMES, _SCALE),
    "RobustScaler": (_QUANTILES, _SCALE),
    "QuantileTransformer": (_QUANTILES, _SCALE),
    "KBinsDiscretizer": ("needs the extremes or quantiles of all hospitals' rows", _SCALE),
    "PowerTransformer": (
        "searches its exponents over all hospitals' rows",
        "FunctionTransformer(numpy.log1p) before a StandardScaler",
    ),
    "KNNImputer": ("keeps patients' rows", "SimpleImputer()"),
    "IterativeImputer": ("fits a model of its own to each column", "SimpleImputer()"),
    "_BasePCA": ("needs covariances between all columns, not sums of single ones", "StandardScaler alone"),
    "VarianceThreshold": (_CHOICE, "columns that all agree on"),
    "SelectorMixin": (_CHOICE, "columns that all agree on"),
    "FeatureUnion": ("has parts, which Konsil does not look into", "a ColumnTransformer"),
}


def kind_of(step: Any) -> PooledKind | None:
    """What has to be pooled for a step; None if nothing has to be.

    Raises:
        ConfigError: a step that cannot be fitted together.
    """
    kinds = kinds_of(step)
    for name in kinds:
        if name in _POOLED:
            kind = _POOLED[name]
            return kind if kind.means(step) else None
        if name in _STATELESS:
            return None
        if name in ENCODERS:
            _require_categories(step)
            return None
        if name in _REFUSED:
            raise unusable(step, *_REFUSED[name])
    raise unusable(
        step,
        "is a step of which Konsil does not know how it could be fitted together",
        f"{', '.join(sorted({*_POOLED, *_STATELESS}))}, or an encoder with given categories",
    )


def forget(step: Any) -> None:
    """Take a step's fitted attributes away, by which scikit-learn tells a fitted one."""
    for name in _fitted_attributes(step):
        delattr(step, name)


def is_fitted(step: Any) -> bool:
    """Whether a step has learned something from rows."""
    return bool(_fitted_attributes(step))


def _fitted_attributes(step: Any) -> list[str]:
    return [name for name in vars(step) if name.endswith("_") and not name.startswith("__")]


def as_floats(rows: Any) -> Floats:
    """Rows as float64 [rows, features].

    Raises:
        ConfigError: they are no table of numbers.
    """
    try:
        floats = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _not_a_table(str(error)) from error
    if floats.ndim != 2:  # noqa: PLR2004 - rows and columns
        raise _not_a_table(f"they have shape {floats.shape}")
    return floats


def _require_categories(step: Any) -> None:
    problem = "learns its categories from the rows, and hospitals meet different ones"
    if isinstance(step.categories, str):
        raise unusable(step, problem, "categories=[[...], ...], the same at every member")
    if getattr(step, "max_categories", None) or getattr(step, "min_frequency", None):
        raise unusable(
            step,
            "drops categories that are rare in a hospital's rows",
            "neither max_categories nor min_frequency",
        )


def _not_a_table(why: str) -> ConfigError:
    return ConfigError(
        f"The rows cannot be read as a table of numbers: {why}",
        safe="Nothing was sent.",
        do="Pass a dense array or data frame [patients, features] of numbers, NaN where one is missing.",
    )
