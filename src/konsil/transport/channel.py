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

import structlog

from konsil.errors import FrameError, KonsilError
from konsil.transport.frames import Frame, FrameReader
from konsil.transport.sending import SendQueue
from konsil.transport.sentences import ended, gone
from konsil.transport.sockets import broken, linger
from konsil.transport.timings import MAX_WAITING_FRAMES

log = structlog.get_logger("konsil.transport")

READ_BUDGET_BYTES = 512 * 1024
"""Read at one wake-up before other callbacks get their turn: below a millisecond of decryption."""

WRITE_BUDGET_BYTES = 512 * 1024
"""The same for writing."""


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
        if self.ended:
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
        if not self._armed and self._write_soon is None:
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
        except Exception:  # a mistake of ours must not leave a connection that neither reads nor ends
            log.exception("a connection broke")
            self.end(gone("An error of this node, see its log."))
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
                    raise ended(in_frame=reader.partial)
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
