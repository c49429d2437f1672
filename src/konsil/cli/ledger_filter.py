"""Which calls of a history are asked for; and if none, what there is instead."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from konsil.cli.sentences import tag_of
from konsil.core.rules import HANDLERS, Call, Entry, Genesis, ProposeAdmit, SignedCall, State
from konsil.errors import ConfigError, StudyError

KINDS: Final = {tag_of(kind): kind for kind in HANDLERS}
"""The contract's calls by the words that stand for them on the ledger: "commit", "score" ..."""


@dataclass(frozen=True)
class Wanted:
    """What somebody asks a history for. Empty: everything.

    ``since_s``, ``until_s``: unix time; the first belongs to it, the second does not.
    """

    study: str | None = None
    round: int | None = None
    members: frozenset[str] = frozenset()
    kinds: frozenset[type] = frozenset()
    since_s: float = float("-inf")
    until_s: float = float("inf")

    @property
    def is_whole(self) -> bool:
        """Whether all calls of the study and its round are asked for, or of all studies."""
        return self == Wanted(self.study, self.round)

    def has(self, entry: Entry, signed: SignedCall) -> bool:
        """Whether a call is asked for."""
        call = signed.call
        return (
            (self.study is None or study_of(call) == self.study)
            and (self.round is None or round_of(call) == self.round)
            and (not self.members or signed.caller in self.members)
            and (not self.kinds or type(call) in self.kinds)
            and self.since_s <= entry.time_s < self.until_s
        )


@dataclass
class Seen:
    """What a history holds, as far as it was read: the words that can be asked for."""

    members: set[str] = field(default_factory=set)
    rounds: dict[str, set[int]] = field(default_factory=dict)  # of each study
    calls: int = 0
    state: State | None = None

    @classmethod
    def founders(cls, genesis: Genesis) -> Seen:
        """Before the first call."""
        return cls({record.name for record in genesis.members})

    def note(self, call: Call, state: State | None = None) -> None:
        """Take one call in, and the state after it where it is known."""
        self.calls += 1
        self.state = state
        if isinstance(call, ProposeAdmit):
            self.members.add(call.member.name)
        if study := study_of(call):
            rounds = self.rounds.setdefault(study, set())
            if number := round_of(call):
                rounds.add(number)

    def require(self, wanted: Wanted) -> None:
        """See that the whole history knows the words that it was asked for.

        Raises:
            StudyError: it has no such study, or no such round of it.
            ConfigError: it has no such member.
        """
        if wanted.study is not None and wanted.study not in self.rounds:
            raise StudyError(
                f"There is no study '{wanted.study}' on the ledger.",
                safe="Nothing was changed.",
                do=f"Studies: {_list(self.rounds)}.",
            )
        rounds = self.rounds.get(wanted.study or "", set())
        if wanted.round is not None and wanted.round not in rounds:
            there = f"1 to {max(rounds)}" if rounds else "none; the study has not begun"
            raise StudyError(
                f"The ledger has nothing of a round {wanted.round} of '{wanted.study}'.",
                safe="Nothing was changed.",
                do=f"Its rounds so far: {there}.",
            )
        if strangers := wanted.members - self.members:
            raise ConfigError(
                f"No member '{min(strangers)}' is or was in this swarm.",
                safe="Nothing was changed.",
                do=f"Members: {_list(self.members)}.",
            )


def study_of(call: Call) -> str:
    """The study that a call is about; "" for one about the swarm."""
    return str(getattr(call, "study", "") or getattr(getattr(call, "settings", None), "name", ""))


def round_of(call: Call) -> int:
    """The round that a call is about; 0 for none."""
    return int(getattr(call, "round", 0))


def moment(text: str, option: str, *, end: bool = False) -> float:
    """A date or a moment as unix time; without an offset in the reader's own time zone.

    Args:
        text: such as "2026-11-21", "2026-11-21 12:48" or "2026-11-21T12:48:30+01:00".
        option: what it was given as, for the message.
        end: the first moment after it: after the whole day, where it is a date.

    Raises:
        ConfigError: it is none.
    """
    try:
        read = dt.datetime.fromisoformat(text)
        is_date = len(text) <= len("2026-11-21")
        if end:
            read += dt.timedelta(days=1) if is_date else dt.timedelta(seconds=1)
        return read.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"{option} {text!r} is no date.",
            safe="Nothing was changed.",
            do="Write it as 2026-11-21, '2026-11-21 12:48' or 2026-11-21T12:48:30+01:00.",
        ) from error


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none yet"
