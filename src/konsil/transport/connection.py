"""One connection to a peer: requests and answers both ways over frames, whoever dialled."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import NamedTuple

import structlog

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError, KonsilError, PeerRefused, PeerUnreachable
from konsil.transport.base import Handler, Received, Reply
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
from konsil.transport.timings import MAX_IN_FLIGHT, Timings

log = structlog.get_logger("konsil.transport")

_WATCH_S_MIN = 0.02


class Ask:
    """A request that waits for its answer. ``body``: memory for the answer's raw bytes, once known."""

    __slots__ = ("answer", "body", "filled", "future", "into", "limit_bytes", "message")

    def __init__(self, future: asyncio.Future[Received], into: memoryview | None, limit_bytes: int) -> None:
        """Wait for the ANSWER frame."""
        self.future = future
        self.into = into
        self.limit_bytes = limit_bytes
        self.message: bytes | None = None
        self.body: memoryview | None = None
        self.answer: bytearray | None = None
        self.filled = 0

    def announce(self, message: bytes, body_bytes: int) -> None:
        """Take the answer's message, and reserve memory for its body once its length is allowed.

        Raises:
            FrameError: a second answer, or a body of another length than the asker takes.
        """
        if self.message is not None:
            raise _not_asked("A request was answered twice.")
        if self.into is not None:
            # No body at all is an answer in words: an error, which the asker reads in the message.
            if body_bytes not in (0, len(self.into)):
                raise _not_asked(
                    f"An answer announces {body_bytes} bytes where {len(self.into)} were asked for."
                )
            self.body = self.into
        elif body_bytes > self.limit_bytes:
            raise _not_asked(f"An answer announces {body_bytes} bytes; the limit is {self.limit_bytes}.")
        else:
            self.answer = bytearray(body_bytes)
            self.body = memoryview(self.answer)
        self.message = message
        self.body = self.body[:body_bytes]

    def segment(self, body_bytes: int) -> memoryview:
        """Where the next segment goes.

        Raises:
            FrameError: more than was announced.
        """
        if self.body is None or self.filled + body_bytes > len(self.body):
            raise _not_asked("A body is longer than its answer announced.")
        start, self.filled = self.filled, self.filled + body_bytes
        return self.body[start : self.filled]

    def settle(self) -> bool:
        """Hand the answer over if it is whole; whether it is."""
        if self.message is None or self.body is None or self.filled < len(self.body):
            return False
        if not self.future.done():
            body = b"" if self.answer is None else self.answer
            self.future.set_result(Received(self.message, body, self.filled))
        return True


