"""One TLS socket on the event loop: bytes from the socket into their memory, from memory to the socket.

Non-blocking ``ssl.SSLSocket`` and readiness callbacks, because asyncio's own TLS copies every byte
twice: here what arrives is decrypted straight into the memory that waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable

from konsil.errors import FrameError, KonsilError, PeerUnreachable
from konsil.transport.frames import Frame, FrameReader, SendQueue
from konsil.transport.timings import MAX_WAITING_FRAMES

READ_BUDGET_BYTES = 1024 * 1024
"""Read at one wake-up before other callbacks get their turn: below a millisecond of decryption."""

WRITE_BUDGET_BYTES = 1024 * 1024
"""The same for writing."""

UNSENT_BYTES = 1024 * 1024
"""Unsent bytes that the kernel may hold: behind more of them, a heartbeat would wait on a slow line."""


class Channel:
    """Moves frames over a TLS socket whose handshake is done; owns the socket.

    Args:
        sock: the non-blocking socket.
        reader: says where bytes go and makes frames of them.
        on_frame: called with each whole frame.
        on_end: called once, with the reason, when the channel has ended.
    """

    def __init__(
        self,
        sock: ssl.SSLSocket,
        reader: FrameReader,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[KonsilError], None],
    ) -> None:
        """Take over the socket; nothing happens until ``resume``."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._reader = reader
        self._on_frame = on_frame
        self._on_end = on_end
        self._piece: bytes | memoryview | None = None
        self._paused = True
        self._armed = False
        self._read_on_writable = False
        self._read_soon: asyncio.Handle | None = None
        self._write_soon: asyncio.Handle | None = None
        self._flushed: list[asyncio.Future[None]] = []
        self.queue = SendQueue()
        self.ended = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.heard_s = time.monotonic()

    def resume(self) -> None:
        """Read from now on."""
        if self.ended or not self._paused:
            return
        self._paused = False
        self._loop.add_reader(self._fd, self._readable)
        # TLS may hold decrypted bytes of which the kernel knows nothing.
        self._read_again()

    def pause(self) -> None:
        """Read nothing until ``resume``."""
        if not self.ended and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def kick(self) -> None:
        """Something was queued: send it with whatever else this turn of the loop queues."""
        if self.ended or self._armed or self._write_soon is not None:
            return
        if self.queue.frames > MAX_WAITING_FRAMES:
            self.end(
                FrameError(
                    f"A peer has left {self.queue.frames} frames unread.",
                    safe="Its connection is closed; nothing was lost.",
                    do="Look at the peer's load, or at who it is.",
                )
            )
            return
        self._write_soon = self._loop.call_soon(self._write_now)

    async def flushed(self) -> None:
        """Wait until everything queued is with the kernel, or the channel has ended."""
        if self.ended or (self._piece is None and self.queue.empty):
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._flushed.append(future)
        await future

    def end(self, reason: KonsilError) -> None:
        """Close the socket at once and say why; safe to call again."""
        if self.ended:
            return
        self._let_go()
        self._sock.close()
        self._on_end(reason)

    async def finish(self, reason: KonsilError, timeout_s: float) -> None:
        """Send what is queued, say that nothing more comes, and close when the peer has too.

        A socket closed with unread bytes would reset the connection and may take the last answer with it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.flushed()
        if self.ended:
            return
        self._let_go()
        raw = socket.socket(fileno=self._sock.detach())
        self._on_end(reason)
        await linger(raw, timeout_s)

    def _let_go(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        for handle in (self._read_soon, self._write_soon):
            if handle is not None:
                handle.cancel()
        self._read_soon = self._write_soon = None
        self.queue.clear()
        self._piece = None
        self._wake_flushed()

    def _wake_flushed(self) -> None:
        waiting, self._flushed = self._flushed, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _read_again(self) -> None:
        if self._read_soon is None:
            self._read_soon = self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        self._read_soon = None
        self._readable()

    def _readable(self) -> None:
        if self.ended or self._paused:
            return
        try:
            self._receive()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._read_on_writable = True
            self._arm()
        except KonsilError as error:
            self.end(error)
        except OSError as error:
            self.end(broken(error))
        if self._piece is not None and not self._armed:
            # A write that waited for the peer's bytes (a key update) can go on.
            self.kick()

    def _receive(self) -> None:
        """Receive until there is nothing more (which raises), the budget is used up, or a frame ends it."""
        reader, receive = self._reader, self._sock.recv_into
        budget = READ_BUDGET_BYTES
        try:
            while budget > 0:
                count = receive(reader.room, len(reader.room))
                if not count:
                    raise _ended(in_frame=reader.partial)
                budget -= count
                frame = reader.filled(count)
                if frame is not None:
                    self._on_frame(frame)
                    if self.ended or self._paused:
                        return
            self._read_again()
        finally:
            if budget != READ_BUDGET_BYTES:
                self.bytes_in += READ_BUDGET_BYTES - budget
                self.heard_s = time.monotonic()

    def _write_now(self) -> None:
        self._write_soon = None
        self._writable()

    def _writable(self) -> None:
        if self.ended:
            return
        if self._read_on_writable:
            self._read_on_writable = False
            self._read_again()
        queue, send = self.queue, self._sock.send
        budget = WRITE_BUDGET_BYTES
        try:
            while budget > 0:
                # TLS demands that a write that could not be completed is repeated with the same bytes.
                piece = self._piece
                if piece is None:
                    piece = queue.take()
                    if piece is None:
                        break
                    self._piece = piece
                count = send(piece)
                budget -= count
                self._piece = None if count == len(piece) else memoryview(piece)[count:]
            else:
                self._arm()
                return
            self._disarm()
            self._wake_flushed()
        except ssl.SSLWantWriteError:
            self._arm()
        except ssl.SSLWantReadError:
            self._disarm()
        except OSError as error:
            self._end_of_writing(error)
        finally:
            self.bytes_out += WRITE_BUDGET_BYTES - budget

    def _end_of_writing(self, error: OSError) -> None:
        """The peer closed; its reason may still be among the bytes that it sent before."""
        self._disarm()
        self._paused = False
        self._readable()
        if not self.ended:
            self.end(broken(error))

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.add_writer(self._fd, self._writable)

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_writer(self._fd)


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Drive a TLS handshake on a non-blocking socket; the deadline is the caller's.

    Raises:
        ssl.SSLError, OSError: the handshake failed.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(sock.fileno(), loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _ready(sock.fileno(), loop.add_writer, loop.remove_writer)
        else:
            return


async def until_readable(sock: socket.socket) -> None:
    """Wait for the first byte, or the end; the deadline is the caller's."""
    loop = asyncio.get_running_loop()
    await _ready(sock.fileno(), loop.add_reader, loop.remove_reader)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, lambda: None if future.done() else future.set_result(None))
    try:
        await future
    finally:
        remove(fd)


