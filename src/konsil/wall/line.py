"""The training process's and the command line's end of the wall: one connection, one word at a time."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from konsil.core.wall import Failed, FromNode, ToNode
from konsil.errors import ConfigError, KonsilError, NodeUnreachable
from konsil.wall.frames import Delivery, FrameReader, frame, raised, words_from_node

MAX_PATH_BYTES = 107
"""unix(7): ``sun_path`` holds 108 bytes with the closing zero."""

_SEND_S = 30.0  # a node that takes no bytes for so long hangs; a frame without its array is small
_FDS_AT_ONCE = 4  # one is allowed; room for more shows that there were more, and lets them be closed


class Line:
    """A connection to a node. Close it, or use it in a ``with``. One thread at a time."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        """Take over a connected socket; ``path`` is for messages."""
        self._socket = connection
        self._reader: FrameReader[FromNode] = FrameReader(words_from_node)
        self.path = path

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout_s: float) -> Self:
        """Connect to the node that listens at ``path``.

        Raises:
            NodeUnreachable: nobody listens there, or does not accept in time.
            ConfigError: the path is too long, or this user may not open it.
        """
        place = checked_path(path)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(timeout_s, 0.001))
            connection.connect(str(place))
        except PermissionError as error:
            connection.close()
            raise ConfigError(
                f"This user may not open the node's socket {place}.",
                safe="Nothing was sent.",
                do="Ask the node's operator for the group that the socket belongs to.",
            ) from error
        except OSError as error:
            connection.close()
            raise NodeUnreachable(
                f"No node answers at {place}: {error.strerror or 'no answer in time'}.",
                safe="Nothing was sent; nothing changed.",
                do="Start it with `konsil node start`, or say in which directory it is: KONSIL_DIR, --dir of"
                " a command, node= of konsil.join.",
            ) from error
        except BaseException:
            connection.close()
            raise
        return cls(connection, place)

    def send(self, word: ToNode, fd: int | None = None, *, timeout_s: float = _SEND_S) -> None:
        """Send a word, and with it a copy of the descriptor ``fd``, which stays the caller's.

        Raises:
            NodeUnreachable: the connection broke, or the node took nothing in time.
            KonsilError: why the node closed the connection, where it has said so.
        """
        data = memoryview(frame(word))
        until_s = time.monotonic() + timeout_s
        try:
            sent = 0
            while sent < len(data):
                self._socket.settimeout(max(until_s - time.monotonic(), 0.001))
                sent += self._socket.sendmsg([data[sent:]], ancillary(fd if sent == 0 else None))
        except OSError as error:
            raise self._last_word() from error

    def receive(self, timeout_s: float) -> Delivery[FromNode]:
        """The next word. ``fd`` of the delivery, if any, is the caller's to close.

        With ``timeout_s`` 0: only what has arrived already. What has arrived of a word when the time is up
        is kept for the next call.

        Raises:
            TimeoutError: no whole word in time.
            NodeUnreachable: the connection broke.
            FrameError: bytes that break the format.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.settimeout(max(until_s - time.monotonic(), 0.0))
                data, fds = receive_some(self._socket, self._reader.wanted)
            except (TimeoutError, BlockingIOError) as error:
                raise TimeoutError(f"no word from the node within {timeout_s:g} s") from error
            except OSError as error:
                raise self._lost() from error
            if not data:
                close_all(fds)
                raise self._lost()
            delivery = self._reader.feed(data, fds)
            if delivery is not None:
                return delivery

    def fileno(self) -> int:
        """For ``selectors``: readable when (a part of) a word has arrived."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        self._reader.close()
        self._socket.close()

    def _last_word(self) -> KonsilError:
        with contextlib.suppress(TimeoutError, KonsilError):
            word, fd = self.receive(0.0)
            close_all([] if fd is None else [fd])
            if isinstance(word, Failed):
                return raised(word)
        return self._lost()

    def _lost(self) -> NodeUnreachable:
        return NodeUnreachable(
            f"The connection to the node at {self.path} broke.",
            safe="What the node has noted stays; the model is untouched.",
            do="See the node's log; start it again with `konsil node start`.",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path of a socket.

    Raises:
        ConfigError: longer than the system allows.
    """
    place = Path(path)
    length_bytes = len(os.fsencode(place))
    if length_bytes > MAX_PATH_BYTES:
        raise ConfigError(
            f"The socket's path {place} has {length_bytes} bytes; the system allows {MAX_PATH_BYTES}.",
            safe="Nothing was created.",
            do="Choose a shorter directory, for example under /run/konsil.",
        )
    return place


def receive_some(connection: socket.socket, most_bytes: int) -> tuple[bytes, list[int]]:
    """What one read brings: bytes (none at the end of the connection) and descriptors.

    Raises:
        OSError: as ``socket.recvmsg``.
    """
    room = socket.CMSG_SPACE(_FDS_AT_ONCE * array.array("i").itemsize)
    data, messages, flags, _address = connection.recvmsg(most_bytes, room, _CLOSE_ON_EXEC)
    fds = array.array("i")
    for level, kind, content in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise OSError(errno.EMFILE, "a descriptor was lost on its way: too many open files")
    return data, list(fds)


def ancillary(fd: int | None) -> list[tuple[int, int, bytes]]:
    """The side message that carries a descriptor, for ``socket.sendmsg``."""
    if fd is None:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux only
