"""The clock by which an operator stamps entries: right at its start, and never set forward or back after."""

from __future__ import annotations

import time
from collections.abc import Callable


def _elapsed_s() -> float:
    """Seconds that go on while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """Unix time in seconds as the machine's clock had it at the start, and what has passed since.

    A clock that jumps ahead for two seconds, and is set right again, would have put one entry into the
    future. From there the ledger's time cannot go back, and all deadlines up to then have passed.
    """

    def __init__(
        self, wall_s: Callable[[], float] = time.time, elapsed_s: Callable[[], float] = _elapsed_s
    ) -> None:
        """Look at the machine's clock, once."""
        self._elapsed_s = elapsed_s
        self._ahead_s = wall_s() - elapsed_s()

    def __call__(self) -> float:
        """The time now."""
        return self._ahead_s + self._elapsed_s()
