"""Pipelines: preprocessing that is fitted together without sharing rows, and the model at the end.

One step after the other, each mean in one round. Only sums and counts over a member's rows travel, beside the
parameters of the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from konsil.core.parameters import is_mark
from konsil.errors import ConfigError, StudyError
from konsil.learners.protocols import Array
from konsil.learners.sklearn.columns import Columns
from konsil.learners.sklearn.estimators import estimator_learner, prepare_estimator
from konsil.learners.sklearn.meaning import marks_of, note_columns, noted_columns
from konsil.learners.sklearn.pooled import Floats, Pooled
from konsil.learners.sklearn.refusals import kinds_of, unusable
from konsil.learners.sklearn.steps import is_fitted
from konsil.learners.sklearn.walk import Step, is_model, passes, walk

_COLUMNS_SHOWN = 10


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
        columns = noted_columns(pipeline)
        if columns is None:
            raise _not_prepared(pipeline)
        self._pipeline = pipeline
        self._columns = columns
        self._steps, _ = walk(pipeline, columns)
        self._last, last = pipeline.steps[-1]
        self._model = estimator_learner(last) if is_model(last) else None
        self._marks = marks_of(pipeline)  # a Pipeline has the classes of the model at its end
        self._asked: Pooled | None = None
        self._in_vain = False
        self._refresh()

    def parameters(self) -> dict[str, Array]:
        """Sums and counts, the model's own arrays, and names that stand for columns and classes."""
        model = {} if self._model is None else self._model.parameters()
        sums = {
            f"{prefix}.{part}": getattr(pooled, part)
            for prefix, pooled in self._pooled()
            for part in ("sum", "count")
        }
        own = {f"{self._last}.{name}": array for name, array in model.items() if not is_mark(name)}
        return own | sums | self._marks

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in; steps whose means are all known are fitted afterwards.

        Raises:
            StudyError: sums, counts or means that no honest members' merge can give; nothing was changed.
        """
        pooled = dict(self._pooled())
        merged = {
            prefix: (arrays[f"{prefix}.sum"], arrays[f"{prefix}.count"])
            for prefix in pooled
            if f"{prefix}.sum" in arrays and f"{prefix}.count" in arrays
        }
        for prefix, (sums, counts) in merged.items():
            if columns := pooled[prefix].impossible(sums, counts):
                raise _impossible(prefix, columns)
        for prefix, (sums, counts) in merged.items():
            pooled[prefix].take(sums, counts)
        self._in_vain = self._asked is not None and not self._asked.known
        self._refresh()
        if self._model is not None:
            start = f"{self._last}."
            known = {f"{prefix}.{part}" for prefix in pooled for part in ("sum", "count")}
            own = {name for name in arrays if name.startswith(start) and name not in known}
            self._model.load({name.removeprefix(start): arrays[name] for name in own})

    def local_state(self) -> dict[str, Array]:
        """What the model at the end keeps beside its parameters."""
        return {} if self._model is None else self._model.local_state()

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take it back.

        Raises:
            ConfigError: it is another model's or another optimiser's; nothing was changed.
        """
        if self._model is not None:
            self._model.load_local_state(arrays)

    @property
    def fitted(self) -> bool:
        """Whether all means are known, so that the Pipeline can transform rows."""
        return self.rounds_to_fit == 0

    @property
    def rounds_to_fit(self) -> int:
        """How many merges more it takes until then: one for each mean."""
        return sum(not mean.known for _, mean in self._pooled())

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
        return step.kind.values(step.transformer, name, step.reach(rows), step.known)

    def _pooled(self) -> list[tuple[str, Pooled]]:
        return [(f"{step.name}.{name}", mean) for step in self._steps for name, mean in step.means.items()]

    def _refresh(self) -> None:
        for step in self._steps:
            step.refresh()

    def _rows(self, data: Any) -> Any:
        """A copy, since some steps work in place."""
        rows = deepcopy(data) if hasattr(data, "columns") else np.array(data)
        names = self._columns
        width = names if isinstance(names, int) else len(names)
        if len(rows.shape) != 2 or rows.shape[1] != width:  # noqa: PLR2004 - rows and columns
            raise ConfigError(
                f"The rows have shape {rows.shape}, and the Pipeline was prepared for {width} columns.",
                safe="Nothing was sent.",
                do="Pass a dense array or data frame [patients, features] with the columns of the study.",
            )
        found = [str(name) for name in getattr(rows, "columns", ())]
        if not isinstance(names, int) and found and found != list(names):
            at = next(place for place, name in enumerate(names) if found[place] != name)
            raise ConfigError(
                f"Column {at} of the rows, counted from 0, is '{found[at]}'; the Pipeline was prepared for"
                f" '{names[at]}' there.",
                safe="Nothing was sent.",
                do="Bring the columns into the order that `konsil.prepare` was given: `X = X[columns]`.",
            )
        return rows

    def _require_values(self, step: Step) -> None:
        missing = {int(column) for mean in step.known.values() for column in np.flatnonzero(np.isnan(mean))}
        if not missing or not step.kind.needs_all(step.transformer):
            return
        columns = ", ".join(map(str, sorted(missing)))
        raise ConfigError(
            f"No member has any value in these of the columns that step '{step.name}' gets, counted from 0:"
            f" {columns}.",
            safe="The model was loaded, but it cannot be used with such a column.",
            do="Leave these columns out at every member, or use SimpleImputer(keep_empty_features=True),"
            " in a new study.",
            columns=tuple(sorted(missing)),
        )


