"""The node's end of the wall: a Unix socket where training processes and command lines come in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple, Self

from konsil.core.wall import Failed, FromNode, ToNode
from konsil.errors import ConfigError, FrameError, KonsilError, NodeBusy
from konsil.wall.frames import MAX_TO_NODE_BYTES, Delivery, FrameReader, failure, frame, words_to_node
from konsil.wall.line import ancillary, checked_path, close_all, receive_some

MAX_VISITORS = 64
"""Training processes and command lines at once; one host runs a handful. Each may hold a few descriptors."""

SEND_S = 30.0
"""A visitor that takes no bytes for so long hangs; it is cut off, so that it holds nobody up."""

_ACCEPT_AGAIN_S = 1.0  # out of descriptors: visitors wait in the backlog until some are free
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Credentials(NamedTuple):
    """Who opened the connection, as the kernel says. ``pid`` is 0 for a process of another PID namespace."""

    pid: int
    uid: int
    gid: int


class Visitor:
    """One connection at the door. One task may receive while others send."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over a connected, non-blocking socket."""
        self._socket = connection
        self._reader: FrameReader[ToNode] = FrameReader(words_to_node, MAX_TO_NODE_BYTES)
        self._sending = asyncio.Lock()
        self._open = True
        self._waiting: set[asyncio.Future[None]] = set()
        self.credentials = Credentials(
            *_CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        )

    async def receive(self) -> Delivery[ToNode]:
        """The next word; waits for it without a deadline of its own. Cancelling loses nothing.

        The delivery's ``fd``, if any, is the caller's to close (``open_sealed`` takes it over).

        Raises:
            ConnectionError: the visitor has gone.
            FrameError: bytes that break the format; the connection cannot be used any more.
        """
        while self._open:
            try:
                data, fds = receive_some(self._socket, self._reader.wanted)
            except BlockingIOError:
                await self._ready(writing=False)
                continue
            except OSError as error:
                raise ConnectionResetError("the visitor has gone") from error
            if not data:
                close_all(fds)
                break
            try:
                delivery = self._reader.feed(data, fds)
            except FrameError:
                self._socket.shutdown(socket.SHUT_RD)  # an answer can still be sent
                raise
            if delivery is not None:
                return delivery
        raise ConnectionResetError("the visitor has gone")

    async def send(self, word: FromNode, fd: int | None = None) -> None:
        """Send a word, and with it a copy of the descriptor ``fd``, which stays the caller's.

        Raises:
            ConnectionError: the visitor has gone, or takes nothing.
        """
        data = memoryview(frame(word))
        if fd is None:
            await self._send_all(data, None)
            return
        # While this waits, a caller may give a model up, and its number be another file's: so a copy is held.
        try:
            held = os.dup(fd)
        except OSError as error:
            self.close()
            raise ConnectionResetError("there is no descriptor to send") from error
        try:
            await self._send_all(data, held)
        finally:
            os.close(held)

    async def _send_all(self, data: memoryview, fd: int | None) -> None:
        async with self._sending:
            sent = 0
            try:
                async with asyncio.timeout(SEND_S):
                    while sent < len(data):
                        sent += await self._send_some(data[sent:], fd if sent == 0 else None)
            except (OSError, TimeoutError) as error:
                self.close()
                raise ConnectionResetError("the visitor has gone, or takes nothing") from error
            finally:
                if 0 < sent < len(data):
                    self.close()  # half a frame is out: what follows could not be read

    async def _send_some(self, data: memoryview, fd: int | None) -> int:
        while self._open:
            try:
                return self._socket.sendmsg([data], ancillary(fd))
            except BlockingIOError:
                await self._ready(writing=True)
        raise ConnectionResetError("the visitor has gone")

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        fd = self._socket.fileno()
        self._waiting.add(ready)
        (loop.add_writer if writing else loop.add_reader)(fd, wake)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._open:
                (loop.remove_writer if writing else loop.remove_reader)(fd)

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        if not self._open:
            return
        self._open = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._reader.close()
        self._socket.close()
        for ready in self._waiting:
            if not ready.done():
                ready.set_result(None)


Handler = Callable[[Visitor], Awaitable[None]]
"""Serves one visitor. A KonsilError that it raises is told to the visitor; then the connection is closed."""


