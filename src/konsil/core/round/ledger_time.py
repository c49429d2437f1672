"""What time it is on the ledger, as a node can tell that has a clock of its own, right or wrong.

Deadlines stand in ledger time. A node whose clock is minutes ahead would see them all pass at once, and one
whose clock is behind would say too late that its training goes on. Each entry bounds the error from one side:
when it is heard, the ledger is at least as late; when it answers a call, the ledger was at most so late as
the call was sent. Where its own clock fits between these bounds, a node believes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

REMEMBERED = 8
"""Bounds of each kind: enough that a slow answer does not spoil the estimate, few enough that a clock which
is set right is soon believed."""

ENTRY_S = 1.0
"""Entries carry whole seconds: the ledger's time is up to this much later."""


class LedgerTime(NamedTuple):
    """How much a node's clock must be put forward to show the ledger's time, in seconds.

    ``least``: lower bounds, ``most``: upper bounds, the latest last. ``correction_s`` lies between them.
    """

    least: tuple[float, ...] = ()
    most: tuple[float, ...] = ()
    correction_s: float = 0.0

    def now_s(self, own_s: float) -> float:
        """The ledger's time when the node's clock shows this, unix seconds."""
        return own_s + self.correction_s

    def heard(self, entry_s: float, own_s: float) -> LedgerTime:
        """An entry of this ledger time is known here now."""
        bound = entry_s - own_s
        least = (*self.least[1 - REMEMBERED :], bound)
        if not self.correction_s and bound <= 0:  # most clocks are right, and stay so
            return LedgerTime(least, self.most)
        return _between(least, self.most, newest_is_least=True)

    def answered(self, sent_s: float, entry_s: float) -> LedgerTime:
        """A call that was sent when the node's clock showed ``sent_s`` stands in an entry of this time."""
        bound = entry_s + ENTRY_S - sent_s
        most = (*self.most[1 - REMEMBERED :], bound)
        if not self.correction_s and bound >= 0:
            return LedgerTime(self.least, most)
        return _between(self.least, most, newest_is_least=False)


def _between(least: tuple[float, ...], most: tuple[float, ...], *, newest_is_least: bool) -> LedgerTime:
    """The smallest correction that the bounds allow; old bounds go where a clock was set meanwhile."""
    low, high = _within(least, most)
    if low > high:
        least, most = (least[-1:], ()) if newest_is_least else ((), most[-1:])
        low, high = _within(least, most)
    return LedgerTime(least, most, min(max(0.0, low), high))


def _within(least: tuple[float, ...], most: tuple[float, ...]) -> tuple[float, float]:
    return max(least) if least else -math.inf, min(most) if most else math.inf
