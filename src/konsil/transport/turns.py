"""Whose turn it is to dial: a node that starts does not shake hands with a whole swarm at once.

Handshakes cost processor time on both sides. Where dozens of nodes start together and each dials all others,
every handshake would take as long as all of them: on a busy machine all would miss their deadlines together,
and be made anew together. A few at a time come through one after the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from konsil.transport.link import Link

DIALS_AT_ONCE = 8
"""Enough to have a swarm of 32 connected in a second over lines of 50 ms, and little for one processor."""


class Turns:
    """Turns to dial, first come, first served; a link that a request waits for waits for none."""

    def __init__(self, at_once: int = DIALS_AT_ONCE) -> None:
        """``at_once``: how many may dial at a time."""
        self._free = at_once
        self._queue: deque[Link] = deque()

    @asynccontextmanager
    async def of(self, link: Link) -> AsyncIterator[None]:
        """Wait for this link's turn, or until it is wanted; the turn is over at the end of the ``with``."""
        while self._free <= 0 and not link.wanted and link.best() is None:
            link.wake.clear()
            self._queue.append(link)
            try:
                await link.wake.wait()
            except asyncio.CancelledError:
                self._next()  # it may just have been this one's turn
                raise
            finally:
                if link in self._queue:
                    self._queue.remove(link)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
            self._next()

    def _next(self) -> None:
        if self._free > 0 and self._queue:
            self._queue.popleft().wake.set()
