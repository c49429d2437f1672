"""What a session knows of an accepted round, and what of it goes to a tracker."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from konsil.core.rules import mean_score
from konsil.core.rules.state import RoundRecord, ScoreRecord
from konsil.core.wall import Scored
from konsil.errors import ConfigError

PREFIX = "konsil/"
"""Before every figure's name, so that it stands apart from the script's own."""


@dataclass(frozen=True)
class AcceptedRound:
    """What is known of an accepted round.

    ``members``: who took part -> examples. ``absent``: who did not -> why. ``scores``: as far as members
    had scored it when this was told. ``record``: all that the ledger has.
    """

    round: int
    digest: str
    members: Mapping[str, int]
    absent: Mapping[str, str]
    scores: Mapping[str, ScoreRecord]
    record: RoundRecord

    @classmethod
    def of(cls, record: RoundRecord) -> AcceptedRound:
        """From the ledger's record."""
        return cls(
            round=record.number,
            digest=record.digest,
            members={member: commitment.examples for member, commitment in record.roster.items()},
            absent=dict(record.absent),
            scores=dict(record.scores),
            record=record,
        )

    @property
    def means(self) -> dict[str, float]:
        """Each score's mean over those who took part, weighted as in the merge."""
        names = sorted({name for score in self.scores.values() for name in score.metrics})
        means = {name: mean_score(self.record, name) for name in ("loss", *names)}
        return {name: mean for name, mean in means.items() if mean is not None}


def figures(last: AcceptedRound, own: Scored | None) -> dict[str, float]:
    """A round in flat figures. ``own``: this member's scores of its merge."""
    record = last.record
    found = {
        "round": float(last.round),
        "members": float(len(last.members)),
        "absent": float(len(last.absent)),
        "examples": float(sum(last.members.values())),
        "round_s": float(record.accepted_s - record.opened_s),
    }
    if own is not None:
        found |= {} if own.loss is None else {"loss": own.loss}
        found |= own.metrics
    return {PREFIX + name: value for name, value in found.items()}


def mean_figures(before: AcceptedRound) -> dict[str, float]:
    """The means of a round's scores in flat figures."""
    return {f"{PREFIX}mean_{name}": mean for name, mean in before.means.items()}


def scored(number: int, examples: int, loss: float | None, metrics: Mapping[str, float]) -> Scored:
    """A member's scores of a round's merge, to be put on the ledger.

    Raises:
        ConfigError: a score that is no finite number, or no examples.
    """
    values = {"loss": 0.0 if loss is None else loss, **metrics}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad or examples < 1:
        raise ConfigError(
            "Scores must be finite numbers from at least one example, and this is not so:"
            f" {', '.join(bad) or f'{examples} examples'}.",
            safe="Nothing went on the ledger.",
            do="Leave a metric out where it is not defined, for example an AUC with one class only.",
        )
    return Scored(
        round=number,
        examples=int(examples),
        loss=None if loss is None else float(loss),
        metrics={name: float(value) for name, value in metrics.items()},
    )


def evaluated(number: int, found: Any) -> Scored:
    """What ``evaluate`` gave, as scores.

    Raises:
        ConfigError: no mapping with ``examples``, or a score that is no finite number.
    """
    if not isinstance(found, Mapping) or "examples" not in found:
        raise ConfigError(
            f"`evaluate` gave {type(found).__name__}, not a mapping with `examples`.",
            safe="Nothing went on the ledger; the merge is in your model.",
            do='Return for example {"examples": len(held_out), "loss": 0.31, "auc": 0.92}.',
        )
    values = {str(name): value for name, value in found.items() if value is not None}
    examples, loss = values.pop("examples"), values.pop("loss", None)
    try:
        return scored(number, int(examples), None if loss is None else float(loss), _floats(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`evaluate` gave what is no number: {error}.",
            safe="Nothing went on the ledger; the merge is in your model.",
            do="Give each score as a number, by its name.",
        ) from error


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