class Door:
    """Listens at a path while its ``async with`` lasts, and runs ``handler`` for every visitor.

    A socket file that a dead node left is replaced. Whatever one visitor sends, the others are served on.
    On leaving, handlers are cancelled and waited for, and the socket file is removed.
    """

    def __init__(self, path: str | os.PathLike[str], handler: Handler, *, mode: int = 0o600) -> None:
        """Prepare; nothing is opened yet.

        Args:
            path: where the socket file goes; its directory must exist.
            handler: a coroutine function for one visitor.
            mode: permissions of the socket file: who may come in.

        Raises:
            ConfigError: the path is too long.
        """
        self.path = checked_path(path)
        self._handler = handler
        self._mode = mode
        self._socket: socket.socket | None = None
        self._visits: set[asyncio.Task[None]] = set()
        self._inode = 0
        self._later: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Open the door.

        Raises:
            NodeBusy: a living node listens at this path.
            ConfigError: no socket can be made there.
        """
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            door.setblocking(False)
            self._remove_stale()
            door.bind(str(self.path))
            self.path.chmod(self._mode)  # nobody can connect before listen(), so no moment is too open
            door.listen(MAX_VISITORS)
            self._inode = self.path.stat().st_ino
        except OSError as error:
            door.close()
            raise ConfigError(
                f"The node cannot listen at {self.path}: {error.strerror}.",
                safe="Nothing else was opened.",
                do="Check that the directory exists and belongs to the node's user.",
            ) from error
        except BaseException:
            door.close()
            raise
        self._socket = door
        asyncio.get_running_loop().add_reader(door, self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the door and every connection."""
        door, self._socket = self._socket, None
        if self._later is not None:
            self._later.cancel()
        if door is not None:
            asyncio.get_running_loop().remove_reader(door)
            with contextlib.suppress(OSError):
                if self.path.stat().st_ino == self._inode:  # else another node's socket stands here by now
                    self.path.unlink()
            door.close()
        visits = tuple(self._visits)
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)

    def _remove_stale(self) -> None:
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(status.st_mode):
            raise ConfigError(
                f"{self.path} is there already and is not a socket.",
                safe="It was not touched.",
                do="Move it away, or choose another path.",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(str(self.path))
        if answer in _NOBODY_LISTENS:
            self.path.unlink(missing_ok=True)
            return
        raise NodeBusy(
            f"A node is running at {self.path} already.",
            safe="It was not disturbed.",
            do="Stop it first, or give this node a directory of its own.",
        )

    def _accept(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:
            loop.remove_reader(self._socket)
            self._later = loop.call_later(_ACCEPT_AGAIN_S, self._accept_again)
            return
        connection.setblocking(False)
        visitor = Visitor(connection)
        visit = loop.create_task(self._serve(visitor, full=len(self._visits) >= MAX_VISITORS))
        self._visits.add(visit)

        def over(task: asyncio.Task[None]) -> None:
            # Here, not in the task: one that is cancelled before its first step runs no ``finally``.
            self._visits.discard(task)
            visitor.close()

        visit.add_done_callback(over)

    def _accept_again(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    async def _serve(self, visitor: Visitor, *, full: bool) -> None:
        try:
            if full:
                await visitor.send(_FULL)
            else:
                await self._handler(visitor)
        except KonsilError as error:
            with contextlib.suppress(ConnectionError, FrameError):
                await visitor.send(failure(error))
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - one visitor's accident must not end the node
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"serving a visitor at {self.path} failed", "exception": error}
            )
            with contextlib.suppress(ConnectionError):
                await visitor.send(_ACCIDENT)


_NOBODY_LISTENS = (errno.ECONNREFUSED, errno.ENOENT)
_FULL = Failed(
    kind="NodeBusy",
    code="",
    what=f"The node serves {MAX_VISITORS} connections on this socket already.",
    safe="Nothing was changed.",
    do="Close training processes that are not needed, then try again.",
)
_ACCIDENT = Failed(
    kind="NodeError",
    code="",
    what="The node met an error of its own.",
    safe="What it had noted before stays.",
    do="See the node's log for the cause.",
)
