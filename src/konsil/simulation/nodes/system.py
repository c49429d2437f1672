"""Between the nodes and the system: who asks for a file's safety is heard by the simulated disk.

While a world runs, the few functions of ``os`` and ``sqlite3`` that decide what survives a power cut go by
the disk whose folder they are about. What is about other files goes straight on.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

from konsil.simulation.nodes.disk import BROKEN, Disk
from konsil.simulation.nodes.scope import replaced

DURABLE = 2
"""``PRAGMA synchronous`` from FULL on: only then a commit in a write-ahead log is on the disk when it
returns."""

_READS = ("SELECT", "PRAGMA", "ROLLBACK", "COMMIT")


class Watched(sqlite3.Connection):
    """A connection whose commits are noticed. ``disk`` and ``place`` are set by whoever opens it."""

    disk: Disk
    place: Path
    _written = False

    def _about_to(self, sql: str) -> None:
        if sql.lstrip().upper().startswith(_READS):
            return
        self._written = True
        if self.disk.refuses and self.disk.folder in self.place.parents:
            broken = self.disk.refuses == BROKEN
            error = sqlite3.OperationalError("disk I/O error" if broken else "database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR if broken else sqlite3.SQLITE_FULL
            raise error

    def _settled(self) -> None:
        """After each statement: a commit under a promise of durability is on the disk."""
        if not self._written or self.in_transaction:
            return
        self._written = False
        (synchronous,) = super().execute("PRAGMA synchronous").fetchone()
        if synchronous >= DURABLE and self.disk.folder in self.place.parents:
            self.disk.keep_database(self.place)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        """As the class above."""
        self._about_to(sql)
        cursor = super().execute(sql, *parameters)
        self._settled()
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any]) -> sqlite3.Cursor:
        """As the class above."""
        self._about_to(sql)
        cursor = super().executemany(sql, parameters)
        self._settled()
        return cursor

    def executescript(self, sql_script: str) -> sqlite3.Cursor:
        """As the class above."""
        self._about_to(sql_script)
        cursor = super().executescript(sql_script)
        self._settled()
        return cursor

    def commit(self) -> None:
        """As the class above."""
        super().commit()
        self._settled()

    def __enter__(self) -> Self:
        return super().__enter__()

    def __exit__(self, *error: object) -> Any:
        outcome = super().__exit__(*cast("Any", error))
        self._settled()
        return outcome


@contextmanager
def watched(disks: Iterable[Disk]) -> Iterator[None]:
    """Let these disks hear what is asked of the system while the ``with`` lasts."""
    known = tuple(disks)

    def disk_of(path: Path) -> Disk | None:
        """The disk with a file that its node uses now; files of a node that has crashed are nobody's."""
        return next((disk for disk in known if disk.folder in (path, *path.parents)), None)

    fsync, opened, mkdir, replace, connect = os.fsync, os.open, os.mkdir, os.replace, sqlite3.connect

    def watched_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = Path(f"/proc/self/fd/{number}").readlink()
        disk = disk_of(path)
        if disk is None:
            fsync(number)
        else:
            disk.fsync(number, path)

    def refusing(function: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def instead(path: Any, *rest: Any, **options: Any) -> Any:
            if writes(*rest):
                disk = disk_of(Path(path))
                if disk is not None:
                    disk.check()
            return function(path, *rest, **options)

        return instead

    def watched_connect(database: Any, *rest: Any, **options: Any) -> sqlite3.Connection:
        place = Path(unquote(urlsplit(database).path) if str(database).startswith("file:") else database)
        disk = disk_of(place)
        if disk is None:
            return cast("sqlite3.Connection", connect(database, *rest, **options))
        made: Any = connect(database, *rest, factory=Watched, **options)
        made.disk, made.place = disk, place
        return cast("sqlite3.Connection", made)

    with (
        replaced(os, "fsync", watched_fsync),
        replaced(os, "open", refusing(opened, lambda flags, *_: bool(flags & os.O_CREAT))),
        replaced(os, "mkdir", refusing(mkdir, lambda *_: True)),
        replaced(os, "replace", refusing(replace, lambda *_: True)),
        replaced(sqlite3, "connect", watched_connect),
    ):
        yield
