"""Parameters in memory files that nobody can change any more: the descriptor crosses the wall, not the bytes.

A memory file (``memfd``) belongs to no directory: when the last process that holds it ends, however it ends,
the memory is gone. Sealed, it can neither be written nor resized, so who receives it may read it in place,
check it, and serve it, without a copy and without trusting the sender.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import tempfile
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from konsil.errors import ConfigError, FrameError, NodeError

MAX_MEMORY_BYTES = 1 << 40
"""One terabyte: far above the models that hospitals train, far below what could overflow anything."""

# fcntl(2); Python names these only from 3.13 or on some builds.
_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 1033)
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # no more seals, no shrinking, no growing, no writing

_PIECES_AT_ONCE = 512  # pwritev takes at most IOV_MAX (1,024) buffers, and at most 2 GiB, in one call
_BYTES_AT_ONCE = 1 << 20  # what waits is in memory twice; a call more for each so many bytes costs nothing

HAVE_MEMFD = hasattr(os, "memfd_create")
"""Without it (not Linux) an unlinked temporary file stands in, and its receiver copies it before reading."""


class SealedMemory:
    """One memory file, read only. Close it, or use it in a ``with``: it holds a descriptor and a mapping.

    ``data`` is a read-only view of all its bytes. Views taken from it must be gone before ``close``.
    """

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Take over ``fd``, which holds ``size_bytes`` that no longer change."""
        self._fd = fd
        self.size_bytes = size_bytes
        self._map: mmap.mmap | None = None
        self._view: memoryview | None = None

    @property
    def fd(self) -> int:
        """The descriptor, to be sent; it stays this object's own. -1 once closed."""
        return self._fd

    @property
    def data(self) -> memoryview:
        """All bytes, read only and in place.

        Mapped at the first call: who only passes the descriptor on never pays for a mapping.

        Raises:
            NodeError: it was closed; mapping what is no file would give zeros.
        """
        if self._view is None:
            if self._fd < 0:
                raise NodeError("These parameters were given back already.", safe="Nothing was read.")
            self._map = mmap.mmap(self._fd, self.size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            self._view = memoryview(self._map)
        return self._view

    def close(self) -> None:
        """Give up mapping and descriptor. Closing twice is harmless.

        A view that is still alive keeps the memory until the view is gone.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        view, self._view = self._view, None
        mapping, self._map = self._map, None
        with contextlib.suppress(BufferError):  # an array that still looks into it unmaps it by going
            if view is not None:
                view.release()
            if mapping is not None:
                mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def seal_pieces(pieces: Iterable[memoryview | bytes]) -> SealedMemory:
    """Write the pieces one after the other into a new memory file and seal it.

    One copy, by the kernel: ``pwritev`` fills pages that it has just made, 1.8 times as fast as a copy
    through a mapping, whose every page must first fault in (3.3 against 1.8 GB/s, 100 MB).

    Raises:
        ConfigError: no memory, or no descriptor, left for it.
    """
    fd = -1
    try:
        fd = _new_file()
        size_bytes = _write_all(fd, pieces)
        _seal(fd)
    except OSError as error:
        _close_quietly(fd)
        raise _no_memory(error) from error
    except BaseException:
        _close_quietly(fd)
        raise
    return SealedMemory(fd, size_bytes)


def make_writable(size_bytes: int) -> int:
    """A new memory file of this size, to be filled through mappings and then given to ``seal_written``.

    For bytes that arrive piece by piece and in any order. Who has them all at once uses ``seal_pieces``.

    Raises:
        ConfigError: no memory, or no descriptor, left for it.
    """
    fd = -1
    try:
        fd = _new_file()
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        _close_quietly(fd)
        raise _no_memory(error) from error
    return fd


def seal_written(fd: int, size_bytes: int) -> SealedMemory:
    """Seal a file from ``make_writable``; the result takes over the descriptor.

    The kernel seals against writing only a file that nobody has mapped to write: every mapping through
    which it was filled must be closed by now.

    Raises:
        OSError: a writable mapping is still open; the descriptor stays the caller's.
    """
    _seal(fd)
    return SealedMemory(fd, size_bytes)


def open_sealed(
    fd: int, *, limit_bytes: int = MAX_MEMORY_BYTES, sealed_required: bool = HAVE_MEMFD
) -> SealedMemory:
    """Take over a descriptor that came over the wall, and check that it is what it must be.

    Args:
        fd: the descriptor; it belongs to the result, and is closed when this raises.
        limit_bytes: the most bytes that are taken.
        sealed_required: False only where the system has no seals; then the bytes are copied out of the
            file first, so that its writer cannot change or cut it while it is read.

    Raises:
        FrameError: not a memory file, not sealed, empty, or too large.
    """
    try:
        size_bytes = _checked_size(fd, limit_bytes)
        if not sealed_required:
            return _copied(fd, size_bytes)
        _check_seals(fd)
    except OSError as error:
        _close_quietly(fd)
        raise _untrusted(f"cannot be used: {error.strerror}") from error
    except BaseException:
        _close_quietly(fd)
        raise
    return SealedMemory(fd, size_bytes)


def _new_file() -> int:
    if HAVE_MEMFD:
        return os.memfd_create("konsil", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(prefix="konsil-") as file:
        return os.dup(file.fileno())


def _seal(fd: int) -> None:
    if HAVE_MEMFD:
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)


def _write_all(fd: int, pieces: Iterable[memoryview | bytes]) -> int:
    waiting: list[memoryview] = []
    waiting_bytes = offset = 0
    for piece in pieces:
        view = memoryview(piece)
        waiting_bytes += view.nbytes
        if view.nbytes:
            waiting.append(view.cast("B"))
        del piece, view  # what is written is held by nobody any more
        if len(waiting) >= _PIECES_AT_ONCE or waiting_bytes >= _BYTES_AT_ONCE:
            offset = _write(fd, waiting, offset)
            waiting_bytes = 0
    return _write(fd, waiting, offset)


def _write(fd: int, waiting: list[memoryview], offset: int) -> int:
    while waiting:
        written = os.pwritev(fd, waiting, offset)
        offset += written
        whole = 0
        while whole < len(waiting) and written >= waiting[whole].nbytes:
            written -= waiting[whole].nbytes
            whole += 1
        del waiting[:whole]
        if written:
            waiting[0] = waiting[0][written:]
    return offset


def _checked_size(fd: int, limit_bytes: int) -> int:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 0:
        raise _untrusted("is not a memory file")
    if not 0 < status.st_size <= limit_bytes:
        raise _untrusted(f"holds {status.st_size} bytes, not 1 to {limit_bytes}")
    return status.st_size


def _check_seals(fd: int) -> None:
    try:
        seals = int(fcntl.fcntl(fd, _F_GET_SEALS))
    except OSError:
        seals = 0  # an ordinary file has no seals
    if seals & _SEALS != _SEALS:
        raise _untrusted("can still be changed by its sender")


def _copied(fd: int, size_bytes: int) -> SealedMemory:
    def pieces() -> Iterable[bytes]:
        offset = 0
        while offset < size_bytes:
            piece = os.pread(fd, min(size_bytes - offset, 1 << 24), offset)
            if not piece:
                raise _untrusted("became shorter while it was read")
            offset += len(piece)
            yield piece

    copied = seal_pieces(pieces())
    os.close(fd)
    return copied


def _no_memory(error: OSError) -> ConfigError:
    return ConfigError(
        f"Parameters cannot be put into shared memory: {error.strerror}.",
        safe="Nothing left this process; the model is untouched.",
        do="Free memory (`free -m`) or raise the limit of open files (`ulimit -n`).",
    )


def _untrusted(what: str) -> FrameError:
    return FrameError(
        f"The descriptor that came over the wall {what}.",
        safe="Nothing was taken from it.",
        do="Both sides of the wall must run the same version of Konsil.",
    )


def _close_quietly(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