class Owner(NamedTuple):
    """What a connection needs of its transport.

    ``changed``: called when it takes no new requests any more, and when it has ended.
    ``spawn``: runs a coroutine as a task that the transport waits for when it closes.
    """

    handler: Handler
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
        self._handlers: dict[Kind, Callable[[Frame], None]] = {
            Kind.HELLO: self._on_hello,
            Kind.REQUEST: self._on_request,
            Kind.ANSWER: self._on_answer,
            Kind.DATA: self._on_data,
            Kind.CANCEL: self._on_cancel,
            Kind.PING: self._on_ping,
            Kind.PONG: self._on_pong,
            Kind.GOAWAY: self._on_goaway,
        }
        self._asks: dict[int, Ask] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._next_request = 1
        self._open = False
        self._peer_leaves = False
        self._finishing: asyncio.Task[None] | None = None
        self._pings: dict[int, tuple[float, asyncio.Future[None]]] = {}
        self._next_ping = 1
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watch_at_s = time.monotonic()
        self._stuck = (-1, 0.0)
        life_s = expires_s - time.time()
        self._expires_s = expires_s
        self._leave_s = expires_s - min(owner.timings.renew_margin_s, 0.2 * life_s)
        self.peer = peer
        self.instance = ""
        self.dialled = dialled
        self.leaving = False
        self.rtt_ms = 0.0
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
        self._watch()

    def greet(self, hello: bytes) -> None:
        """Send the own Hello."""
        self._put(encode(Kind.HELLO, message=hello))

    def open(self) -> None:
        """The peer is who it should be: serve its requests."""
        self._open = True
        self._channel.resume()
        self._ask_whether_alive()

    async def refuse(self, why: str) -> None:
        """Tell the peer why not, instead of a Hello, and close."""
        self._put(encode(Kind.HELLO, message=_reason(why), flags=Flag.REFUSED))
        await self._channel.finish(
            _gone(f"This side refused the connection: {why}"), self._owner.timings.close_s
        )

    def leave(self, why: str) -> None:
        """No new requests here, either way; close when those in flight are done."""
        if self.leaving or self.ended:
            return
        self.leaving = True
        self.reason = self.reason or _gone(why)
        self._put(encode(Kind.GOAWAY, message=_reason(why)))
        self._owner.changed(self)
        self._close_if_done()

    def abort(self, why: str) -> None:
        """Close now; requests in flight fail."""
        self._channel.end(_gone(why))

    async def close(self, why: str) -> None:
        """Say why, and close without waiting for requests in flight."""
        self.leave(why)
        await self._channel.finish(_gone(why), self._owner.timings.close_s)

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
                self._close_if_done()

    def _give_up(self, number: int) -> None:
        """Nobody waits for this answer: write no more into its memory and tell the peer to stop."""
        self._asks.pop(number, None)
        self._reader.forget(number)
        if not self.ended and not self._channel.queue.withdraw(number):
            self._put(encode(Kind.CANCEL, number))

    async def ping(self, timeout_s: float) -> bool:
        """Whether the peer answers in time."""
        if self.ended:
            return False
        try:
            await asyncio.wait_for(asyncio.shield(self._ask_whether_alive()), timeout_s)
        except (TimeoutError, KonsilError):
            return False
        return not self.ended

    def _ask_whether_alive(self) -> asyncio.Future[None]:
        if self._pings:
            # One question at a time; a later one would be answered no sooner.
            return next(iter(self._pings.values()))[1]
        number = self._next_ping
        self._next_ping = number % MAX_REQUEST_ID + 1
        future: asyncio.Future[None] = self._loop.create_future()
        self._pings[number] = (time.monotonic(), future)
        self._put(encode(Kind.PING, number))
        return future

    # --- frames ----------------------------------------------------------------------------------

    def _put(self, frame: bytes, request: int = 0) -> None:
        if not self.ended:
            self._channel.queue.put(frame, request)
            self._channel.kick()

    def _sink(self, header: Header) -> memoryview | None:
        ask = self._asks.get(header.request)
        if ask is None:
            self._check_number(header)
            return None
        try:
            return ask.segment(header.body_bytes)
        except FrameError as error:
            _fail(ask.future, error)
            raise

    def _check_number(self, header: Header) -> None:
        """An answer to what was given up is late; one to what was never asked is a lie."""
        if not 0 < header.request < self._next_request:
            raise _not_asked(
                f"A {header.kind.name} frame answers request {header.request}, which was not made."
            )

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.header.kind
        if not self._open and kind is not Kind.HELLO and kind is not Kind.GOAWAY:
            raise _not_asked(f"The first frame was a {kind.name}, not a HELLO.")
        self._handlers[kind](frame)

    def _on_hello(self, frame: Frame) -> None:
        if frame.header.flags == Flag.REFUSED:
            text = frame.message.decode("utf-8", "replace")
            raise PeerRefused("refused", f"The peer '{self.peer}' refused the connection: {text}")
        if self._open or self.hello.done():
            raise _not_asked("A second HELLO came.")
        # Requests behind it wait until the Hello has been checked.
        self._channel.pause()
        self.hello.set_result(frame.message)

    def _on_request(self, frame: Frame) -> None:
        number = frame.header.request
        if len(self._serving) + self._channel.queue.bodies >= MAX_IN_FLIGHT or number in self._serving:
            raise _not_asked(f"The peer has more than {MAX_IN_FLIGHT} requests open, or one of them twice.")
        self._serving[number] = self._owner.spawn(self._serve(number, frame.message))

    def _on_answer(self, frame: Frame) -> None:
        header = frame.header
        ask = self._asks.get(header.request)
        if ask is None:
            self._check_number(header)
            return
        if header.flags == Flag.FAILED:
            del self._asks[header.request]
            _fail(ask.future, handler_failed(self.peer))
            return
        try:
            ask.announce(frame.message, header.body_bytes)
        except FrameError as error:
            _fail(ask.future, error)
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

    def _on_ping(self, frame: Frame) -> None:
        self._put(encode(Kind.PONG, frame.header.request))

    def _on_pong(self, frame: Frame) -> None:
        sent = self._pings.pop(frame.header.request, None)
        if sent is not None:
            since_s, future = sent
            self.rtt_ms = (time.monotonic() - since_s) * 1e3
            if not future.done():
                future.set_result(None)

    def _on_goaway(self, frame: Frame) -> None:
        text = frame.message.decode("utf-8", "replace")
        self._peer_leaves = True
        self.reason = _gone(f"The peer '{self.peer}' ends the connection: {text}")
        if not self._open:
            raise self.reason
        self.leave("The other side ends the connection.")
        self._close_if_done()

    # --- serving ---------------------------------------------------------------------------------

    async def _serve(self, number: int, message: bytes) -> None:
        try:
            reply = await self._owner.handler(self.peer, message)
            if len(reply.message) > MAX_MESSAGE_BYTES:
                raise _not_asked(f"An own answer of {len(reply.message)} bytes is over the limit.")  # noqa: TRY301 - logged as the handler's fault
        except Exception:  # one request's failure must not end the others
            if self._serving.pop(number, None) is not None:
                log.exception("a request could not be served", peer=self.peer)
                self._put(encode(Kind.ANSWER, number, flags=Flag.FAILED))
        else:
            if self._serving.pop(number, None) is not None:
                self._send(number, reply)
        self._close_if_done()

    def _send(self, number: int, reply: Reply) -> None:
        if self.ended:
            return
        view = memoryview(reply.body).cast("B")
        self._put(encode(Kind.ANSWER, number, reply.message, body_bytes=len(view)))
        if view:
            self._channel.queue.put_body(number, view)

    # --- its end ---------------------------------------------------------------------------------

    def _close_if_done(self) -> None:
        """Both sides leave, and nothing is in flight either way."""
        done = self.leaving and self._peer_leaves and not self._asks and not self._serving
        if done and self._finishing is None and not self.ended:
            self._finishing = self._owner.spawn(self._finish())

    async def _finish(self) -> None:
        """Let the last answers leave, however slow the line: silence of the peer is what ends the wait."""
        await self._channel.flushed()
        reason = self.reason or _gone("The connection was ended in order.")
        await self._channel.finish(reason, self._owner.timings.close_s)

    def _on_end(self, reason: KonsilError) -> None:
        self.reason = reason = self.reason or reason
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        _fail(self.hello, reason)
        asks, self._asks = list(self._asks.values()), {}
        for ask in asks:
            _fail(ask.future, _lost(self.peer, reason))
        for _, future in self._pings.values():
            _fail(future, reason)
        self._pings.clear()
        serving, self._serving = list(self._serving.values()), {}
        for task in serving:
            task.cancel()
        self._owner.changed(self)

    def _watch(self) -> None:
        """Look after silence, stuck frames and certificates, at the next moment when one may matter."""
        timings, now_s, unix_s = self._owner.timings, time.monotonic(), time.time()
        if now_s - self._watch_at_s > timings.ping_s:
            # This process itself was held up: nobody could be heard.
            self._channel.heard_s = now_s
        silent_s = now_s - self._channel.heard_s
        if unix_s >= self._expires_s:
            self._channel.end(_gone("A certificate of this connection has expired."))
            return
        if silent_s >= timings.ping_s * timings.missed_pings + timings.ping_s:
            self._channel.end(_gone(f"The peer '{self.peer}' has been silent for {silent_s:.0f} s."))
            return
        if self._is_stuck(now_s):
            self._channel.end(
                _gone(f"A frame of the peer '{self.peer}' did not end in {timings.frame_s:g} s.")
            )
            return
        if silent_s >= timings.ping_s and self._open:
            self._ask_whether_alive()
        if unix_s >= self._leave_s:
            self.leave("A certificate of this connection is about to expire; it is made anew.")
        ahead_s = [timings.ping_s, timings.frame_s / 2, self._expires_s - unix_s]
        if not self.leaving:
            ahead_s.append(self._leave_s - unix_s)
        wait_s = max(_WATCH_S_MIN, min(ahead_s))
        self._watch_at_s = now_s + wait_s
        self._watch_timer = self._loop.call_later(wait_s, self._watch)

    def _is_stuck(self, now_s: float) -> bool:
        """Whether one frame has been arriving for too long: trickled bytes keep nobody alive."""
        frames, since_s = self._stuck
        if not self._reader.partial or self._reader.frames != frames:
            self._stuck = (self._reader.frames if self._reader.partial else -1, now_s)
            return False
        return now_s - since_s >= self._owner.timings.frame_s


def _fail(
    future: asyncio.Future[Received] | asyncio.Future[bytes] | asyncio.Future[None], error: KonsilError
) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever waits gets it; nobody waiting is no mistake


def handler_failed(peer: str) -> PeerRefused:
    """What the asker gets when the peer's handler raised."""
    return PeerRefused(
        "handler_failed",
        f"The peer '{peer}' could not serve a request because of an error of its own.",
        safe="Nothing was taken from it.",
        do="Its log has the error.",
    )


def _lost(peer: str, reason: KonsilError) -> PeerUnreachable:
    return PeerUnreachable(
        f"The connection to '{peer}' ended before its answer: {reason.what}",
        safe="The request is safe to repeat.",
        do="Ask again; the connection is made anew by itself.",
    )


def _gone(why: str) -> PeerUnreachable:
    return PeerUnreachable(why, safe="Requests are safe to repeat.")


def _not_asked(what: str) -> FrameError:
    return FrameError(
        what,
        safe="Nothing was taken from it and no memory was reserved; the connection is closed.",
        do="The peer runs another version of Konsil, or is hostile: compare versions with `konsil doctor`.",
    )


def _reason(why: str) -> bytes:
    return why.encode()[:MAX_REASON_BYTES]
