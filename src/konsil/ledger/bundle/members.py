"""Whose cards belong to a history: every card that the ledger ever had for a member."""

from __future__ import annotations

from konsil.core.rules import MemberRecord, State


class Records:
    """The records of all members that there ever were, by the digest of the card that each was made from."""

    def __init__(self, state: State) -> None:
        """``state``: the one before the first call."""
        self.known: dict[str, MemberRecord] = {}
        self.found: set[str] = set()
        self._last: dict[str, MemberRecord] = {}
        self.note(state)

    def note(self, state: State) -> None:
        """Take in whoever is new, or has another card now."""
        for name, member in state.members.items():
            record = member.record
            if self._last.get(name) is not record:
                self._last[name] = record
                self.known.setdefault(record.card, record)

    def has(self, digest: str) -> None:
        """Note that a card is there."""
        self.found.add(digest)

    def lacking(self, state: State) -> tuple[str, ...]:
        """The active members whose present card is not there, sorted."""
        return tuple(
            sorted(
                name
                for name, member in state.members.items()
                if member.active and member.record.card not in self.found
            )
        )
