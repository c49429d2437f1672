"""A history of the ledger in an fsynced SQLite file: appended to, read back, checked link by link."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from konsil.core.rules import Entry, entry_digest
from konsil.errors import ConfigError, JournalCorrupt, LedgerError, NodeBusy

_TABLES = """
CREATE TABLE meta (
    genesis TEXT NOT NULL,
    height INTEGER NOT NULL,
    head TEXT NOT NULL
) STRICT;
CREATE TABLE entries (
    height INTEGER PRIMARY KEY,
    time_s INTEGER NOT NULL,
    signed BLOB NOT NULL,
    previous TEXT NOT NULL,
    state TEXT NOT NULL,
    digest TEXT NOT NULL
) STRICT;
"""

_POSITION = "CREATE TABLE IF NOT EXISTS engine (position INTEGER NOT NULL) STRICT"
"""For engines that keep blocks: the last block whose calls are in the entries. Empty where there is none."""

_PRIVATE = 0o600
_READ_ROWS = 256
"""Rows that are read at once; an entry has at most 64 KiB, so this bounds a reader's memory at 16 MiB."""

_FAILED = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What SQLite raises. The last two for damaged files: whose own words, which are no text, are in its message;
or in which a record claims to be longer than all memory."""

_COLUMNS = "height, time_s, signed, previous, state, digest"


class Journal:
    """One history on disk. Used by one thread at a time; the file by one process at a time.

    ``height`` and ``head`` (the last entry's digest; the genesis digest when there is none) are those of
    the last entry that is on disk for sure. ``position``: how far in its own history the engine was that gave
    the last entries; 0 for an engine without one.
    """

    def __init__(self, path: Path, genesis: str, *, read_only: bool = False) -> None:
        """Open the journal, or create it, and check every link of its chain.

        Args:
            path: the file; SQLite's own files and a lock lie beside it.
            genesis: the digest of the genesis that this history starts from.
            read_only: write nothing, take no lock; the file must exist.

        Raises:
            NodeBusy: another process has this journal open for writing.
            ConfigError: the journal belongs to another genesis, or is missing where it must exist.
            JournalCorrupt: an entry is missing or was changed; the error names its height.
            LedgerError: the file cannot be opened or written.
        """
        self.path = path
        self.genesis = genesis
        self.height = 0
        self.head = genesis
        self.position = 0
        self._read_only = read_only
        self._broken = ""
        self._lock = -1 if read_only else _lock(path)
        try:
            self._db = _connect(path, read_only=read_only)
            try:
                self._prepare()
                self._check_chain()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            self._unlock()
            raise

    def append(self, entries: Sequence[Entry], position: int = 0) -> None:
        """Write entries that follow the last one; on return they are on disk, all of them.

        Args:
            entries: they may be none.
            position: how far the engine's own history is with them, where it has one.

        Raises:
            LedgerError: the disk is full or failed; none of them was written.
        """
        if self._broken:
            raise self._cannot_write(self._broken)
        rows = []
        head = self.head
        for height, entry in enumerate(entries, self.height + 1):
            if entry.height != height or entry.previous != head:
                raise JournalCorrupt(
                    f"Entry {entry.height} does not follow entry {height - 1} of {self.path.name}.",
                    safe="It was not written.",
                    height=height,
                )
            head = entry_digest(entry)
            rows.append((entry.height, entry.time_s, entry.signed, entry.previous, entry.state, head))
        try:
            self._write(rows, head, position)
        except _FAILED as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            if not _is_full(error):
                # After a failed fsync the system may drop what it could not write and report success next
                # time, so only a new start that reads the file again can be trusted.
                self._broken = str(error) or repr(error)
            raise self._cannot_write(str(error) or repr(error)) from error
        self.height += len(rows)
        self.head = head
        self.position = position or self.position

    def forget_position(self) -> None:
        """The engine's own history is gone: how far it is must not be taken from here.

        Raises:
            LedgerError: the disk is full or failed.
        """
        try:
            self._db.execute("DELETE FROM engine")
        except _FAILED as error:
            raise self._cannot_write(str(error) or repr(error)) from error
        self.position = 0

    def read(self, after: int = 0) -> Iterator[Entry]:
        """Entries above a height, in order, as they stand on disk; each one's link is checked.

        Raises:
            JournalCorrupt: an entry is missing or was changed; the error names its height.
        """
        height, previous = after, self.digest_at(after)
        while True:
            try:
                rows = self._db.execute(
                    f"SELECT {_COLUMNS} FROM entries WHERE height > ? ORDER BY height LIMIT {_READ_ROWS}",  # noqa: S608 - constants only
                    (height,),
                ).fetchall()
            except _FAILED as error:
                raise self._corrupt(height + 1, f"it cannot be read: {str(error) or repr(error)}") from error
            for row in rows:
                height += 1
                entry = Entry(height=row[0], time_s=row[1], signed=row[2], previous=row[3], state=row[4])
                if entry.height != height:
                    raise self._corrupt(height, "it is missing")
                if entry.previous != previous or entry_digest(entry) != row[5]:
                    raise self._corrupt(height, "it was changed, or does not follow the one before it")
                previous = row[5]
                yield entry
            if len(rows) < _READ_ROWS:
                return

    def close(self) -> None:
        """Close the file and let other processes have it. Closing twice is harmless."""
        self._db.close()
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the tables of a new journal; refuse another genesis."""
        try:
            if not self._read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
            exists = self._db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'").fetchone()[0]
            if not exists and not self._read_only:
                self._db.executescript(
                    f"BEGIN IMMEDIATE;{_TABLES}COMMIT;"  # one transaction: all of the tables or none
                )
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("INSERT INTO meta VALUES (?, 0, ?)", (self.genesis, self.genesis))
                self._db.commit()
            if not self._read_only:
                self._db.execute(_POSITION)
                position = self._db.execute("SELECT position FROM engine").fetchone()
                self.position = position[0] if position is not None else 0
            row = self._db.execute("SELECT genesis FROM meta").fetchone()
        except sqlite3.OperationalError as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            raise self._cannot_write(str(error)) from error
        except _FAILED as error:
            raise self._corrupt(1, f"the file cannot be read: {str(error) or repr(error)}") from error
        if row is None:
            raise self._corrupt(1, "the file does not say which genesis it belongs to")
        if row[0] != self.genesis:
            raise ConfigError(
                f"The journal {self.path} is of another swarm: its genesis is {row[0]}, not {self.genesis}.",
                safe="Neither was changed.",
                do="Use the genesis.json that this journal was started with, or another directory.",
                journal=row[0],
                genesis=self.genesis,
            )

    def _check_chain(self) -> None:
        # One snapshot of the file: what a node writes meanwhile must not look like a history that was cut.
        self._read("BEGIN")
        for entry in self.read():
            self.height = entry.height
            self.head = ""
        height, head = self._read("SELECT height, head FROM meta").fetchone()
        self._read("COMMIT")
        self.head = self.digest_at(self.height)
        if (height, head) != (self.height, self.head):
            raise self._corrupt(self.height + 1, f"it and what follows up to entry {height} is missing")

    def _read(self, question: str) -> sqlite3.Cursor:
        try:
            return self._db.execute(question)
        except _FAILED as error:
            raise self._corrupt(
                self.height, f"the file cannot be read: {str(error) or repr(error)}"
            ) from error

    def digest_at(self, height: int) -> str:
        """The digest of an entry; at 0 that of the genesis.

        Raises:
            JournalCorrupt: it is missing, or cannot be read.
        """
        if height == 0:
            return self.genesis
        if height == self.height and self.head:
            return self.head
        try:
            row = self._db.execute("SELECT digest FROM entries WHERE height = ?", (height,)).fetchone()
        except _FAILED as error:
            raise self._corrupt(height, f"it cannot be read: {str(error) or repr(error)}") from error
        if row is None:
            raise self._corrupt(height, "it is missing")
        return str(row[0])

    def _write(self, rows: Sequence[tuple[int, int, bytes, str, str, str]], head: str, position: int) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608 - constants only
        self._db.execute("UPDATE meta SET height = ?, head = ?", (self.height + len(rows), head))
        if position:
            self._db.execute("DELETE FROM engine")
            self._db.execute("INSERT INTO engine VALUES (?)", (position,))
        self._db.commit()  # WAL with synchronous=FULL: returns once the log is on disk

    def _unlock(self) -> None:
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _corrupt(self, height: int, why: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"The ledger's journal {self.path} is damaged at entry {height}: {why}.",
            safe="Nothing was changed. The other members have the whole history.",
            do="Move the file away. A member that follows fetches the history again; an operator restores "
            "the copy of any other member.",
            height=height,
        )

    def _cannot_write(self, why: str) -> LedgerError:
        return LedgerError(
            f"The ledger's journal {self.path} cannot be written: {why}.",
            safe="Nothing was promised, and all that was accepted before is kept.",
            do="Free disk space or see the disk's health; after a failed disk, restart the node.",
        )


def _is_full(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if read_only and not path.is_file():
        raise ConfigError(
            f"There is no journal at {path}.",
            safe="Nothing was changed.",
            do="Start the node once, or name the file.",
        )
    try:
        if not read_only:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE))
        mode = "ro" if read_only else "rw"
        # One thread at a time is the caller's promise; SQLite itself is built to be called from any.
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"The ledger's journal {path} cannot be opened: {error}.",
            safe="Nothing was changed.",
            do="See the directory's owner and permissions, and whether the disk is full.",
        ) from error


def _lock(path: Path) -> int:
    """Hold the journal for this process until the descriptor is closed, which the end of it does too."""
    place = path.with_name(path.name + ".lock")
    try:
        # Not the database file itself: closing any descriptor of it would drop SQLite's own locks.
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    except OSError as error:
        raise LedgerError(
            f"The lock {place} cannot be made: {error.strerror}.",
            safe="Nothing was changed.",
            do="See the directory's owner and permissions, and whether the disk is full.",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise NodeBusy(
            f"Another process has the ledger's journal {path} open.",
            safe="Nothing was changed.",
            do="Only one node may run in a directory: stop the other one first.",
        ) from error
    return lock
