"""Streams between transports of one process: the streams of real connections, over a line that is made up."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial

from konsil.errors import KonsilError
from konsil.transport.sentences import cut_short, gone, reset, too_many_streams
from konsil.transport.stream import Stream, StreamHandler
from konsil.transport.streams import serve
from konsil.transport.timings import MAX_STREAMS

Lag = Callable[[str, str], float | None]
"""(sender, receiver) -> how long something takes, in seconds; None if it is lost."""

Work = Callable[[StreamHandler], Coroutine[object, object, None]]


class MemoryStreams:
    """Every stream between the members of a test."""

    def __init__(self, lag_s: Lag) -> None:
        """Start without any."""
        self._lag_s = lag_s
        self._numbers = itertools.count(1, 2)
        self._open: dict[int, tuple[End, End]] = {}

    async def open(self, near: str, far: str, message: bytes, take: Callable[[Work], None]) -> Stream:
        """Open one; ``take`` has the other side's task made."""
        ends = [end for end, _ in self._open.values() if end.near == near and end.far == far]
        mine = sum(not end.stream.over for end in ends)
        if mine >= MAX_STREAMS:
            raise too_many_streams(far, MAX_STREAMS)
        number = next(self._numbers)
        one, other = End(near, far, self._lag_s), End(far, near, self._lag_s)
        one.join(other, Stream(far, number, one, opened=True))
        other.join(one, Stream(near, number, other, opened=False))
        self._open[number] = one, other
        for end in (one, other):
            end.stream.watch(partial(self._forget, number))
        one.send(lambda: take(lambda handler: serve(handler, near, message, other.stream)))
        try:
            await one.stream.answered()
        except asyncio.CancelledError:
            one.stream.abort("It was not accepted in time.")
            raise
        return one.stream

    def break_between(self, one: str, other: str) -> None:
        """The link between two members has ended."""
        self._break(lambda end: {end.near, end.far} == {one, other})

    def break_all(self, name: str) -> None:
        """A member is gone."""
        self._break(lambda end: name in (end.near, end.far))

    def _break(self, concerned: Callable[[End], bool]) -> None:
        for one, other in list(self._open.values()):
            if concerned(one):
                for end in (one, other):
                    end.cut(cut_short(end.far, gone("The link was cut.")))

    def _forget(self, number: int) -> None:
        ends = self._open.get(number)
        if ends is not None and all(end.stream.over for end in ends):
            del self._open[number]


class End:
    """One end of a stream: what is said here arrives at the other one, in order and after a while."""

    stream: Stream
    _other: End

    def __init__(self, near: str, far: str, lag_s: Lag) -> None:
        """``near``: whose end it is."""
        self.near = near
        self.far = far
        self._lag_s = lag_s
        self._on_the_way: deque[Callable[[], None]] = deque()
        self._lost = False

    def join(self, other: End, stream: Stream) -> None:
        """Put the two ends together."""
        self._other = other
        self.stream = stream

    def cut(self, reason: KonsilError) -> None:
        """The link has ended: nothing arrives any more."""
        self._lost = True
        self._on_the_way.clear()
        self.stream.end(reason)

    def send(self, arrive: Callable[[], None]) -> None:
        """Have something happen at the other end. Behind what was lost nothing arrives."""
        lag_s = self._lag_s(self.near, self.far)
        self._lost = self._lost or lag_s is None
        if not self._lost:
            self._on_the_way.append(arrive)
            asyncio.get_running_loop().call_later(lag_s or 0.0, self._arrive)

    def _arrive(self) -> None:
        if self._on_the_way:
            self._on_the_way.popleft()()

    # --- as the stream's carrier -------------------------------------------------------------------

    def piece(self, stream: int, data: memoryview) -> None:  # noqa: ARG002 - there is one stream
        """Send bytes."""
        self.send(lambda: self._other.take(data))

    def credit(self, stream: int, count: int) -> None:  # noqa: ARG002
        """Let the other end send so much more."""
        self.send(lambda: self._other.granted(count))

    def finish(self, stream: int) -> None:  # noqa: ARG002
        """Send the end."""
        self.send(self._other.finished)

    def reset(self, stream: int, reason: str) -> None:  # noqa: ARG002
        """Send that it is over."""
        self.send(lambda: self._other.was_reset(reason.encode()))

    def over(self, stream: int) -> None:
        """Nothing more comes, and nothing more is sent."""

    def granted(self, count: int) -> None:
        """Credit arrives."""
        if not self.stream.over:
            self.stream.credited(count)

    def finished(self) -> None:
        """The end arrives."""
        if not self.stream.over:
            self.stream.peer_finished()

    def was_reset(self, reason: bytes) -> None:
        """The other side's last word arrives."""
        self.stream.end(reset(self.far, reason, refused=not self.stream.accepted))

    def take(self, data: memoryview) -> None:
        """Bytes arrive."""
        if not self.stream.over:
            self.stream.room_for(len(data))[:] = data
            self.stream.landed()
