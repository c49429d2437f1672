"""Disks that lose power: what was not fsynced may be gone, torn or there, as the seed says.

A node's files are real ones in memory (tmpfs). Beside them this keeps what a disk would still have after a
power cut: the bytes of a file as they were when it was last fsynced, and the names in a folder as they were
when that was. A crash lays out anew, in another folder, what survived; the next start begins from there.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from konsil.simulation.faults import Loss

Survival = Literal["least", "most", "some"]
"""What is left of that which was not fsynced: nothing, everything, or each by lot."""

_TORN = ("gone", "torn", "zeros", "whole")


@dataclass(frozen=True)
class Content:
    """A file's bytes and when they were written."""

    data: bytes
    written_ns: int


@dataclass
class Folder:
    """The names in a folder that are on the disk for sure: name -> inode."""

    names: dict[str, int] = field(default_factory=dict)


class Disk:
    """One member's disk. ``folder``: where its node's files lie now; ``refuses``: errno of every write, or 0.

    ``databases``: of each, the files as they are on the disk for sure.
    """

    def __init__(self, place: Path, name: str, clock_ns: Callable[[], int]) -> None:
        """Begin with an empty folder; ``clock_ns`` gives the time that files are written at."""
        self.name = name
        self.refuses = 0
        self.databases: dict[str, dict[str, bytes]] = {}
        self._place = place
        self._clock_ns = clock_ns
        self._lives = 0
        self.folder = self._new_folder()
        self._start_anew()

    def _new_folder(self) -> Path:
        self._lives += 1
        folder = self._place / f"{self.name}.{self._lives}"
        folder.mkdir(mode=0o700)
        return folder

    def _start_anew(self) -> None:
        """What is there now is on the disk for sure."""
        self._contents: dict[int, Content] = {}
        self._folders: dict[str, Folder] = {}
        for path in (self.folder, *sorted(self.folder.rglob("*"))):
            if path.is_dir():
                self._folders[self._key(path)] = Folder(_names(path))
            elif not _is_database(path.name):
                self._contents[path.stat().st_ino] = _content(path)

    def _key(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    # --- what the system is asked to do ----------------------------------------------------------

    def check(self) -> None:
        """Refuse a write while the disk refuses.

        Raises:
            OSError: it is full or broken.
        """
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))

    def fsync(self, descriptor: int, path: Path) -> None:
        """A file or folder is on the disk from here on.

        Raises:
            OSError: the disk is full or broken.
        """
        self.check()
        if not path.exists():
            return  # removed under whoever has it open: nobody can ask for it again
        if path.is_dir():
            self._folders[self._key(path)] = Folder(_names(path))
            return
        now_ns = self._clock_ns()
        os.utime(
            descriptor, ns=(now_ns, now_ns)
        )  # real time hardly passes here, and files are told apart by it
        status = os.fstat(descriptor)
        self._contents[status.st_ino] = Content(path.read_bytes(), now_ns)

    def keep_database(self, path: Path) -> None:
        """A database's last commit is on the disk for sure."""
        group = self.databases[str(path.relative_to(self.folder))] = {}
        for suffix in ("", "-wal"):
            file = path.with_name(path.name + suffix)
            if file.exists():
                group[file.name] = file.read_bytes()

    # --- what would survive ----------------------------------------------------------------------

    def surely(self, path: str) -> bytes | None:
        """A file's bytes as they survive the worst crash now; None if it does not."""
        at = ""
        *folders, name = Path(path).parts
        key = "."
        for folder in folders:
            if folder not in self._folders.get(key, Folder()).names:
                return None
            at = f"{at}/{folder}" if at else folder
            key = at
        inode = self._folders.get(key, Folder()).names.get(name)
        content = self._contents.get(inode) if inode is not None else None
        return content.data if content is not None else None

    def has(self, database: str, data: bytes) -> bool:
        """Whether something stands in a database, as it survives the worst crash now."""
        return any(data in file for file in self.databases.get(database, {}).values())

    def crash(self, loss: Loss, lots: random.Random) -> tuple[str, ...]:
        """Lose what the crash loses; sentences about that. The old folder is left to whoever was at it."""
        survival: Survival = (
            "most" if loss == "killed" else lots.choice(("least", "least", "some", "some", "most"))
        )
        old, said = self.folder, list[str]()
        self.refuses = 0
        new = self._new_folder()
        self._lay_out(old, new, ".", survival, lots, said, torn=loss == "power")
        self.databases = self._databases_of(old, survival, lots)
        for name, group in self.databases.items():
            for file, data in group.items():
                (new / name).with_name(file).write_bytes(data)
        if loss == "killed":
            said = []
        self.folder = new
        self._start_anew()
        return tuple(said)

    def _lay_out(
        self,
        old: Path,
        new: Path,
        key: str,
        survival: Survival,
        lots: random.Random,
        said: list[str],
        *,
        torn: bool,
    ) -> None:
        here = old if key == "." else old / key
        sure, now = self._folders.get(key, Folder()).names, _names(here)
        for name in sorted(sure.keys() | now.keys()):
            place = name if key == "." else f"{key}/{name}"
            if _is_database(name):
                continue
            inode = sure.get(name)
            if inode != now.get(name) and _stays(survival, lots):
                inode = now.get(name)
            elif inode != now.get(name):
                said.append(f"the name {_short(place)} as it was")
            if inode is None:
                continue
            path = here / name
            if path.is_dir():
                (new / place).mkdir(mode=0o700)
                self._lay_out(old, new, place, survival, lots, said, torn=torn)
                continue
            content = self._bytes_of(path, inode, now.get(name), survival, lots, torn=torn)
            if content is None:
                said.append(f"{_short(place)} gone")
                continue
            if torn and inode not in self._contents:
                said.append(f"{_short(place)} with {len(content.data)} bytes")
            target = new / place
            target.write_bytes(content.data)
            os.utime(target, ns=(content.written_ns, content.written_ns))

    def _bytes_of(
        self, path: Path, inode: int, live: int | None, survival: Survival, lots: random.Random, *, torn: bool
    ) -> Content | None:
        known = self._contents.get(inode)
        if inode != live:
            return known
        actual = _content(path)
        if not torn or (known is not None and known.data == actual.data):
            return actual if known is None else known
        fate = {"least": "gone", "most": "whole"}.get(survival) or lots.choice(_TORN)
        if fate == "gone":
            return known if known is not None else Content(b"", actual.written_ns)
        if fate == "torn":
            return Content(actual.data[: lots.randrange(len(actual.data) + 1)], actual.written_ns)
        if fate == "zeros":
            return Content(bytes(len(actual.data)), actual.written_ns)
        return actual

    def _databases_of(
        self, old: Path, survival: Survival, lots: random.Random
    ) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for path in sorted(old.rglob("*.db")):
            name = str(path.relative_to(old))
            if _stays(survival, lots):
                files = (path, path.with_name(path.name + "-wal"))
                found[name] = {file.name: file.read_bytes() for file in files if file.exists()}
            else:
                found[name] = dict(self.databases.get(name, {}))
            log = path.name + "-wal"
            if survival == "some" and found[name].get(log):
                found[name][log] += lots.randbytes(lots.randrange(3000))  # a write that was under way
        return found

    def leave(self) -> None:
        """Remove every file."""
        for life in range(1, self._lives + 1):
            shutil.rmtree(self._place / f"{self.name}.{life}", ignore_errors=True)


def _stays(survival: Survival, lots: random.Random) -> bool:
    return survival == "most" or (survival == "some" and lots.random() < 1 / 2)


def _names(folder: Path) -> dict[str, int]:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _content(path: Path) -> Content:
    return Content(path.read_bytes(), path.stat().st_mtime_ns)


def _is_database(name: str) -> bool:
    return name.endswith((".db", ".db-wal", ".db-shm", ".lock"))


def _short(place: str) -> str:
    """A file's name as far as a reader needs it."""
    folder, _, name = place.rpartition("/")
    stem, dot, suffix = name.strip(".").partition(".")
    return f"{folder}/{stem[:8]}{dot}{suffix.rpartition('.')[2]}"


FULL, BROKEN = errno.ENOSPC, errno.EIO
"""What a disk that refuses says."""
