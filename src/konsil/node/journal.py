"""What this node promised, and what it was told, of each study: on disk before anything relies on it.

A file a study, so that damage concerns one study. A node that finds a study's file damaged makes no promise
in it and takes no part in it until somebody has it mended; one whose file is gone, or was mended, does not
promise where it may have promised something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from konsil.core.round import Farewell, Promise
from konsil.core.rules import Score
from konsil.errors import LedgerError, NodeBusy, NodeError
from konsil.files import remove_unfinished, write_whole
from konsil.node.notes import MAX_BYTES, Notes, decode_notes, encode_notes

SUFFIX = ".notes"

_log = structlog.get_logger(__name__)


class Mended(NamedTuple):
    """What came of mending. ``kept``: how many notes could still be read; ``aside``: where the damaged file
    is now, None if what is there now is whole, or there is none; ``unknown``: how many promises are not made
    in the attempt that was open, since others may have been.
    """

    kept: int
    aside: Path | None
    unknown: int


class Journal:
    """The journals of a node's studies. Any thread may use it."""

    def __init__(self, directory: Path) -> None:
        """Use a directory that exists; nothing is read yet."""
        self.directory = directory
        self._studies: dict[str, StudyJournal] = {}
        self._closed = False

    def of(self, study: str) -> StudyJournal:
        """One study's; it is to be opened first."""
        if study not in self._studies:
            made = self._studies[study] = StudyJournal(self.directory / f"{study}{SUFFIX}", study)
            if self._closed:
                made.close()
        return self._studies[study]

    def close(self) -> None:
        """Write nothing from here on; whoever writes is let finish. Closing twice is harmless."""
        self._closed = True
        for each in self._studies.values():
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class StudyJournal:
    """One study's journal. Any thread may use it.

    Nothing is believed to be written before it is on disk; what could not be written is written with the next
    note, since the file is always written whole.
    """

    def __init__(self, path: Path, study: str) -> None:
        """Read nothing yet."""
        self.path = path
        self.study = study
        self._wrong: tuple[str, ...] = ()
        self._was_read = True
        self._turn = threading.Lock()  # held while the disk works: never to be waited for on the event loop
        self._known = threading.Lock()  # guards the two below, for moments
        self._notes = Notes()
        self._forgotten: dict[int, Score] = {}  # since the note that is being written was begun
        self._unknown: tuple[Promise, ...] = ()
        self._opened = self._closed = False

    @property
    def damage(self) -> NodeBusy | None:
        """Why it must be mended first, None if it need not; anew each time, since what is raised keeps alive
        all that it passed.
        """
        return damaged(self.path, self.study, self._wrong) if self._wrong else None

    def open(self, unknown: Iterable[Promise] = ()) -> None:
        """Read the file, or begin it. What is wrong with it stands in ``damage`` afterwards.

        Args:
            unknown: what this node may have promised if its file is not there, or does not say it.

        Raises:
            LedgerError: the node is stopping.
        """
        with self._turn:
            self._require_running()
            remove_unfinished(self.path)
            self._opened, self._unknown, self._was_read = True, tuple(unknown), True
            try:
                self._notes, self._wrong = _read(self.path, self.study)
            except FileNotFoundError:
                self._wrong = ()
                self._begin()
            except OSError as error:
                self._notes, self._wrong, self._was_read = Notes(), _unreadable(error), False

    def _begin(self) -> None:
        notes = Notes()
        for promise in self._unknown:
            notes.add(promise)
        try:
            self._write(notes)
        except OSError as error:
            self._notes = notes  # the next note is written with these, or not at all
            _log.warning("a study's journal cannot be begun yet", study=self.study, why=error.strerror)

    def mend(self, unknown: Iterable[Promise] = ()) -> Mended:
        """Read the file again; put it aside if it is damaged still, and go on with what it says.

        Args:
            unknown: what this node may have promised, as the study stands now.

        Raises:
            NodeError: there is nothing to mend, or the file cannot be read.
            LedgerError: the disk refuses, or the node is stopping; nothing was changed.
        """
        with self._turn:
            self._require_running()
            if not self._wrong:
                raise NodeError(
                    f"The journal of study {self.study!r} at this node is as it must be.",
                    safe="Nothing was changed.",
                )
            notes, wrong = self._read_again()
            kept = len(notes)
            # What could not be read before, and is whole, is believed; another file in its place is not.
            doubt = (*self._unknown, *unknown) if wrong or self._was_read else ()
            for promise in doubt:
                notes.add(promise)
            self._write_mended(
                notes, aside := _free_name(self.path) if wrong and self.path.exists() else None
            )
            self._wrong = ()
            return Mended(kept, aside, sum(not digest for digest in notes.promises.values()))

    def _read_again(self) -> tuple[Notes, tuple[str, ...]]:
        try:
            notes, wrong = _read(self.path, self.study)
        except FileNotFoundError:
            return self._notes.copy(), self._wrong
        except OSError as error:
            raise NodeError(
                f"The journal of study {self.study!r} at this node, {self.path}, cannot be read: "
                f"{error.strerror or error}.",
                safe="Nothing was changed: what it says may well be whole.",
                do="See the disk's health and the file's owner and mode, then try again. If it can never be "
                "read again, move it away; then the same command goes on without it.",
                study=self.study,
            ) from error
        for (number, kind), digest in self._notes.promises.items():
            notes.promises.setdefault((number, kind), digest)
        return notes, wrong

    def _write_mended(self, notes: Notes, aside: Path | None) -> None:
        try:
            if aside is not None:
                _copy(self.path, aside)
            self._write(notes)
        except OSError as error:
            if aside is not None:
                with contextlib.suppress(OSError):
                    aside.unlink(missing_ok=True)
            raise LedgerError(
                f"The journal of study {self.study!r} could not be mended: {error.strerror or error}.",
                safe="The damaged file is as it was, and the study is still stopped at this node.",
                do="Free disk space, or see the disk's health; then mend it again.",
            ) from error

    # --- promises ----------------------------------------------------------------------------------

    def promise(self, promise: Promise) -> None:
        """Write a published part down, before the ledger hears of it.

        Raises:
            NodeError: another digest was promised before, or may have been; or the file is damaged.
            LedgerError: the disk is full or failed; nothing was promised.
        """
        what = f"The promise for round {promise.round} of study {promise.study!r}"
        with self._turn:
            before = self._notes.promises.get((promise.round, promise.kind))
            if before is None:
                self._change(what, lambda notes: notes.add(promise))
            else:
                self._require_usable()
        if before == "":
            raise NodeError(
                f"This node does not know any more what it promised as '{promise.kind}' of round "
                f"{promise.round} of study {promise.study!r}: its journal was gone or damaged.",
                safe="Nothing is promised in that attempt; others lead the part once its time is up.",
                do="Nothing: from the next attempt on this node takes part as before.",
            )
        if before not in (None, promise.digest):
            raise NodeError(
                f"This node promised {before} as '{promise.kind}' of round {promise.round} of study "
                f"{promise.study!r} and would now promise {promise.digest}.",
                safe="The second promise was not made.",
                do="One merge has one result: check this machine's memory. Others lead the part then.",
            )

    # --- what training said ------------------------------------------------------------------------

    @property
    def farewell(self) -> Farewell | None:
        """What the last training process said when it finished; None if it has not, or has come back."""
        return self._notes.farewell

    def note_farewell(self, farewell: Farewell | None) -> None:
        """Write down what a training process said when it finished, which nobody says again.

        Args:
            farewell: what it said; None once a training process has come back.

        Raises:
            NodeError: the file is damaged.
            LedgerError: the disk is full or failed.
        """

        def change(notes: Notes) -> None:
            notes.farewell = farewell

        with self._turn:
            if farewell != self._notes.farewell:
                what = f"What training said when it finished study {self.study!r}"
                self._change(what, change, again="let training join and finish again.")

    @property
    def scores(self) -> tuple[Score, ...]:
        """What training measured and the ledger has perhaps not heard of."""
        return tuple(self._notes.scores.values())

    def note_score(self, score: Score) -> None:
        """Write down what training measured, before it is told that this is known.

        Raises:
            NodeError: the file is damaged.
            LedgerError: the disk is full or failed.
        """
        with self._turn:
            if score.round not in self._notes.scores:
                what = f"The scores of round {score.round} of study {self.study!r}"
                most = MAX_BYTES // 2  # the rest is for promises, which nobody can do without
                self._change(what, lambda notes: notes.scores.setdefault(score.round, score), most)

    def forget_score(self, score: Score) -> None:
        """The ledger has these scores, or will never take them. The file goes without them when next written:
        what it says until then is said to the ledger once more, which knows it. It waits for no disk.
        """
        with self._known:
            self._forgotten[score.round] = score
            if self._notes.scores.get(score.round) == score:
                del self._notes.scores[score.round]

    # --- inside ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write nothing from here on."""
        with self._turn:
            self._closed = True

    def _require_running(self) -> None:
        if self._closed:
            raise LedgerError("The node is stopping.", safe="Nothing was promised.", do="Start it again.")

    def _require_usable(self) -> None:
        if self._closed or not self._opened:  # what was not read must not be written over
            raise LedgerError("The node is stopping.", safe="Nothing was promised.", do="Start it again.")
        if (damage := self.damage) is not None:
            raise damage

    def _change(
        self,
        what: str,
        change: Callable[[Notes], object],
        most: int = MAX_BYTES,
        again: str = "the node tries again by itself.",
    ) -> None:
        self._require_usable()
        with self._known:
            notes = self._notes.copy()
            self._forgotten.clear()
        change(notes)
        try:
            self._write(notes, most)
        except OSError as error:
            raise _refused_by_the_disk(what, error, again) from error

    def _write(self, notes: Notes, most: int = MAX_BYTES) -> None:
        data = encode_notes(self.study, notes)
        if len(data) > most:  # a longer one would be taken for damage
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        write_whole(self.path, [data])
        with self._known:
            for number, score in self._forgotten.items():
                if notes.scores.get(number) == score:
                    del notes.scores[number]
            self._notes = notes


