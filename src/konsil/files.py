"""Writing files whole or not at all, on disk before anything relies on them.

A file is first written under a name that nobody can guess and that must not be there yet. So in a folder that
others may write to, nobody can lay a link there for this program to write through, or a file of their own
whose mode would let them change what is written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

PRIVATE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700

BY_UMASK = 0o666
"""The mode of a file that is its owner's to share: what the umask leaves of it."""

UNFINISHED = ".new"
"""How the names of files end that are still being written."""


def write_whole(
    path: Path, pieces: Iterable[bytes | memoryview], *, mode: int = PRIVATE_MODE, replace: bool = True
) -> bool:
    """Write beside it, fsync, rename: after a crash the old file is there, or the new one, whole.

    Args:
        path: of the file; its folder exists.
        pieces: what is to be in it.
        mode: what others may do with it, less the umask.
        replace: whether a file that is there already gives way.

    Returns:
        Whether it was written: not, where a file is there that may not be replaced.

    Raises:
        OSError: the disk refuses; what was there before is still there. Where it was the folder's fsync that
            failed, the new file may be there already, whole.
    """
    place = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(place, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as target:
            for piece in pieces:
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        if replace:
            place.replace(path)
        else:
            try:
                path.hardlink_to(place)  # unlike a rename, this fails where the file exists
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what counts
            place.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that lack, for their owner alone; one that is there stays as it is.

    On disk before anything relies on it: what is fsynced in a folder is lost with the folder's own name.

    Raises:
        OSError: it cannot be made.
    """
    lacking = [path]
    while not lacking[-1].exists():
        lacking.append(lacking[-1].parent)
    for folder in reversed(lacking[:-1]):
        folder.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
        _sync_folder(folder.parent)


def remove_unfinished(path: Path) -> None:
    """Remove what writers of a file left when they were killed. Call where no other writer can be at it."""
    for place in path.parent.glob(f".*{UNFINISHED}"):
        name, _, token = place.name.removesuffix(UNFINISHED).rpartition(".")
        if name == f".{path.name}" and token:
            with contextlib.suppress(OSError):
                place.unlink()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
