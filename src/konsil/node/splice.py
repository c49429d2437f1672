"""One TCP connection of the ledger's engine, and the stream to a peer in which its bytes go on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from konsil.errors import KonsilError
from konsil.transport.stream import Stream

READ_BYTES = 256 * 1024
"""Read from the engine at once; as much again may wait in the stream's buffers."""

CLOSE_S = 5.0
"""How long the engine may take to read the last bytes of a connection that has ended in order."""

_AT_ONCE = struct.pack("ii", 1, 0)

_log = structlog.get_logger(__name__)


def cut(writer: asyncio.StreamWriter) -> None:
    """Close a TCP connection at once, unless it is closed already."""
    # asyncio's own mistake: a transport that has closed behind its last bytes cannot be aborted.
    with contextlib.suppress(AttributeError):
        writer.transport.abort()


class Splice:
    """Bytes both ways between a TCP connection and a stream, each direction until its end.

    The connection under a stream is made anew now and then, as before its certificate ends. The splice then
    goes on in another stream, and the engine notices nothing: each side finishes the old stream behind what
    it has written there, and writes on in the new one; each side reads the old one to its end before that.

    Args:
        peer: the member at the other side.
        stream: an accepted stream to it.
        reader, writer: the TCP connection.

    Attributes:
        bytes_in, bytes_out: so many have come from the peer and have been sent to it.
        done: whether it has ended; it goes on nowhere then.
    """

    def __init__(
        self, peer: str, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Nothing moves before ``run``."""
        self.peer = peer
        self.bytes_in = self.bytes_out = 0
        self.done = False
        self._reader = reader
        self._writer = writer
        self._ins = deque([stream])
        self._outs = deque([stream])
        self._latest = stream
        self._writing = self._engine_finished = self._no_more = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._watch(stream)

    async def run(self, another: Callable[[], Awaitable[Stream]] | None = None) -> None:
        """Move bytes until both directions have ended, or anything breaks: then the other side breaks, too.

        Args:
            another: opens another stream to go on in; only at the side that opened the first.
        """
        pumping = asyncio.create_task(self._pump())
        tasks = [pumping]
        if another is not None:
            tasks.append(asyncio.create_task(self._keep_moving(another)))
        why = "This node is stopping."
        both: set[asyncio.Future[Any]] = {pumping, self._broken}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            why = self._why(pumping)
        finally:
            self.done = True
            for stream in (*self._outs, *self._ins):
                stream.abort(why)
            for task in tasks:
                task.cancel()
            try:
                await asyncio.wait(tasks)
                if not pumping.cancelled():
                    pumping.exception()  # it has been told already
                await self._close(in_order=not why)
            finally:
                cut(self._writer)

    def stop(self, why: str) -> None:
        """End it, at both sides."""
        if not self._broken.done():
            self._broken.set_result(why)

    def go_on_in(self, stream: Stream) -> None:
        """Go on in this stream, behind what has been said in the one before."""
        self._watch(stream)
        self._ins.append(stream)
        self._outs.append(stream)
        self._latest = stream
        self._move_on()

    # --- inside ----------------------------------------------------------------------------------

    async def _pump(self) -> None:
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._to_peer())
            pumps.create_task(self._from_peer())
        self._no_more = True
        # The peer may still be on its way into another stream, or this side is: neither may be cut off there.
        await self._settled.wait()
        while open_ones := [stream for stream in (*self._outs, *self._ins) if not stream.over]:
            await open_ones[0].ended()
        self.done = True  # at once: what came now would be cut off

    async def _to_peer(self) -> None:
        while data := await self._reader.read(READ_BYTES):
            self._writing = True
            await self._outs[0].write(data)
            self._writing = False
            self.bytes_out += len(data)
            self._move_on()
        self._engine_finished = True
        self._move_on()

    async def _from_peer(self) -> None:
        while self._ins:
            data = await self._ins[0].read()
            if data:
                self.bytes_in += len(data)
                self._writer.write(data)
                await self._writer.drain()
                continue
            # The stream's end is that of the bytes, unless they go on elsewhere.
            await self._settled.wait()
            self._ins.popleft()
        self._writer.write_eof()

    def _move_on(self) -> None:
        """Finish every stream but the newest; that too, if there is nothing more to write."""
        if self._writing:
            return
        while len(self._outs) > 1:
            self._outs.popleft().finish()
        if self._engine_finished:
            self._outs[0].finish()

    async def _keep_moving(self, another: Callable[[], Awaitable[Stream]]) -> None:
        """Have another stream whenever the last one's connection is made anew."""
        while True:
            await self._latest.leaving.wait()
            if self._no_more:
                return
            self._settled.clear()
            try:
                self.go_on_in(await another())
            except KonsilError as error:
                _log.info("a tunnel ends with its connection", peer=self.peer, why=error.what)
                return
            finally:
                self._settled.set()

    def _watch(self, stream: Stream) -> None:
        stream.watch(lambda: self.stop(stream.reason.what) if stream.reason is not None else None)

    def _why(self, pumping: asyncio.Task[None]) -> str:
        """Why it ended too early; "" if both directions have ended in order."""
        if self._broken.done():
            return self._broken.result()
        error = pumping.exception()
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, KonsilError):
            return error.what
        return f"The connection to the ledger's engine broke: {error}." if error is not None else ""

    async def _close(self, *, in_order: bool) -> None:
        if not in_order:
            # The engine must not take a broken connection for one that has ended.
            with contextlib.suppress(OSError):
                self._writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE
                )
            cut(self._writer)
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._writer.wait_closed()
