"""Scores of accepted merges, measured by the members on their own validation data."""

from __future__ import annotations

import math

from msgspec.structs import replace

from konsil.core.rules.agreement import is_metric
from konsil.core.rules.calls import Score
from konsil.core.rules.collecting import MAX_EXAMPLES
from konsil.core.rules.final import best_round, is_late
from konsil.core.rules.refusing import participant_of, require, study_named
from konsil.core.rules.state import ScoreRecord, State
from konsil.core.rules.studies import put
from konsil.errors import Refused

MAX_METRICS = 32
MAX_VALUE = 1e30
"""Beyond any score, and so small that a weighted sum of scores cannot overflow."""


def score(state: State, caller: str, call: Score, now_s: int) -> State:
    """Put a member's scores of an accepted round on record, once; see which merge is the best one now."""
    study = study_named(state, call.study)
    participant_of(study, caller)
    require(
        1 <= call.round <= len(study.history),
        "round_not_accepted",
        f"Round {call.round} of study '{call.study}' is not accepted (yet).",
    )
    record = study.history[call.round - 1]
    require(caller not in record.scores, "second_score", f"'{caller}' has scored round {call.round} already.")
    _check(call)
    late = is_late(study, call.round, now_s)
    scored = ScoreRecord(examples=call.examples, loss=call.loss, metrics=call.metrics, late=late)
    record = replace(record, scores=record.scores | {caller: scored})
    history = (*study.history[: call.round - 1], record, *study.history[call.round :])
    after = replace(study, history=history)
    return put(state, after if late else replace(after, best=best_round(after)))


def is_score(call: Score) -> bool:
    """Whether the contract could take such a score at all."""
    try:
        _check(call)
    except Refused:
        return False
    return True


def _check(call: Score) -> None:
    require(1 <= call.examples <= MAX_EXAMPLES, "bad_examples", "A score needs 1 to 10^12 examples.")
    require(
        call.loss is not None or bool(call.metrics),
        "empty_score",
        "A score has a loss or at least one metric.",
    )
    require(len(call.metrics) <= MAX_METRICS, "bad_metric", f"A score has at most {MAX_METRICS} metrics.")
    for name in call.metrics:
        require(
            is_metric(name) and name != "loss",
            "bad_metric",
            f"{name[:80]!r} cannot name a metric: at most 64 letters, digits and _ - . @; not 'loss'.",
        )
    values = [*call.metrics.values(), *([] if call.loss is None else [call.loss])]
    require(
        all(math.isfinite(value) and abs(value) <= MAX_VALUE for value in values),
        "bad_score",
        "Scores must be finite numbers of at most 1e30.",
        do="Find out where the NaN or the infinity comes from.",
    )
