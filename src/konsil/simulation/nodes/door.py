"""The wall between a simulated training process and its node: words in order, descriptors copied."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Generic, TypeVar

from konsil.core.wall import FromNode, ToNode
from konsil.wall.frames import Delivery

In = TypeVar("In")
Out = TypeVar("Out")


class End(Generic[In, Out]):
    """One end of a line; to the node it is what ``konsil.wall.door.Visitor`` is."""

    def __init__(self) -> None:
        """Not yet connected: see ``line``."""
        self.other: End[Out, In]
        self.is_open = True
        self._came: deque[Delivery[In]] = deque()
        self._news = asyncio.Event()

    async def receive(self) -> Delivery[In]:
        """The next word; what came with it is the caller's to close.

        Raises:
            ConnectionError: the other side has gone.
        """
        while not self._came:
            if not self.is_open:
                raise ConnectionResetError("the other side has gone")
            self._news.clear()
            await self._news.wait()
        return self._came.popleft()

    async def send(self, word: Out, fd: int | None = None) -> None:
        """Send a word, and a copy of a descriptor.

        Raises:
            ConnectionError: the other side has gone.
        """
        if not self.is_open:
            raise ConnectionResetError("the other side has gone")
        self.other.take(Delivery(word, None if fd is None else os.dup(fd)))

    def take(self, delivery: Delivery[In]) -> None:
        """A word arrives."""
        self._came.append(delivery)
        self._news.set()

    def close(self) -> None:
        """End the line at both ends; what nobody took is thrown away."""
        for end in (self, self.other):
            end.is_open = False
            end.news()
        for delivery in self._came:
            if delivery.fd is not None:
                os.close(delivery.fd)
        self._came.clear()

    def news(self) -> None:
        """Let whoever waits look."""
        self._news.set()


NodeEnd = End[ToNode, FromNode]
ScriptEnd = End[FromNode, ToNode]


def line() -> tuple[NodeEnd, ScriptEnd]:
    """A line's two ends."""
    near: NodeEnd = End()
    far: ScriptEnd = End()
    near.other, far.other = far, near
    return near, far
