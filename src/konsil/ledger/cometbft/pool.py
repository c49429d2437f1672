"""What waits in the engine's pool, as far as its room is concerned: one call a number of each member.

The pool has room for so many calls, whoever signed them, and one that does not follow yet stays until it
does. Without this, one member could sign thousands of different calls under a number that never comes, and
nobody else's call would find room at any node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from konsil.core.rules import SignedCall, State
from konsil.errors import Refused
from konsil.ledger.cometbft.application import Outcome


class Numbers:
    """Member -> number -> digest of the one call that may wait under it."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._taken: dict[str, dict[int, bytes]] = {}

    def waits(self, read: SignedCall, signed: bytes) -> bool:
        """Whether this very call waits already.

        Raises:
            Refused: "number_taken": another one of its member does, under this number.
        """
        there = self._taken.get(read.caller, {}).get(read.sequence)
        if there is not None and there != _digest(signed):
            raise Refused(
                "number_taken",
                f"Another call of '{read.caller}' waits under the number {read.sequence} already.",
                do="Wait until a block has decided about it.",
            )
        return there is not None

    def take(self, read: SignedCall, signed: bytes) -> None:
        """It waits from now on."""
        self._taken.setdefault(read.caller, {})[read.sequence] = _digest(signed)

    def decided(self, outcomes: Sequence[Outcome], state: State) -> None:
        """Let go of what a block has decided about. ``state``: after it."""
        digests = {_digest(outcome.signed) for outcome in outcomes}
        for name, numbers in list(self._taken.items()):
            member = state.members.get(name)
            if member is None or not member.active:
                del self._taken[name]
                continue
            left = {
                number: digest
                for number, digest in numbers.items()
                if number > member.sequence and digest not in digests
            }
            self._taken[name] = left

    def clear(self) -> None:
        """The engine starts with an empty pool."""
        self._taken.clear()


def _digest(signed: bytes) -> bytes:
    return hashlib.sha256(signed).digest()
