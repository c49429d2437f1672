"""What a session knows of an accepted round, and what of it goes to a tracker."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from konsil.core.rules import mean_score
from konsil.core.rules.agreement import is_metric
from konsil.core.rules.state import RoundRecord, ScoreRecord
from konsil.core.wall import Scored
from konsil.errors import ConfigError
from konsil.learners import Scores

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
    if own is not None:  # a metric may have any name, that of another figure too
        scores = own.metrics if own.loss is None else {"loss": own.loss, **own.metrics}
        found |= {f"own_{name}": value for name, value in scores.items()}
    return {PREFIX + name: value for name, value in found.items()}


def mean_figures(before: AcceptedRound) -> dict[str, float]:
    """The means of a round's scores in flat figures."""
    return {f"{PREFIX}mean_{name}": mean for name, mean in before.means.items()}


def counted_examples(examples: Any) -> int:
    """How many examples a step was trained on: any whole number, numpy's and PyTorch's too.

    Raises:
        ConfigError: no whole number, or below 0.
    """
    try:
        count = operator.index(examples)
    except TypeError:
        count = -1
    if count < 0:
        raise ConfigError(
            f"A step was trained on {examples!r} examples, which is no whole number from 0 on.",
            safe="It was not counted; nothing was sent.",
            do="Say how many there were: `step(examples=len(batch))`.",
        )
    return count


def said_of(number: int, scores: Scores) -> Scored:
    """A member's scores of a round's merge, to be put on the ledger.

    Raises:
        ConfigError: a score that is no finite number, or no examples.
    """
    unfit = [name for name in scores.metrics if not is_metric(name) or name == "loss"]
    if unfit:
        raise ConfigError(
            f"{unfit[0][:80]!r} cannot name a metric on the ledger.",
            safe="Nothing went on the ledger.",
            do="Take at most 64 letters, digits and _ - . @, for example `auc` or `auc@10`.",
        )
    scores.require_sayable()
    return Scored(round=number, examples=scores.examples, loss=scores.loss, metrics=dict(scores.metrics))