def is_pipeline(model: Any) -> bool:
    """Whether a model is a scikit-learn Pipeline, or derived from one."""
    return "Pipeline" in kinds_of(model)


def prepare_pipeline(pipeline: Any, columns: Columns, classes: Sequence[Any] | None, dtype: Any) -> Any:
    """`konsil.prepare` for a Pipeline.

    Raises:
        ConfigError: a step that cannot be fitted together, or as for its last step alone.
    """
    _, width = walk(pipeline, columns)
    _, last = pipeline.steps[-1]
    if is_model(last):
        prepare_estimator(last, width, classes, dtype)
    note_columns(pipeline, columns)
    return pipeline


def _impossible(mean: str, columns: Sequence[int]) -> StudyError:
    shown = ", ".join(map(str, columns[:_COLUMNS_SHOWN])) + (", ..." if len(columns) > _COLUMNS_SHOWN else "")
    return StudyError(
        f"The merge gives for '{mean}' what no rows have, such as a mean of squares below 0, in these"
        f" columns, counted from 0: {shown}. A member sent sums or counts that cannot be of its rows.",
        safe="Nothing of the merge was loaded; the model is as it was.",
        do="Have every member look at its rows and versions; then propose a new study, with a merge rule that"
        " bears a wrong update.",
        mean=mean,
        columns=tuple(columns),
    )


def _not_prepared(pipeline: Any) -> ConfigError:
    steps = [step for _, step in pipeline.steps if not passes(step)]
    if any(is_fitted(step) for step in steps):
        why = (
            "was fitted on this hospital's own rows alone; in a swarm its preprocessing is fitted on all"
            " members' rows together, and its model starts from what all start from"
        )
    else:
        why = "was not prepared, so the shapes of its parameters are not known"
    return unusable(
        pipeline,
        why,
        "`konsil.prepare(pipeline, n_features, classes)`, which forgets what it learned, and then"
        " `konsil.join(..., preprocessing=X)`",
    )


def _in_vain(step: str) -> ConfigError:
    return ConfigError(
        f"The merge brought no values for step '{step}': no member had any, or its arrays stay at home.",
        safe="Nothing more was sent; the step is not fitted.",
        do=f"See that rows are not empty, and that no `local` pattern of the study matches '{step}.*'.",
    )
