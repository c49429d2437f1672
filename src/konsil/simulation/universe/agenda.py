"""Time in a universe: what is to happen when, in an order that only the plan and its seed decide."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Act = Callable[..., None]


class Agenda:
    """``now_s``: seconds since the universe began."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._soon: deque[tuple[Act, tuple[Any, ...]]] = deque()
        self._later: list[tuple[float, int, Act, tuple[Any, ...]]] = []
        self._number = 0

    def soon(self, act: Act, *args: Any) -> None:
        """Do it next, before time goes on."""
        self._soon.append((act, args))

    def at(self, when_s: float, act: Act, *args: Any) -> None:
        """Do it then; what was asked for first comes first."""
        self._number += 1
        heappush(self._later, (max(self.now_s, when_s), self._number, act, args))

    def after(self, wait_s: float, act: Act, *args: Any) -> None:
        """Do it after a time."""
        self._number += 1
        heappush(self._later, (self.now_s + wait_s, self._number, act, args))

    def clear(self) -> None:
        """Forget all that was to come."""
        self._soon.clear()
        self._later.clear()

    def goes_on(self) -> bool:
        """Do the next thing; False once nothing is left to do."""
        if self._soon:
            act, args = self._soon.popleft()
        elif self._later:
            self.now_s, _, act, args = heappop(self._later)
        else:
            return False
        act(*args)
        return True