def damage_in(directory: Path) -> dict[str, NodeBusy]:
    """What is wrong with the journals in a directory, by study. Reads them and changes nothing.

    Raises:
        OSError: the directory cannot be read, which says nothing of what is in it.
    """
    found: dict[str, NodeBusy] = {}
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))
    except FileNotFoundError:  # a node that has not run yet
        return found
    for path in (directory / name for name in names):
        study = path.name.removesuffix(SUFFIX)
        try:
            _, wrong = _read(path, study)
        except FileNotFoundError:
            continue
        except OSError as error:
            wrong = _unreadable(error)
        if wrong:
            found[study] = damaged(path, study, wrong)
    return found


def damaged(path: Path, study: str, wrong: tuple[str, ...]) -> NodeBusy:
    """What is told of a study whose journal is damaged. A training process that was there before waits for it
    to be mended, as it does for a node that is away.
    """
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return NodeBusy(
        f"The journal of study {study!r} at this node, {path}, is damaged: {wrong[0]}{more}.",
        safe="The ledger, the models and all other studies are untouched. Until it is mended this node takes "
        "no part in the study and promises nothing there; the other members go on.",
        do=f"See the disk's health, then `konsil study mend {study}`: the node goes on with what the "
        "journal still says.",
        study=study,
    )


def _read(path: Path, study: str) -> tuple[Notes, tuple[str, ...]]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return Notes(), (f"it has more than {MAX_BYTES} bytes",)
    return decode_notes(study, data)


def _unreadable(error: OSError) -> tuple[str, ...]:
    return (f"it cannot be read: {error.strerror or error}",)


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}")).exists():
        number += 1
    return aside


def _copy(path: Path, aside: Path) -> None:
    """Keep a damaged file under another name, for whoever wants to see it. Not every disk has hard links."""
    with path.open("rb") as file:
        write_whole(aside, iter(lambda: file.read(1024 * 1024), b""))


def _refused_by_the_disk(what: str, error: OSError, again: str) -> LedgerError:
    return LedgerError(
        f"{what} could not be written: {error.strerror or error}.",
        safe="Nothing was promised and nothing said to the ledger; accepted rounds are safe.",
        do=f"Free disk space, or see the disk's health; {again}",
    )
