"""Pipelines: preprocessing that is fitted together without sharing rows, and the model at the end.

One step after the other, each mean in one round. Only sums and counts over a member's rows travel, beside the
parameters of the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.base import Array
from konsil.learners.sklearn.estimators import estimator_learner, prepare_estimator
from konsil.learners.sklearn.pooled import Floats, Pooled
from konsil.learners.sklearn.refusals import kinds_of, unusable
from konsil.learners.sklearn.steps import PooledKind, forget, kind_of, width_after

_WIDTH = "_konsil_n_features"
"""Where `prepare` notes on a Pipeline how many columns its rows have."""


@dataclass(frozen=True)
class Step:
    """A step that is fitted together. ``place``: in the pipeline. ``means``: by name, in order."""

    name: str
    place: int
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
            self.kind.fit(self.transformer, self.known)


class PipelineLearner:
    """A Pipeline: ``STEP.MEAN.sum`` and ``STEP.MEAN.count`` [features] of each mean that is fitted together
    (see `konsil.learners.sklearn.pooled`), and ``STEP.`` with the names of the model at the end.

    The last step may also be preprocessing: then that is all that is learned.
    """

    def __init__(self, pipeline: Any) -> None:
        """Use a Pipeline that `prepare` has given its shapes. Its preprocessing is not fitted afterwards.

        Raises:
            ConfigError: not prepared, or a step that cannot be merged or fitted together.
        """
        width = getattr(pipeline, _WIDTH, None)
        if width is None:
            raise unusable(
                pipeline,
                "was not prepared, so the shapes of its parameters are not known",
                "konsil.learners.sklearn.prepare(pipeline, n_features, classes)",
            )
        self._pipeline = pipeline
        self._width: int = width
        self._steps, _ = _walk(pipeline, width)
        self._last, last = pipeline.steps[-1]
        self._model = estimator_learner(last) if _is_model(last) else None
        self._columns: Array | None = None
        self._asked: Pooled | None = None
        self._in_vain = False
        self._refresh()

    def parameters(self) -> dict[str, Array]:
        """Sums and counts, and the model's own arrays."""
        model = {} if self._model is None else self._model.parameters()
        return {f"{self._last}.{name}": array for name, array in model.items()} | {
            f"{prefix}.{part}": getattr(pooled, part)
            for prefix, pooled in self._pooled()
            for part in ("sum", "count")
        }

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in; steps whose means are all known are fitted afterwards."""
        pooled = dict(self._pooled())
        for prefix, mean in pooled.items():
            if f"{prefix}.sum" in arrays and f"{prefix}.count" in arrays:
                mean.take(arrays[f"{prefix}.sum"], arrays[f"{prefix}.count"])
        self._in_vain = self._asked is not None and not self._asked.known
        self._refresh()
        if self._model is not None:
            start = f"{self._last}."
            known = {f"{prefix}.{part}" for prefix in pooled for part in ("sum", "count")}
            own = {name for name in arrays if name.startswith(start) and name not in known}
            self._model.load({name.removeprefix(start): arrays[name] for name in own})

    def observe(self, data: Any, weight: int) -> bool:
        """Put this member's sums and counts of the next mean that is not known yet into the parameters.

        Args:
            data: this member's own training rows [rows, features], an array or a data frame.
            weight: how much this member counts in the merge that follows.

        Returns:
            Whether there was such a mean; False once all are known.

        Raises:
            ConfigError: no table of ``n_features`` columns, a column of which no member has a value, or a
                merge that fitted nothing.
        """
        rows = self._rows(data)
        for step in self._steps:
            self._require_values(step)
            for name, mean in step.means.items():
                if mean.known:
                    continue
                if mean is self._asked and self._in_vain:
                    raise _in_vain(step.name)
                mean.observe(self._values(step, name, rows), weight)
                self._asked = mean
                return True
        return False

    def _values(self, step: Step, name: str, rows: Any) -> Floats:
        """What a mean is taken of, float64 [rows, features that reach the step]."""
        if len(rows) == 0:
            return np.empty((0, len(step.means[name].sum)))  # scikit-learn transforms one row at least
        for _, before in self._pipeline.steps[: step.place]:
            if not _passes(before):
                rows = before.transform(rows)
        return step.kind.values(step.transformer, name, rows, step.known)

    def _pooled(self) -> list[tuple[str, Pooled]]:
        return [(f"{step.name}.{name}", mean) for step in self._steps for name, mean in step.means.items()]

    def _refresh(self) -> None:
        for step in self._steps:
            step.refresh()
        first = next((step for _, step in self._pipeline.steps if not _passes(step)), None)
        if self._columns is not None and first is not None and hasattr(first, "n_features_in_"):
            first.feature_names_in_ = self._columns  # else it warns of a data frame's names at every call

    def _rows(self, data: Any) -> Any:
        """A copy, since some steps work in place; with the columns' names noted."""
        framed = hasattr(data, "columns")
        rows = deepcopy(data) if framed else np.array(data)
        if rows.ndim != 2 or rows.shape[1] != self._width:  # noqa: PLR2004 - rows and columns
            raise ConfigError(
                f"The rows have shape {rows.shape}, and the Pipeline was prepared for {self._width} columns.",
                safe="Nothing was sent.",
                do="Pass a dense array or data frame [patients, features] with the columns of the study.",
            )
        if framed and all(isinstance(name, str) for name in data.columns):
            self._columns = np.asarray(data.columns, dtype=object)
            self._refresh()
        return rows

    def _require_values(self, step: Step) -> None:
        missing = {int(column) for mean in step.known.values() for column in np.flatnonzero(np.isnan(mean))}
        if not missing or not step.kind.needs_all(step.transformer):
            return
        named = self._columns if step.place == 0 else None
        columns = ", ".join(str(named[at]) if named is not None else str(at) for at in sorted(missing))
        raise ConfigError(
            f"No member has any value in these columns that step '{step.name}' gets: {columns}.",
            safe="The model was loaded, but it cannot be used with such a column.",
            do="Leave these columns out at every member, or use SimpleImputer(keep_empty_features=True),"
            " in a new study.",
            columns=tuple(sorted(missing)),
        )


