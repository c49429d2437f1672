"""The streams of one connection, those that this side opened and those of the peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from konsil.errors import KonsilError
from konsil.transport.channel import Channel
from konsil.transport.frames import MAX_REASON_BYTES, MAX_REQUEST_ID, Frame, Header, Kind, encode
from konsil.transport.sentences import cut_short, not_asked, reset, too_many_streams
from konsil.transport.stream import Stream, StreamHandler
from konsil.transport.timings import MAX_STREAMS

log = structlog.get_logger("konsil.transport")


async def serve(handler: StreamHandler, peer: str, message: bytes, stream: Stream) -> None:
    """Have a stream served that a peer has opened; if that ends first, the peer learns why."""
    why = "Nobody looks after it any more."
    try:
        await handler(peer, message, stream)
    except asyncio.CancelledError:
        why = "This node is stopping."
        raise
    except KonsilError as error:
        why = error.what
    except Exception:  # one stream's failure must not end the others
        log.exception("a stream could not be served", peer=peer)
        why = "An error of this node, see its log."
    finally:
        stream.abort(why)


class Streams:
    """Streams by their number; the carrier of each.

    Args:
        peer: the member at the other side.
        channel: what they share.
        handler: takes over what the peer opens.
        spawn: runs a coroutine as a task that the transport waits for when it closes.
        fewer: called when a stream is over.
        dialled: whether this side opened the connection, which gives it the odd numbers.
    """

    def __init__(
        self,
        peer: str,
        channel: Channel,
        handler: StreamHandler,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        fewer: Callable[[], None],
        *,
        dialled: bool,
    ) -> None:
        """Start without any."""
        self._peer = peer
        self._channel = channel
        self._handler = handler
        self._spawn = spawn
        self._fewer = fewer
        self._streams: dict[int, Stream] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._next_own = 1 if dialled else 2
        self._next_theirs = 2 if dialled else 1
        self._own_parity = self._next_own % 2
        self._leaving = False
        self.handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.OPEN: self._on_open,
            Kind.PIECE: self._on_piece,
            Kind.CREDIT: self._on_credit,
            Kind.FINISH: self._on_finish,
            Kind.RESET: self._on_reset,
        }

    def __len__(self) -> int:
        """How many are not over, or still worked on."""
        return len(self._streams.keys() | self._serving.keys())

    @property
    def used_up(self) -> bool:
        """Whether every number of this side has been used."""
        return self._next_own > MAX_REQUEST_ID

    # --- opening and ending ----------------------------------------------------------------------

    async def open(self, message: bytes) -> Stream:
        """Open one and wait until the peer has accepted it; the deadline is the caller's.

        Raises:
            PeerRefused: the peer does not, or too many are open.
            PeerUnreachable: the connection ended.
            FrameError: the message is over its limit.
        """
        if self._count(self._own_parity) >= MAX_STREAMS:
            raise too_many_streams(self._peer, MAX_STREAMS)
        number = self._next_own
        opening = encode(Kind.OPEN, number, message)
        self._next_own += 2
        stream = self._streams[number] = Stream(self._peer, number, self, opened=True)
        self._put(opening)
        try:
            await stream.answered()
        except asyncio.CancelledError:
            stream.abort("It was not accepted in time.")
            raise
        return stream

    def leave(self) -> None:
        """The connection is made anew: tell whoever can go on elsewhere."""
        self._leaving = True
        for stream in self._streams.values():
            stream.leaving.set()

    def cut(self, why: str) -> None:
        """End every stream; the peer is told."""
        for stream in list(self._streams.values()):
            stream.abort(why)

    def end(self, reason: KonsilError) -> None:
        """The connection has ended."""
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.end(cut_short(self._peer, reason))
        for task in list(self._serving.values()):
            task.cancel()

    def _count(self, parity: int) -> int:
        return sum(number % 2 == parity for number in self._streams.keys() | self._serving.keys())

    async def _serve(self, number: int, message: bytes, stream: Stream) -> None:
        try:
            await serve(self._handler, self._peer, message, stream)
        finally:
            del self._serving[number]
            self._fewer()

    # --- as the streams' carrier -------------------------------------------------------------------

    def piece(self, stream: int, data: memoryview) -> None:
        """Send bytes."""
        self._channel.queue.put_piece(stream, data)
        self._channel.kick()

    def credit(self, stream: int, count: int) -> None:
        """Let the peer send so much more."""
        self._put(encode(Kind.CREDIT, stream, body_bytes=count))

    def finish(self, stream: int) -> None:
        """Send the end, behind what has been written."""
        self._channel.queue.put_finish(stream)
        self._channel.kick()

    def reset(self, stream: int, reason: str) -> None:
        """Send that it is over, instead of what has not been sent."""
        self._channel.queue.drop_stream(stream)
        self._put(encode(Kind.RESET, stream, reason.encode()[:MAX_REASON_BYTES]))

    def over(self, stream: int) -> None:
        """Forget it."""
        if self._streams.pop(stream, None) is not None:
            self._fewer()

    def _put(self, frame: bytes) -> None:
        if not self._channel.ended:
            self._channel.queue.put(frame)
            self._channel.kick()

    # --- frames ----------------------------------------------------------------------------------

    def sink(self, header: Header) -> memoryview | None:
        """Where a PIECE goes; None if the stream is over."""
        stream = self._find(header)
        return stream.room_for(header.body_bytes) if stream is not None else None

    def _find(self, header: Header) -> Stream | None:
        """The stream of a frame; None if it is over: what was on its way then is late."""
        number = header.request
        stream = self._streams.get(number)
        if stream is None:
            known = self._next_own if number % 2 == self._own_parity else self._next_theirs
            if not 0 < number < known:
                raise not_asked(f"A {header.kind.name} frame is of stream {number}, which was not opened.")
        return stream

    def _on_open(self, frame: Frame) -> None:
        number = frame.header.request
        if number % 2 == self._own_parity or number < self._next_theirs:
            raise not_asked(f"Stream {number} is not the peer's to open, or was opened before.")
        self._next_theirs = number + 2
        if self._count(1 - self._own_parity) >= 2 * MAX_STREAMS:
            # Twice as many as it may have: those that it has just ended may still be worked on here.
            self.reset(number, f"Too many streams of '{self._peer}' are open already.")
            return
        stream = self._streams[number] = Stream(self._peer, number, self, opened=False)
        if self._leaving:
            stream.leaving.set()
        self._serving[number] = self._spawn(self._serve(number, frame.message, stream))

    def _on_piece(self, frame: Frame) -> None:
        stream = self._streams.get(frame.header.request)
        if stream is not None:
            stream.landed()

    def _on_credit(self, frame: Frame) -> None:
        stream = self._find(frame.header)
        if stream is not None:
            stream.credited(frame.header.body_bytes)

    def _on_finish(self, frame: Frame) -> None:
        stream = self._find(frame.header)
        if stream is not None:
            stream.peer_finished()

    def _on_reset(self, frame: Frame) -> None:
        stream = self._find(frame.header)
        if stream is not None:
            self._channel.queue.drop_stream(stream.number)
            stream.end(reset(self._peer, frame.message, refused=not stream.accepted))
