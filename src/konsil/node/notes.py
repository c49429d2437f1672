"""The notes of one study's journal, and how they stand in its file: a line a note, each with its own check.

    a1b2c3d4e5f60718 {"note":"head","study":"aml","notes":2}
    0123456789abcdef {"note":"promise","round":3,"kind":"publish 1 0","digest":"57ec..."}
    fedcba9876543210 {"note":"score","score":{...}}

The file is only ever written whole, so a line that does not hold was not torn: something changed it. The
others still say what was noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.round import Farewell, Promise
from konsil.core.rules import Score

CHECK_DIGITS = 16
"""64 bits: against a disk's and a memory's faults. Whoever may write here holds the member's keys too."""

MAX_BYTES = 16 * 1024 * 1024
"""Of a file that is read: a study has a line a part that it leads, and one a score that is on its way."""


class _Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="note"):
    """Common shape; the tag names the note."""


class _Head(_Note, frozen=True, tag="head"):
    """First: whose notes these are, and how many follow."""

    study: str
    notes: int


class _Promised(_Note, frozen=True, tag="promise"):
    """As ``Promise``."""

    round: int
    kind: str
    digest: str


class _Finished(_Note, frozen=True, tag="farewell"):
    """What training said when it finished."""

    farewell: Farewell


class _Scored(_Note, frozen=True, tag="score"):
    """What training measured."""

    score: Score


_Line = _Head | _Promised | _Finished | _Scored
_decoder: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


@dataclass
class Notes:
    """What is noted of a study. ``promises``: by round and kind; ``scores``: by round."""

    promises: dict[tuple[int, str], str] = field(default_factory=dict)
    farewell: Farewell | None = None
    scores: dict[int, Score] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.promises) + (self.farewell is not None) + len(self.scores)

    def copy(self) -> Notes:
        """The same, to be changed."""
        return Notes(dict(self.promises), self.farewell, dict(self.scores))

    def add(self, promise: Promise) -> None:
        """Note a promise, unless one of its kind is noted. Rounds before its own are accepted: nothing that
        was promised there can be asked for again.
        """
        self.promises = {at: digest for at, digest in self.promises.items() if at[0] >= promise.round}
        self.promises.setdefault((promise.round, promise.kind), promise.digest)


def encode_notes(study: str, notes: Notes) -> bytes:
    """A study's notes as they stand in its file."""
    lines: list[_Line] = [_Head(study, len(notes))]
    lines += [_Promised(number, kind, digest) for (number, kind), digest in notes.promises.items()]
    lines += [_Finished(notes.farewell)] if notes.farewell is not None else []
    lines += [_Scored(score) for score in notes.scores.values()]
    return b"".join(_written(study, msgspec.json.encode(line)) for line in lines)


def _written(study: str, words: bytes) -> bytes:
    return b"%s %s\n" % (check_of(study, words), words)


def check_of(study: str, words: bytes) -> bytes:
    """What stands before a line's words: with the study's name, so that no line of another one holds here."""
    return bytes_digest(b"%s\n%s" % (study.encode(), words), "note")[:CHECK_DIGITS].encode()


def decode_notes(study: str, data: bytes) -> tuple[Notes, tuple[str, ...]]:
    """What a file says, and what is wrong with it: each line that does not hold, and whether some lack."""
    notes, wrong, heads, others = Notes(), list[str](), list[_Head](), 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        note = _read(study, line)
        others += not isinstance(note, _Head)
        match note:
            case None:
                wrong.append(f"line {number} does not hold")
            case _Head():
                heads.append(note)
            case _Promised():
                notes.promises.setdefault((note.round, note.kind), note.digest)
            case _Finished():
                notes.farewell = note.farewell
            case _Scored():
                notes.scores.setdefault(note.score.round, note.score)
    if not wrong and [head.notes for head in heads] != [others]:
        wrong.append(
            "it has not the lines that its first one names" if heads else "its first line is missing"
        )
    return notes, tuple(wrong)


def _read(study: str, line: bytes) -> _Line | None:
    check, _, words = line.partition(b" ")
    if check != check_of(study, words):
        return None
    try:
        return _decoder.decode(words)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # of another version
