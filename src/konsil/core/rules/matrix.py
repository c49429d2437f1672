"""The scores of every merge by every member: how well each hospital's patients are served, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from konsil.core.rules.state import RoundRecord, Study
from konsil.core.rules.stopping import mean_score, score_value


@dataclass(frozen=True)
class MatrixRow:
    """One merge. ``values``: member -> its score on its own validation data, if it has one. ``roster``: who
    took part. ``mean``: over the roster, weighted as in the merge; None without any.
    """

    round: int
    digest: str
    values: Mapping[str, float]
    roster: tuple[str, ...]
    mean: float | None


@dataclass(frozen=True)
class ScoreMatrix:
    """One score of a study: a row for each accepted round; ``members``: its columns, in name order."""

    metric: str
    members: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


def score_matrix(study: Study, metric: str = "loss") -> ScoreMatrix:
    """The matrix of a score, as far as it is on the ledger.

    Args:
        study: the study.
        metric: "loss" or a metric's name.
    """
    rows = tuple(_row(record, metric) for record in study.history)
    members = {*study.participants, *(name for row in rows for name in (*row.values, *row.roster))}
    return ScoreMatrix(metric, tuple(sorted(members)), rows)


def _row(record: RoundRecord, metric: str) -> MatrixRow:
    found = ((name, score_value(score, metric)) for name, score in sorted(record.scores.items()))
    values = {name: value for name, value in found if value is not None}
    return MatrixRow(
        record.number, record.digest, values, tuple(sorted(record.roster)), mean_score(record, metric)
    )


def metrics_of(study: Study) -> tuple[str, ...]:
    """The names of all scores of a study, "loss" first, then by name."""
    scores = [score for record in study.history for score in record.scores.values()]
    named = {name for score in scores for name in score.metrics}
    return (*(("loss",) if any(score.loss is not None for score in scores) else ()), *sorted(named))
