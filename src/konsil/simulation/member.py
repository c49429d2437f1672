"""What a hospital would have in its script, and one round of it: where the member's own code is called."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from konsil.core.rules import Contribution
from konsil.learners import Scores, evaluated


@dataclass(frozen=True)
class Work:
    """One round's training, as the study asks for it.

    ``round``: the round that it is for. Of ``steps``, ``epochs`` and ``minutes`` one is above 0: how long to
    train. ``interval``: how many times what the settings say, which is in the number already.
    """

    round: int
    steps: int = 0
    epochs: int = 0
    minutes: float = 0.0
    interval: int = 1


@dataclass(frozen=True, eq=False)
class Member:
    """A simulated hospital: its model, and what its script does with it.

    ``model``: as for ``konsil.join``; of its own, no other member may have the same object.
    ``train``: trains the model for a round and returns on how many examples.
    ``evaluate``: scores the model on the member's own validation data, as for ``konsil.join``:
    ``{"examples": 120, "loss": 0.31, "auc": 0.94}``.
    ``optimizer``, ``reset_optimizer``, ``after``: as for ``konsil.join``. ``rounds``: after so many the
    member finishes; None for one that stays to the end. ``preprocessing``: this member's training rows, where
    the model's preprocessing is fitted together first.
    """

    model: Any
    train: Callable[[Any, Work], int]
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None
    optimizer: Any = None
    reset_optimizer: bool = False
    rounds: int | None = None
    after: Contribution = "inactive"
    preprocessing: Any = None


@dataclass(frozen=True)
class Problem:
    """Why a member left, or why the contract refused what it said.

    ``round``: the round that it was training for. ``what``: in a sentence. ``trace``: where in the member's
    code, if it was there.
    """

    member: str
    round: int
    what: str
    trace: str = ""


@dataclass(frozen=True)
class Turn:
    """One member's turn: score the merge that its model holds, then train. ``work``: None to only score."""

    member: Member
    work: Work | None
    score: bool


@dataclass(frozen=True)
class Taken:
    """What came of a turn. ``member``: the same, or what came back from another process.

    ``examples``: what its ``train`` returned; ``scores``: what its ``evaluate`` did. ``what``: why it broke,
    "" if it did not.
    """

    member: Member
    examples: Any = None
    scores: Scores | None = None
    what: str = ""
    trace: str = ""


def take(turn: Turn) -> Taken:
    """Call the member's code. What it raises comes back as words: not every error can travel."""
    member, scores, examples = turn.member, None, None
    try:
        if turn.score and member.evaluate is not None:
            scores = evaluated(member.evaluate(member.model))
            scores.require_sayable()
        if turn.work is not None:
            examples = member.train(member.model, turn.work)
    except Exception as error:  # noqa: BLE001 - it is the member's code: whatever it raises is the member's
        return Taken(member, None, scores, *described(error))
    return Taken(member, examples, scores)


def described(error: BaseException) -> tuple[str, str]:
    """An error in a sentence, and where it was raised."""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
