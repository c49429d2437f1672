"""One end of a byte stream to a peer: what may be sent, what lies unread, and how it ends. No I/O.

Both sides may write, each until it says that it has finished. Each grants the other credit: what lies unread
or is on its way in one direction is never more than a window, so that whoever does not read fills no memory
and holds up nobody but its own stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from konsil.errors import KonsilError
from konsil.transport.frames import SEGMENT_BYTES, STREAM_WINDOW_BYTES
from konsil.transport.sentences import given_up, not_asked

_SMALL_BYTES = 4096
_TOGETHER_BYTES = 64 * 1024
"""Small pieces that lie unread are kept together: a peer that sends byte by byte fills no memory with
what each of them costs beside its byte."""

_CREDIT_BYTES = STREAM_WINDOW_BYTES // 4
"""Credit is granted anew when so much has been read: seldom, and long before the other side must wait."""


class Carrier(Protocol):
    """What moves a stream's bytes and words to its other end, in order."""

    def piece(self, stream: int, data: memoryview) -> None:
        """Bytes."""
        ...

    def credit(self, stream: int, count: int) -> None:
        """The other end may send so much more."""
        ...

    def finish(self, stream: int) -> None:
        """No more bytes come."""
        ...

    def reset(self, stream: int, reason: str) -> None:
        """It is over, whatever was still to come; drop what has not been sent."""
        ...

    def over(self, stream: int) -> None:
        """Nothing more comes for this stream, and nothing more is sent."""
        ...