def is_pipeline(model: Any) -> bool:
    """Whether a model is a scikit-learn Pipeline, or derived from one."""
    return "Pipeline" in kinds_of(model)


def prepare_pipeline(pipeline: Any, n_features: int, classes: Sequence[Any] | None, dtype: Any) -> Any:
    """`konsil.learners.sklearn.prepare` for a Pipeline.

    Raises:
        ConfigError: a step that cannot be fitted together, or as for its last step alone.
    """
    steps, width = _walk(pipeline, n_features)
    for step in steps:
        forget(step.transformer)
    _, last = pipeline.steps[-1]
    if _is_model(last):
        prepare_estimator(last, width, classes, dtype)
    setattr(pipeline, _WIDTH, n_features)
    return pipeline


def _walk(pipeline: Any, width: int) -> tuple[list[Step], int]:
    """The steps that are fitted together, and the columns that reach the model; fits those without state."""
    steps = []
    for place, (name, transformer) in enumerate(pipeline.steps):
        if _passes(transformer) or (place == len(pipeline.steps) - 1 and _is_model(transformer)):
            continue
        kind = kind_of(transformer)
        if kind is None:
            width = width_after(transformer, width)
            continue
        means = {mean: Pooled.empty(width) for mean in kind.means(transformer)}
        steps.append(Step(name, place, transformer, kind, means))
    return steps, width


def _passes(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def _is_model(last: Any) -> bool:
    return not _passes(last) and not (hasattr(last, "transform") and not hasattr(last, "predict"))


def _in_vain(step: str) -> ConfigError:
    return ConfigError(
        f"The merge brought no values for step '{step}': no member had any, or its arrays stay at home.",
        safe="Nothing more was sent; the step is not fitted.",
        do=f"See that rows are not empty, and that no `local` pattern of the study matches '{step}.*'.",
    )
