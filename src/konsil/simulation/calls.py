"""What members say to the ledger, in words: for the stories of universes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Call,
    Commit,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    ProposeStudy,
    Publish,
    Renew,
    Report,
    Score,
    Tick,
    Verdict,
)

_WORDS: dict[type, Callable[[Any], str]] = {
    Initialise: lambda call: f"names the initial parameters, {call.digest[:8]}",
    Commit: lambda call: f"commits {call.digest[:8]} to round {call.round}",
    Publish: lambda call: (
        f"publishes part {call.part} of round {call.round}.{call.attempt}: {call.digest[:8]}"
    ),
    Accept: lambda call: f"accepts {call.digest[:8]} in round {call.round}.{call.attempt}",
    Report: lambda call: f"does not reach {', '.join(call.unreachable)} in round {call.round}.{call.attempt}",
    Dispute: lambda call: (
        f"disputes chunk {call.chunk} of part {call.part} in round {call.round}.{call.attempt}"
    ),
    Verdict: lambda call: (
        f"finds chunk {call.chunk} {'wrong' if call.wrong else 'right'} in round {call.round}"
    ),
    Alive: lambda call: f"is still training for round {call.round}",
    Score: lambda call: f"scores round {call.round}",
    Finish: lambda call: f"has finished: {call.contribution}",
    Tick: lambda _call: "says that a deadline has passed",
    ProposeStudy: lambda _call: "proposes the study",
    Agree: lambda _call: "agrees to the study",
    Enter: lambda _call: "is ready to train",
    Leave: lambda _call: "leaves",
    Renew: lambda call: f"has another card, {call.card[:8]}",
}


def sentence(call: Call) -> str:
    """What a call does, after its caller's name."""
    words = _WORDS.get(type(call))
    return words(call) if words is not None else f"says {type(call).__name__}"
