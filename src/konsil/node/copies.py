"""Bytes that were made for a peer's answers: not more of them than so many wait for it to read.

A sealed model is served from where it lies, and costs nothing however many ask for it. A manifest, entries of
the ledger, and chunks of a merge that is not whole yet are made for each answer. A peer that asks for them by
the hundred and reads none must not fill this node's memory.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, defaultdict

MOST_BYTES = 64 * 1024 * 1024
"""For one peer: what a node that merges several studies at once asks for at once, in whole chunks."""

WAIT_S = 60.0
"""A peer that reads nothing for so long is given nothing more: its request has failed by then."""


class _Copy(bytearray):
    """An answer's bytes, whose end can be noticed."""

    __slots__ = ("__weakref__",)


class Copies:
    """What was made for each peer and is still held, by itself or by the transport."""

    def __init__(self) -> None:
        """Nothing was made yet."""
        self._held: Counter[str] = Counter()
        self._freed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def room(self, peer: str) -> None:
        """Wait until something may be made for a peer.

        Raises:
            TimeoutError: it reads nothing.
        """
        async with asyncio.timeout(WAIT_S):
            while self._held[peer] >= MOST_BYTES:
                self._freed[peer].clear()
                await self._freed[peer].wait()

    def counted(self, peer: str, data: bytes | memoryview) -> bytearray | memoryview:
        """The same bytes for an answer: in place where they lie so; else counted until they are let go of."""
        if isinstance(data, memoryview):
            return data
        body = _Copy(data)
        self._held[peer] += len(body)
        weakref.finalize(body, self._free, peer, len(body))
        return body

    def _free(self, peer: str, count: int) -> None:
        self._held[peer] -= count
        self._freed[peer].set()
