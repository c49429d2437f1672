"""One connection to a peer: requests, answers and streams both ways over frames, whoever dialled."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import NamedTuple

import structlog

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError, KonsilError, PeerRefused
from konsil.transport.ask import Ask, fail, flat
from konsil.transport.base import Handler, Received
from konsil.transport.channel import Channel
from konsil.transport.frames import (
    MAX_REASON_BYTES,
    MAX_REQUEST_ID,
    Flag,
    Frame,
    FrameReader,
    Header,
    Kind,
    encode,
)
from konsil.transport.pings import Pings
from konsil.transport.sentences import gone, handler_failed, lost, not_asked
from konsil.transport.stream import Stream, StreamHandler
from konsil.transport.streams import Streams
from konsil.transport.timings import MAX_IN_FLIGHT, Timings
from konsil.transport.watch import Watch

log = structlog.get_logger("konsil.transport")


class Owner(NamedTuple):
    """What a connection needs of its transport.

    ``changed``: called when it takes no new requests any more, and when it has ended.
    ``spawn``: runs a coroutine as a task that the transport waits for when it closes.
    """

    handler: Handler
    on_stream: StreamHandler
    timings: Timings
    changed: Callable[[Connection], None]
    spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]]


class Connection:
    """A TLS connection to one member, from its greeting to its end.

    Attributes:
        peer: the member's name, from its certificate.
        instance: which run of the peer's node, from its Hello.
        dialled: whether this side opened it.
        hello: the peer's Hello, or why there is none.
        reason: why it ended or is about to.
    """

    def __init__(
        self, sock: ssl.SSLSocket, peer: str, owner: Owner, *, dialled: bool, expires_s: float
    ) -> None:
        """Take over a socket after its TLS handshake. ``expires_s``: unix time of the certificates' end."""
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._reader = FrameReader(self._sink)
        self._channel = Channel(sock, self._reader, self._on_frame, self._on_end)
        self._pings = Pings(self._put)
        self._streams = Streams(
            peer, self._channel, owner.on_stream, owner.spawn, self._close_if_done, dialled=dialled
        )
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.HELLO: self._on_hello,
            Kind.REQUEST: self._on_request,
            Kind.ANSWER: self._on_answer,
            Kind.DATA: self._on_data,
            Kind.CANCEL: self._on_cancel,
            Kind.PING: self._pings.on_ping,
            Kind.PONG: self._pings.on_pong,
            Kind.GOAWAY: self._on_goaway,
            **self._streams.handlers,
        }
        self._asks: dict[int, Ask] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._next_request = 1
        self._open = False
        self._peer_leaves = False
        self._finishing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cutter: asyncio.TimerHandle | None = None
        self._watch = Watch(owner.timings, expires_s, time.monotonic(), time.time())
        self.peer = peer
        self.instance = ""
        self.dialled = dialled
        self.leaving = False
        self.reason: KonsilError | None = None
        self.hello: asyncio.Future[bytes] = self._loop.create_future()

    # --- life ------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether the socket is closed."""
        return self._channel.ended

    @property
    def usable(self) -> bool:
        """Whether a new request may go here."""
        return self._open and not self.leaving and not self._channel.ended

    @property
    def rtt_ms(self) -> float:
        """How long the peer's last sign of life took there and back; 0 before the first."""
        return self._pings.rtt_ms

    @property
    def bytes_in(self) -> int:
        """Bytes received inside TLS."""
        return self._channel.bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent inside TLS."""
        return self._channel.bytes_out

    def start(self) -> None:
        """Read the peer's Hello."""
        self._channel.resume()
        self._look_after()

    def greet(self, hello: bytes) -> None:
        """Send the own Hello."""
        self._put(encode(Kind.HELLO, message=hello))

    def open(self) -> None:
        """The peer is who it should be: serve its requests."""
        self._open = True
        self._channel.resume()
        self._pings.ask()

    async def refuse(self, why: str) -> None:
        """Tell the peer why not, instead of a Hello, and close."""
        self._put(encode(Kind.HELLO, message=_reason(why), flags=Flag.REFUSED))
        await self._channel.finish(
            gone(f"This side refused the connection: {why}"), self._owner.timings.close_s
        )

    def leave(self, why: str) -> None:
        """Nothing new here, either way; close when what is in flight is done. Streams are cut in the end."""
        if self.leaving or self.ended:
            return
        self.leaving = True
        self.reason = self.reason or gone(why)
        self._put(encode(Kind.GOAWAY, message=_reason(why)))
        self._streams.leave()
        self._cutter = self._loop.call_later(
            self._owner.timings.stream_grace_s, self._streams.cut, "The connection is made anew."
        )
        self._owner.changed(self)
        self._close_if_done()

    def abort(self, why: str) -> None:
        """Close now; requests in flight fail."""
        self._channel.end(gone(why))

    async def close(self, why: str) -> None:
        """Say why, and close without waiting for requests in flight."""
        self.leave(why)
        await self._channel.finish(gone(why), self._owner.timings.close_s)

    # --- asking ----------------------------------------------------------------------------------

    async def ask(self, message: bytes, into: memoryview | None, limit_bytes: int) -> Received | None:
        """Send a request and wait for its answer; the deadline is the caller's.

        None if this connection takes no new requests any more: nothing was sent, take another.

        Raises:
            PeerUnreachable: the connection ended.
            PeerRefused: the peer's handler broke.
            FrameError: the answer breaks a limit.
        """
        async with self._slots:
            if not self.usable:
                return None
            number = self._next_request
            self._next_request += 1
            ask = Ask(self._loop.create_future(), into, limit_bytes)
            self._asks[number] = ask
            self._put(encode(Kind.REQUEST, number, message), number)
            if number == MAX_REQUEST_ID:
                self.leave("Every request number of this connection has been used.")
            try:
                return await ask.future
            except asyncio.CancelledError:
                self._give_up(number)
                raise
            finally:
                self._asks.pop(number, None)
                self._reader.forget(number)
                ask.let_go()
                self._close_if_done()

    def _give_up(self, number: int) -> None:
        """Nobody waits for this answer: write no more into its memory and tell the peer to stop."""
        self._asks.pop(number, None)
        self._reader.forget(number)
        if not self.ended and not self._channel.queue.withdraw(number):
            self._put(encode(Kind.CANCEL, number))

    async def open_stream(self, message: bytes) -> Stream | None:
        """Open a stream and wait until the peer has accepted it; the deadline is the caller's.

        None if this connection takes no new streams any more: nothing was sent, take another.

        Raises:
            PeerUnreachable: the connection ended.
            PeerRefused: the peer does not accept it, or too many are open.
            FrameError: the message is over its limit.
        """
        if not self.usable:
            return None
        if self._streams.used_up:
            self.leave("Every stream number of this connection has been used.")
            return None
        return await self._streams.open(message)

    async def ping(self, timeout_s: float) -> bool:
        """Whether the peer answers in time."""
        return not self.ended and await self._pings.answered(timeout_s) and not self.ended

    # --- frames ----------------------------------------------------------------------------------

    def _put(self, frame: bytes, request: int = 0) -> None:
        if not self.ended:
            self._channel.queue.put(frame, request)
            self._channel.kick()

    def _sink(self, header: Header) -> memoryview | None:
        if header.kind is Kind.PIECE:
            return self._streams.sink(header)
        ask = self._asks.get(header.request)
        if ask is None:
            self._check_number(header)
            return None
        try:
            return ask.segment(header.body_bytes)
        except FrameError as error:
            fail(ask.future, error)
            raise

    def _check_number(self, header: Header) -> None:
        """An answer to what was given up is late; one to what was never asked is a lie."""
        if not 0 < header.request < self._next_request:
            raise not_asked(
                f"A {header.kind.name} frame answers request {header.request}, which was not made."
            )

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.header.kind
        if not self._open and kind is not Kind.HELLO and kind is not Kind.GOAWAY:
            raise not_asked(f"The first frame was a {kind.name}, not a HELLO.")
        self._handlers[kind](frame)

    def _on_hello(self, frame: Frame) -> None:
        if frame.header.flags == Flag.REFUSED:
            text = frame.message.decode("utf-8", "replace")
            raise PeerRefused("refused", f"The peer '{self.peer}' refused the connection: {text}")
        if self._open or self.hello.done():
            raise not_asked("A second HELLO came.")
        # Requests behind it wait until the Hello has been checked.
        self._channel.pause()
        self.hello.set_result(frame.message)

    def _on_request(self, frame: Frame) -> None:
        number = frame.header.request
        if len(self._serving) + self._channel.queue.bodies >= MAX_IN_FLIGHT or number in self._serving:
            raise not_asked(f"The peer has more than {MAX_IN_FLIGHT} requests open, or one of them twice.")
        self._serving[number] = self._owner.spawn(self._serve(number, frame.message))

    def _on_answer(self, frame: Frame) -> None:
        header = frame.header
        ask = self._asks.get(header.request)
        if ask is None:
            self._check_number(header)
            return
        if header.flags == Flag.FAILED:
            del self._asks[header.request]
            fail(ask.future, handler_failed(self.peer))
            return
        try:
            ask.announce(frame.message, header.body_bytes)
        except FrameError as error:
            fail(ask.future, error)
            raise
        self._settle(header.request, ask)

    def _on_data(self, frame: Frame) -> None:
        ask = self._asks.get(frame.header.request)
        if ask is not None:
            self._settle(frame.header.request, ask)

    def _settle(self, number: int, ask: Ask) -> None:
        if ask.settle():
            del self._asks[number]

    def _on_cancel(self, frame: Frame) -> None:
        number = frame.header.request
        task = self._serving.pop(number, None)
        if task is not None:
            task.cancel()
        self._channel.queue.drop_body(number)
        self._close_if_done()

    def _on_goaway(self, frame: Frame) -> None:
        text = frame.message.decode("utf-8", "replace")
        self._peer_leaves = True
        self.reason = gone(f"The peer '{self.peer}' ends the connection: {text}")
        if not self._open:
            raise self.reason
        self.leave("The other side ends the connection.")
        self._close_if_done()

    # --- serving ---------------------------------------------------------------------------------

    async def _serve(self, number: int, message: bytes) -> None:
        try:
            reply = await self._owner.handler(self.peer, message)
            body = flat(reply.body)
            if len(reply.message) > MAX_MESSAGE_BYTES:
                raise not_asked(f"An own answer of {len(reply.message)} bytes is over the limit.")  # noqa: TRY301 - logged as the handler's fault
        except Exception:  # one request's failure must not end the others
            if self._serving.pop(number, None) is not None:
                log.exception("a request could not be served", peer=self.peer)
                self._put(encode(Kind.ANSWER, number, flags=Flag.FAILED))
        else:
            if self._serving.pop(number, None) is not None:
                self._send(number, reply.message, body)
        self._close_if_done()

    def _send(self, number: int, message: bytes, body: memoryview) -> None:
        if self.ended:
            return
        self._put(encode(Kind.ANSWER, number, message, body_bytes=len(body)))
        if body:
            self._channel.queue.put_body(number, body)

    # --- its end ---------------------------------------------------------------------------------

    def _close_if_done(self) -> None:
        """Both sides leave, and nothing is in flight either way."""
        busy = self._asks or self._serving or len(self._streams)
        if self.leaving and self._peer_leaves and not busy and self._finishing is None and not self.ended:
            self._finishing = self._owner.spawn(self._finish())

    async def _finish(self) -> None:
        """Let the last answers leave, however slow the line: silence of the peer is what ends the wait."""
        await self._channel.flushed()
        reason = self.reason or gone("The connection was ended in order.")
        await self._channel.finish(reason, self._owner.timings.close_s)

    def _on_end(self, reason: KonsilError) -> None:
        self.reason = reason = self.reason or reason
        for timer in (self._timer, self._cutter):
            if timer is not None:
                timer.cancel()
        fail(self.hello, reason)
        asks, self._asks = list(self._asks.values()), {}
        for ask in asks:
            fail(ask.future, lost(self.peer, reason))
        self._pings.end(reason)
        self._streams.end(reason)
        serving, self._serving = list(self._serving.values()), {}
        for task in serving:
            task.cancel()
        self._owner.changed(self)

    def _look_after(self) -> None:
        """Ask, leave or end, and look again when it may matter."""
        reader = self._reader
        verdict = self._watch.look(
            time.monotonic(), time.time(), self._channel.heard_s, frames=reader.frames, partial=reader.partial
        )
        if verdict.end:
            self._channel.end(gone(verdict.end))
            return
        if verdict.ask and self._open:
            self._pings.ask()
        if verdict.leave:
            self.leave("A certificate of this connection is about to expire; it is made anew.")
        self._timer = self._loop.call_later(verdict.again_s, self._look_after)


def _reason(why: str) -> bytes:
    return why.encode()[:MAX_REASON_BYTES]