class Stream:
    """Bytes to and from a peer, in order, until both sides have finished or one has given up.

    One task reads and one writes at a time.

    Attributes:
        peer: the member's name.
        number: the stream's number on its connection.
        accepted: whether the side that did not open it has taken it.
        reason: why it ended before both sides had finished, if so.
        leaving: set when the connection is made anew, as before its certificate ends. The stream goes on, but
            only for a while: whoever can, opens another one and goes on there.
    """

    def __init__(self, peer: str, number: int, carrier: Carrier, *, opened: bool) -> None:
        """``opened``: by this side, which must wait for the first credit."""
        self._loop = asyncio.get_running_loop()
        self._carrier = carrier
        self._opened = opened
        self.accepted = False
        self._credit = 0
        self._room = STREAM_WINDOW_BYTES if opened else 0
        self._unread: deque[bytearray] = deque()
        self._begun = memoryview(b"")
        self._read_since_credit = 0
        self._landing: bytearray | None = None
        self._finished = self._peer_finished = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._watchers: list[Callable[[], None]] = []
        self.peer = peer
        self.number = number
        self.reason: KonsilError | None = None
        self.leaving = asyncio.Event()

    # --- for its user ----------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether both sides have finished, or it was ended."""
        return self.reason is not None or (self._finished and self._peer_finished)

    def accept(self) -> None:
        """Take a stream that the peer has opened; reading and writing does so, too."""
        if not self.accepted and not self._opened and self.reason is None:
            self.accepted = True
            self._credit = self._room = STREAM_WINDOW_BYTES
            self._carrier.credit(self.number, STREAM_WINDOW_BYTES)

    async def read(self, max_bytes: int = SEGMENT_BYTES) -> memoryview:
        """The next bytes, at least one; none when the peer has finished. They are the caller's.

        Raises:
            PeerUnreachable: the connection ended, or this side gave the stream up.
            PeerRefused: the peer gave it up; the error has its reason.
        """
        self.accept()
        while not self._unread and not self._begun:
            if self.reason is not None:
                raise self.reason
            if self._peer_finished:
                return memoryview(b"")
            self._readable = self._wait(self._readable)
            try:
                await self._readable
            finally:
                self._readable = None
        return self._take(max_bytes)

    async def write(self, data: bytes | memoryview) -> None:
        """Send bytes; waits while the peer has too many unread. They must not change afterwards.

        Raises:
            PeerUnreachable: the connection ended, or this side gave the stream up.
            PeerRefused: the peer gave it up; the error has its reason.
            ValueError: this side has finished already.
        """
        self.accept()
        view = memoryview(data).cast("B")
        while len(view):
            if self.reason is not None:
                raise self.reason
            if self._finished:
                raise ValueError("This side of the stream has finished.")
            count = min(self._credit, len(view))
            if count:
                self._credit -= count
                self._carrier.piece(self.number, view[:count])
                view = view[count:]
            else:
                await self._until_writable()

    def finish(self) -> None:
        """Say that no more bytes come, behind those that were written. The peer may still send."""
        if self._finished or self.reason is not None:
            return
        self.accept()
        self._finished = True
        self._carrier.finish(self.number)
        self._end_if_over()

    def abort(self, why: str) -> None:
        """End it now, both ways; the peer is told why."""
        if not self.over:
            self._carrier.reset(self.number, why)
            self.end(given_up(why))

    def watch(self, told: Callable[[], None]) -> None:
        """Call this once, when the stream is over."""
        if self.over:
            self._loop.call_soon(told)
        else:
            self._watchers.append(told)

    async def ended(self) -> None:
        """Wait until the stream is over."""
        over = asyncio.Event()
        self.watch(over.set)
        await over.wait()

    # --- for its carrier -------------------------------------------------------------------------

    async def answered(self) -> None:
        """Wait until the peer has accepted it; the deadline is the caller's.

        Raises:
            PeerRefused: it does not; the error has its reason.
            PeerUnreachable: the connection ended.
        """
        while not self.accepted:
            if self.reason is not None:
                raise self.reason
            await self._until_writable()

    def room_for(self, count: int) -> memoryview:
        """Memory for bytes that come.

        Raises:
            FrameError: more than the peer was granted, or behind its last one.
        """
        if self._peer_finished:
            raise not_asked("Bytes came behind the end of a stream.")
        if count > self._room:
            raise not_asked(f"{count} bytes came in a stream in which {self._room} may come.")
        self._room -= count
        self._landing = bytearray(count)
        return memoryview(self._landing)

    def landed(self) -> None:
        """The bytes that room was made for are there."""
        came, self._landing = self._landing, None
        if came is None or self.reason is not None:
            return
        last = self._unread[-1] if self._unread else None
        if last is not None and len(came) < _SMALL_BYTES and len(last) + len(came) <= _TOGETHER_BYTES:
            last += came
        else:
            self._unread.append(came)
        _wake(self._readable)

    def credited(self, count: int) -> None:
        """The peer grants more.

        Raises:
            FrameError: more than a window at once, or before this side has accepted the peer's stream.
        """
        if not self._opened and not self.accepted:
            raise not_asked("A stream was granted credit before it was accepted.")
        if self._credit + count > STREAM_WINDOW_BYTES:
            raise not_asked("A stream was granted more than its window.")
        self.accepted = True
        self._credit += count
        _wake(self._writable)

    def peer_finished(self) -> None:
        """The peer's last byte has come.

        Raises:
            FrameError: it had come before.
        """
        if self._peer_finished:
            raise not_asked("A stream ended twice.")
        self._peer_finished = True
        _wake(self._readable)
        self._end_if_over()

    def end(self, reason: KonsilError) -> None:
        """It is over: whoever reads or writes learns why. What lies unread is dropped."""
        if self.over:
            return
        self.reason = reason
        self._unread.clear()
        self._begun = memoryview(b"")
        self._landing = None
        self._tell_over()

    # --- inside ----------------------------------------------------------------------------------

    def _take(self, max_bytes: int) -> memoryview:
        if not self._begun:
            self._begun = memoryview(self._unread.popleft())
        taken, self._begun = self._begun[:max_bytes], self._begun[max_bytes:]
        if self.reason is None and not self._peer_finished:
            self._read_since_credit += len(taken)
            if self._read_since_credit >= _CREDIT_BYTES:
                self._room += self._read_since_credit
                self._carrier.credit(self.number, self._read_since_credit)
                self._read_since_credit = 0
        return taken

    async def _until_writable(self) -> None:
        self._writable = self._wait(self._writable)
        try:
            await self._writable
        finally:
            self._writable = None

    def _wait(self, waiting: asyncio.Future[None] | None) -> asyncio.Future[None]:
        if waiting is not None:
            raise RuntimeError("Two tasks wait for the same end of one stream.")
        return self._loop.create_future()

    def _end_if_over(self) -> None:
        if self._finished and self._peer_finished:
            self._tell_over()

    def _tell_over(self) -> None:
        _wake(self._readable)
        _wake(self._writable)
        self._carrier.over(self.number)
        watchers, self._watchers = self._watchers, []
        for told in watchers:
            told()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


StreamHandler = Callable[[str, bytes, Stream], Awaitable[None]]
"""(peer's name, what the stream is for, the stream): accepts it, and returns when it is done with it; or
raises a KonsilError, whose text the peer is told. A stream that is not over then is given up."""