async def linger(raw: socket.socket, timeout_s: float) -> None:
    """Say that nothing more comes, read until the peer has closed too or the time is up, and close."""
    loop = asyncio.get_running_loop()
    scratch = bytearray(64 * 1024)
    raw.setblocking(False)
    try:
        with contextlib.suppress(OSError, TimeoutError):
            raw.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(timeout_s):
                while await loop.sock_recv_into(raw, scratch):
                    pass
    finally:
        raw.close()


def tune(sock: socket.socket) -> None:
    """Prepare a TCP socket.

    Buffer sizes are left alone: fixing them would end the kernel's own tuning to the line.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    unsent = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if unsent is not None:
        sock.setsockopt(socket.IPPROTO_TCP, unsent, UNSENT_BYTES)


def broken(error: OSError) -> PeerUnreachable:
    """What a socket's or TLS's error means, in words."""
    text = explain(error)
    return PeerUnreachable(
        f"The connection broke: {text}.",
        safe="Requests are safe to repeat.",
        do="It is tried again by itself.",
    )


def explain(error: OSError) -> str:
    """A socket's or TLS's error in words a reader of a log can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not trusted ({error.verify_message})"
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and reason:
        return _ALERTS.get(reason, f"TLS failed ({reason.lower().replace('_', ' ')})")
    return error.strerror or str(error) or type(error).__name__


_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate (no bundle of its directory holds it)",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer does not trust our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer does not trust our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer could not check our certificate's signature",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asked for a certificate and got none",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer and this node have no TLS version in common",
    "UNSUPPORTED_PROTOCOL": "the other side offers no TLS 1.3",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side speaks HTTP, not TLS",
    "UNEXPECTED_EOF_WHILE_READING": "the other side closed during the handshake",
}


def _ended(*, in_frame: bool) -> KonsilError:
    if in_frame:
        return FrameError(
            "The peer closed in the middle of a frame.",
            safe="Nothing was taken from it; requests are safe to repeat.",
            do="It is tried again by itself.",
        )
    return PeerUnreachable(
        "The peer closed the connection.",
        safe="Requests are safe to repeat.",
        do="It is tried again by itself.",
    )
