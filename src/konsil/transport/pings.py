"""Questions whether the peer is there, and how long it takes to say so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from konsil.errors import KonsilError
from konsil.transport.ask import fail
from konsil.transport.frames import MAX_REQUEST_ID, Frame, Kind, encode


class Pings:
    """Asks, answers, and keeps the time.

    Attributes:
        rtt_ms: how long the last answer took; 0 before the first.
    """

    def __init__(self, put: Callable[[bytes], None]) -> None:
        """``put``: sends a frame."""
        self._put = put
        self._open: dict[int, tuple[float, asyncio.Future[None]]] = {}
        self._next = 1
        self.rtt_ms = 0.0

    def ask(self) -> asyncio.Future[None]:
        """Ask, unless that is on its way already: a later question would be answered no sooner."""
        if self._open:
            return next(iter(self._open.values()))[1]
        number = self._next
        self._next = number % MAX_REQUEST_ID + 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open[number] = (time.monotonic(), future)
        self._put(encode(Kind.PING, number))
        return future

    async def answered(self, timeout_s: float) -> bool:
        """Whether the peer answers in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self.ask())
        except (TimeoutError, KonsilError):
            return False
        return True

    def on_ping(self, frame: Frame) -> None:
        """Answer the peer's question."""
        self._put(encode(Kind.PONG, frame.header.request))

    def on_pong(self, frame: Frame) -> None:
        """Take the peer's answer."""
        sent = self._open.pop(frame.header.request, None)
        if sent is not None:
            since_s, future = sent
            self.rtt_ms = (time.monotonic() - since_s) * 1e3
            if not future.done():
                future.set_result(None)

    def end(self, reason: KonsilError) -> None:
        """There is nobody to answer any more."""
        for _, future in self._open.values():
            fail(future, reason)
        self._open.clear()
