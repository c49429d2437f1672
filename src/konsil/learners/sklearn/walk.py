"""Which steps of a Pipeline are fitted together, on which rows: found by taking a made-up row through it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from konsil.learners.sklearn.columns import Columns
from konsil.learners.sklearn.pooled import Floats, Pooled
from konsil.learners.sklearn.refusals import kinds_of, unusable
from konsil.learners.sklearn.steps import ENCODERS, PooledKind, forget, kind_of

MADE_UP = 0.5
"""What a made-up row consists of: few functions do not take it, and nobody's code for "missing"."""

Rows = Any
"""An array or a data frame [rows, columns]."""

Reach = Callable[[Rows], Rows]
"""From a Pipeline's rows to those that a step in it gets."""


@dataclass(frozen=True)
class Step:
    """A step that is fitted together.

    ``reach``: to its rows. ``row``: a made-up one of them. ``means``: by name, in order.
    """

    name: str
    reach: Reach
    row: Rows
    transformer: Any
    kind: PooledKind
    means: Mapping[str, Pooled]

    @property
    def fitted(self) -> bool:
        """Whether all of its means are known."""
        return all(pooled.known for pooled in self.means.values())

    @property
    def known(self) -> dict[str, Floats]:
        """The means that are known, by name."""
        return {name: pooled.mean for name, pooled in self.means.items() if pooled.known}

    def refresh(self) -> None:
        """Bring the transformer to what is known: fitted, or not."""
        forget(self.transformer)
        if self.fitted:
            self.kind.fit(self.transformer, self.known, self.row)


def walk(pipeline: Any, columns: Columns) -> tuple[list[Step], int]:
    """Find the steps that are fitted together; those without state are fitted on the way.

    Args:
        pipeline: its last step is left out if it is a model.
        columns: of the rows: how many, or their names.

    Returns:
        The steps, not fitted, and the number of columns that reach the model.

    Raises:
        ConfigError: a step that cannot be fitted together.
    """
    steps = [(name, step) for name, step in pipeline.steps if not passes(step)]
    if steps and is_model(pipeline.steps[-1][1]):
        steps.pop()
    for _, step in steps:
        _require_known(step)
    found, row = _walk("", steps, _made_up([step for _, step in steps], columns), _as_they_are)
    for step in found:
        forget(step.transformer)
    return found, int(row.shape[1])


def passes(step: Any) -> bool:
    """Whether a step hands its rows on as they are."""
    return step is None or (isinstance(step, str) and step in {"passthrough", "drop"})


def is_model(step: Any) -> bool:
    """Whether a step is a model and no preprocessing."""
    return not passes(step) and (hasattr(step, "predict") or not hasattr(step, "transform"))


def _walk(prefix: str, steps: Sequence[tuple[str, Any]], row: Rows, reach: Reach) -> tuple[list[Step], Rows]:
    found = []
    for name, step in steps:
        row, before = _fit_on(step, row), row
        if _has_parts(step):
            for part, inner, columns in step.transformers_:  # its own clones, which only its `fit` makes
                if not passes(inner):
                    pick = partial(_pick, columns)
                    at, _ = _walk(f"{prefix}{name}.", [(part, inner)], pick(before), _then(reach, pick))
                    found += at
        elif _is_pipeline(step):
            found += _walk(f"{prefix}{name}.", _real(step), before, reach)[0]
        elif kind := kind_of(step):
            means = {
                mean: Pooled.empty(before.shape[1], of_squares=mean in kind.of_squares)
                for mean in kind.means(step)
            }
            found.append(Step(f"{prefix}{name}", reach, before, step, kind, means))
        reach = _then(reach, partial(_transform, step))
    return found, row


def _require_known(step: Any) -> None:
    """See that a step, and all in it, can be fitted together, before anything is fitted.

    Raises:
        ConfigError: it cannot.
    """
    if _has_parts(step):
        for _, inner, columns in step.transformers:
            if callable(columns):
                raise unusable(
                    step,
                    "picks its columns by a function, which may find others at another hospital",
                    "a list of columns for each part",
                )
            if not passes(inner):
                _require_known(inner)
    elif _is_pipeline(step):
        for _, inner in _real(step):
            _require_known(inner)
    else:
        kind_of(step)


def _made_up(steps: Sequence[Any], columns: Columns) -> Rows:
    """A row that the steps take: numbers, and a known category where an encoder has them."""
    names = range(columns) if isinstance(columns, int) else list(columns)
    values: list[Any] = [MADE_UP] * len(names)
    for step in steps:
        _fill_in(step, list(range(len(names))), names, values)
    if isinstance(columns, int):
        return np.array([values], dtype=object if any(isinstance(value, str) for value in values) else float)
    return import_module("pandas").DataFrame([values], columns=names)


def _fill_in(step: Any, places: Sequence[int], names: Sequence[Any], values: list[Any]) -> None:
    if passes(step):
        return
    if _has_parts(step):
        for _, inner, columns in step.transformers:
            _fill_in(inner, _positions(columns, names), names, values)
    elif _is_pipeline(step):
        for _, inner in step.steps:
            _fill_in(inner, places, names, values)
    elif not ENCODERS.isdisjoint(kinds_of(step)) and len(step.categories) == len(places):
        for place, categories in zip(places, step.categories, strict=True):
            values[place] = categories[0]


def _positions(columns: Any, names: Sequence[Any]) -> list[int]:
    """Where the columns are that a part picks; scikit-learn itself complains about those that are not."""
    if isinstance(columns, slice) and not isinstance(columns.start or columns.stop, str):
        return list(range(len(names)))[columns]
    picked = np.atleast_1d(np.asarray(columns)) if not isinstance(columns, slice) else np.array([])
    if picked.dtype == bool:
        return [int(place) for place in np.flatnonzero(picked)]
    if picked.dtype.kind in "iu":
        return [int(place) % len(names) for place in picked]
    return [names.index(str(name)) for name in picked if str(name) in names]


def _fit_on(step: Any, row: Rows) -> Rows:
    """Fit a step on a made-up row, and what it makes of it.

    Raises:
        ConfigError: it does not take it.
    """
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # about a made-up row
            return step.fit(row).transform(row)
    except Exception as error:
        raise unusable(
            step,
            f"does not take a made-up row of {row.shape[1]} columns: {type(error).__name__}: {error}",
            "the number of columns that the steps before it give",
        ) from error


def _has_parts(step: Any) -> bool:
    return "ColumnTransformer" in kinds_of(step)


def _is_pipeline(step: Any) -> bool:
    return "Pipeline" in kinds_of(step)


def _real(pipeline: Any) -> list[tuple[str, Any]]:
    return [(name, step) for name, step in pipeline.steps if not passes(step)]


def _as_they_are(rows: Rows) -> Rows:
    return rows


def _then(first: Reach, second: Reach) -> Reach:
    return lambda rows: second(first(rows))


def _transform(step: Any, rows: Rows) -> Rows:
    return step.transform(rows)


def _pick(columns: Any, rows: Rows) -> Rows:
    """The columns of a part, as ColumnTransformer picks them."""
    from sklearn.utils import _safe_indexing  # noqa: PLC0415 - only where a ColumnTransformer is

    return _safe_indexing(rows, columns, axis=1)
