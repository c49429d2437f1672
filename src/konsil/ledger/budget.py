"""How fast a member may write on a ledger that one node keeps: what it says stays on every member's disk."""

from __future__ import annotations

from konsil.errors import Refused

BURST_BYTES = 2 * 1024 * 1024
"""What a member may write at once: some thousand calls, or dozens of the longest ones."""

BYTES_PER_S = 32 * 1024
"""What it may write on and on: ten rounds a second, with every call that a round has. 2.8 GB a day."""


class Budgets:
    """What each member has written lately. The time is the caller's, in seconds from any beginning."""

    def __init__(self) -> None:
        """Nobody has written anything."""
        self._spent: dict[str, tuple[float, float]] = {}  # member -> bytes not yet forgiven, and as of when

    def pay(self, member: str, cost: int, now_s: float) -> None:
        """Write something down, if the member has not written too much.

        Args:
            member: who signed it.
            cost: its length in bytes.
            now_s: the time; it does not go back.

        Raises:
            Refused: "too_fast", with the seconds until there is room again.
        """
        spent, since_s = self._spent.get(member, (0.0, now_s))
        spent = max(0.0, spent - (now_s - since_s) * BYTES_PER_S)
        if spent + cost > BURST_BYTES:
            wait_s = (spent + cost - BURST_BYTES) / BYTES_PER_S
            raise Refused(
                "too_fast",
                f"'{member}' has put more on the ledger than a member may at once.",
                do=f"Try again in {wait_s:.1f} s. If this goes on, find out what makes so many calls.",
                wait_s=round(wait_s, 3),
            )
        self._spent[member] = spent + cost, now_s
