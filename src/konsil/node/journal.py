"""What this node promised, and what it was told last: written and fsynced before anything relies on it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from konsil.core.round import Farewell, Promise
from konsil.errors import LedgerError, NodeError

_FAILED = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""What SQLite raises. The last two for damaged files: whose own words, which are no text, are in its message;
or in which a record claims to be longer than all memory."""

_TABLES = """
CREATE TABLE IF NOT EXISTS promises (
    study TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (study, round, kind)
) STRICT;
CREATE TABLE IF NOT EXISTS farewells (
    study TEXT NOT NULL PRIMARY KEY,
    words BLOB NOT NULL
) STRICT;
"""


class Journal:
    """The promises of one node, and its training processes' last words. Any thread may use it."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            NodeError: the file is damaged, or the disk refuses.
        """
        self.path = path
        self._turn = threading.Lock()  # closing SQLite under a thread that writes ends the whole process
        self._closed = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as error:
            raise _cannot_open(path, error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        except _FAILED as error:
            self._db.close()
            raise _cannot_open(path, error) from error

    def promise(self, promise: Promise) -> None:
        """Write a published part down, before the ledger hears of it.

        Raises:
            NodeError: another digest was promised before.
            LedgerError: the disk is full or failed; nothing was promised.
        """
        try:
            with self._turn:
                self._require_open()
                self._write(promise)
                promised = self._promised(promise.study, promise.round, promise.kind)
        except _FAILED as error:
            raise LedgerError(
                f"The promise for round {promise.round} of study {promise.study!r} could not be written: "
                f"{str(error) or repr(error)}.",
                safe="Nothing was promised and nothing said to the ledger; accepted rounds are safe.",
                do="Free disk space; the node tries again by itself.",
            ) from error
        if promised != promise.digest:
            raise NodeError(
                f"This node promised {promised} as '{promise.kind}' of round {promise.round} of study "
                f"{promise.study!r} and would now promise {promise.digest}.",
                safe="The second promise was not made.",
                do="One merge has one result: check this machine's memory. Others lead the part then.",
            )

    def _write(self, promise: Promise) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR IGNORE INTO promises VALUES (?, ?, ?, ?)",
                (promise.study, promise.round, promise.kind, promise.digest),
            )
            # Rounds before this one are accepted: nothing that was promised there can be asked for again.
            self._db.execute(
                "DELETE FROM promises WHERE study = ? AND round < ?", (promise.study, promise.round)
            )

    def promised(self, study: str, round_number: int, kind: str) -> str:
        """The digest promised, or ""."""
        with self._turn:
            self._require_open()
            return self._promised(study, round_number, kind)

    def _promised(self, study: str, round_number: int, kind: str) -> str:
        row = self._db.execute(
            "SELECT digest FROM promises WHERE study = ? AND round = ? AND kind = ?",
            (study, round_number, kind),
        ).fetchone()
        return str(row[0]) if row else ""

    # --- last words --------------------------------------------------------------------------------

    def note_farewell(self, study: str, farewell: Farewell | None) -> None:
        """Write down what a training process said when it finished, which nobody says again.

        Args:
            study: its study.
            farewell: what it said; None once a training process has come back.

        Raises:
            LedgerError: the disk is full or failed.
        """
        try:
            with self._turn:
                self._require_open()
                if farewell is not None:
                    words = msgspec.json.encode(farewell)
                    self._db.execute("INSERT OR REPLACE INTO farewells VALUES (?, ?)", (study, words))
                elif self._farewell(study) is not None:
                    self._db.execute("DELETE FROM farewells WHERE study = ?", (study,))
        except _FAILED as error:
            raise LedgerError(
                f"What training said when it finished study {study!r} could not be written: "
                f"{str(error) or repr(error)}.",
                safe="Nothing was said to the ledger; accepted rounds are safe.",
                do="Free disk space, and finish again.",
            ) from error

    def farewell(self, study: str) -> Farewell | None:
        """What the last training process said when it finished; None if it has not, or has come back.

        Raises:
            NodeError: the file is damaged.
        """
        try:
            with self._turn:
                self._require_open()
                return self._farewell(study)
        except _FAILED as error:
            raise _cannot_open(self.path, error) from error

    def _farewell(self, study: str) -> Farewell | None:
        row = self._db.execute("SELECT words FROM farewells WHERE study = ?", (study,)).fetchone()
        try:
            return msgspec.json.decode(row[0], type=Farewell) if row else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # another version's words

    def close(self) -> None:
        """Close the file, once whoever writes has written. Closing twice is harmless."""
        with self._turn:
            self._closed = True
            self._db.close()

    def _require_open(self) -> None:
        if self._closed:
            raise LedgerError("The node is stopping.", safe="Nothing was promised.", do="Start it again.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cannot_open(path: Path, error: Exception) -> NodeError:
    return NodeError(
        f"The node's journal {path} cannot be opened: {str(error) or repr(error)}.",
        safe="The ledger and the last accepted merge are in other files and untouched.",
        do="See the file's owner and the disk. If it is damaged, move it away: the node then goes on with "
        "the next round.",
    )
