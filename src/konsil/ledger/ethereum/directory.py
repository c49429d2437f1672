"""Who and what the contract's numbers stand for."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from konsil.ledger.ethereum.settings_words import NOBODY


class Directory(msgspec.Struct, frozen=True):
    """``members``: names by number. ``studies``: names by number, from 1 on. ``settings``: study -> what
    stands on the contract for the settings that its members agree to now. ``accounts``: name -> its Ethereum
    account, from the members' cards.
    """

    members: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    settings: dict[str, bytes] = {}
    accounts: dict[str, bytes] = {}

    def member(self, name: str) -> int:
        """A member's number; NOBODY's for a stranger."""
        return self.members.index(name) if name in self.members else NOBODY

    def study(self, name: str) -> int:
        """A study's number; 0 for none."""
        return self.studies.index(name) + 1 if name in self.studies else 0

    def mask(self, names: Iterable[str]) -> int:
        """A bitmap of members."""
        found = 0
        for name in names:
            found |= 1 << self.member(name)
        return found

    def names(self, mask: int) -> tuple[str, ...]:
        """The members of a bitmap, sorted."""
        return tuple(sorted(name for number, name in enumerate(self.members) if mask >> number & 1))
