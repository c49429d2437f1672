"""A state as lines: exactly the texts that its digest is made from.

So who does not apply the rules can still see, by digests alone, that these studies and rounds are the ones
that the last entry stands for.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from konsil.core.rules import State
from konsil.ledger.bundle.lines import RoundLine, StateLine, StudyLine

_encoder = msgspec.json.Encoder(order="deterministic")


def summary(state: State) -> Iterator[tuple[StateLine | StudyLine | RoundLine, str]]:
    """The state's lines in their order, each with what it tells, for messages."""
    yield StateLine(_text(replace(state, studies={}))), "the state without its studies"
    for name, study in sorted(state.studies.items()):
        yield StudyLine(name, _text(replace(study, history=()))), f"study '{name}'"
        for record in study.history:
            yield (
                RoundLine(name, record.number, _text(record)),
                f"round {record.number} of study '{name}'",
            )


def _text(value: object) -> str:
    return _encoder.encode(value).decode()
