"""A whole connection with a peer: the real one, over a socket whose other end says what the fuzzer wants."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Any

import world
from target import must, refusal

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import KonsilError
from konsil.transport.base import Reply
from konsil.transport.connection import Connection, Owner
from konsil.transport.frames import STREAM_WINDOW_BYTES
from konsil.transport.stream import Stream
from konsil.transport.timings import MAX_IN_FLIGHT, MAX_STREAMS, Timings


class FakeSocket:
    """A TLS socket whose peer says what the fuzzer wants, and reads nothing after a while."""

    def __init__(self, said: bytes, step: int) -> None:
        """``step``: the most bytes that one read gives."""
        self.fd, self._far = os.pipe()
        self._said, self._step, self._at = said, step, 0
        self.sent = 0

    def fileno(self) -> int:
        """A descriptor that is never ready."""
        return self.fd

    def recv_into(self, room: memoryview, count: int) -> int:
        """What comes next."""
        piece = self._said[self._at : self._at + min(self._step, count)]
        if not piece:
            raise ssl.SSLWantReadError
        room[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def send(self, piece: bytes | memoryview) -> int:
        """Take it, while the peer still reads."""
        if self.sent > MAX_MESSAGE_BYTES:
            raise ssl.SSLWantWriteError
        self.sent += len(piece)
        return len(piece)

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)
        os.close(self._far)


async def _served(_peer: str, message: bytes) -> Reply:
    if message[:1] == b"\x00":
        raise ValueError("a handler that breaks")
    return Reply(message[:64], bytes(100))


async def _taken(_peer: str, message: bytes, stream: Stream) -> None:
    """Echoes, reads nothing, or breaks, as the peer says."""
    if message[:1] == b"\x00":
        raise ValueError("a handler that breaks")
    stream.accept()
    if message[:1] == b"\x01":
        await stream.ended()
    while data := await stream.read(1000):
        await stream.write(data)
    stream.finish()


async def _opened(connection: Connection) -> None:
    """An own stream: whatever comes in it."""
    try:
        stream = await connection.open_stream(b"what for")
        if stream is not None:
            await stream.write(bytes(100))
            while await stream.read():
                pass
            stream.finish()
    except KonsilError as error:
        refusal(error)


def _held(connection: Connection) -> int:
    """Bytes of streams that lie unread."""
    streams = connection._streams._streams.values()  # noqa: SLF001
    return max((sum(map(len, stream._unread)) for stream in streams), default=0)  # noqa: SLF001


async def _conversation(data: bytes) -> bool:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    sock = FakeSocket(data[1:], data[0] * 16 + 1)
    owner = Owner(_served, _taken, Timings(), lambda _: None, spawn)
    connection = Connection(sock, "b", owner, dialled=True, expires_s=2e9)  # type: ignore[arg-type]
    connection.start()
    connection.greet(b"hello")
    asks = [
        spawn(_asked(connection, None, 1000)),
        spawn(_asked(connection, memoryview(bytearray(100)), 0)),
    ]
    for turn in range(8):
        if turn == 1 and connection.hello.done() and not connection.ended:
            connection.open()
            asks.append(spawn(_asked(connection, None, 50)))
            asks.append(spawn(_opened(connection)))
        await asyncio.sleep(0)
        must(len(connection._serving) <= MAX_IN_FLIGHT, "more requests at once than allowed")  # noqa: SLF001
        must(len(connection._streams) <= 2 * MAX_STREAMS + 1, "more streams at once than allowed")  # noqa: SLF001
        must(_held(connection) <= STREAM_WINDOW_BYTES, "more unread than a window")
    connection.abort("the end")
    for task in list(tasks):
        task.cancel()
    while tasks:
        await asyncio.wait(tasks)
    must(connection.ended and connection.reason is not None, "a connection without an end")
    refusal(connection.reason)
    return connection.hello.done() and connection.hello.exception() is None


async def _asked(connection: Connection, into: memoryview | None, limit_bytes: int) -> None:
    try:
        received = await connection.ask(b"what", into, limit_bytes)
    except KonsilError as error:
        refusal(error)
        return
    if received is not None and into is None:
        must(len(received.body) == received.body_bytes <= limit_bytes, "a body over its limit")


def converse(data: bytes) -> bool:
    """A whole connection: greeting, requests, answers and bodies, in whatever order they come."""
    return bool(data) and world.loop().run_until_complete(_conversation(data))
