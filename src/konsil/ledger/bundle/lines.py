"""What stands in an audit bundle: JSON Lines, each of one kind and in one form only.

Texts that a digest or a signature stands for are in it as JSON strings, byte for byte: whatever reads JSON
has them again, whichever way it would write numbers itself. Nothing is compressed, so that the same history
gives the same bytes with every library, and nothing small can become large.
"""

from __future__ import annotations

from typing import BinaryIO, Literal, TypeVar

import msgspec

from konsil.core.digest import digesting
from konsil.core.rules import Entry
from konsil.errors import JournalCorrupt
from konsil.ledger.bundle.proof import Proof

BUNDLE_VERSION = 1
SUFFIX = ".konsil-audit"
DIGEST = "audit bundle"
"""What the last line's digest is of, as ``konsil.core.digest.bytes_digest`` has it."""

MAX_LINE_BYTES = 4 * 1024 * 1024
"""A genesis has at most 1 MiB, an entry or a card 64 KiB; quotation marks in them count twice here."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """Common shape: no unknown fields; the first field, ``kind``, names the line."""


class Bundle(_Line, frozen=True, tag="bundle"):
    """The first line: what this file is."""

    format: Literal["konsil-audit-bundle"] = "konsil-audit-bundle"
    version: int = BUNDLE_VERSION


class GenesisLine(_Line, frozen=True, tag="genesis"):
    """The genesis as canonical JSON; its digest is over this text."""

    text: str


class EntryLine(_Line, frozen=True, tag="entry"):
    """An entry of the ledger. ``signed``: the signed call's bytes, which are JSON."""

    height: int
    time_s: int
    signed: str
    previous: str
    state: str

    @classmethod
    def of(cls, entry: Entry) -> EntryLine:
        """The line of an entry."""
        return cls(entry.height, entry.time_s, entry.signed.decode(), entry.previous, entry.state)

    def entry(self) -> Entry:
        """The entry that it is of."""
        return Entry(self.height, self.time_s, self.signed.encode(), self.previous, self.state)


class CardLine(_Line, frozen=True, tag="card"):
    """A member's card: the bytes of its file. ``digest``: as the ledger has it."""

    digest: str
    text: str


class StateLine(_Line, frozen=True, tag="state"):
    """The contract's state after the last entry, without its studies, as canonical JSON."""

    text: str


class StudyLine(_Line, frozen=True, tag="study"):
    """A study after the last entry, without its accepted rounds, as canonical JSON."""

    name: str
    text: str


class RoundLine(_Line, frozen=True, tag="round"):
    """An accepted round of the study before it, as canonical JSON; its digest is over this text."""

    study: str
    number: int
    text: str


class ProofLine(_Line, frozen=True, tag="proof"):
    """What the ledger's engine says for the last entry, beyond what the members signed."""

    proof: Proof


class End(_Line, frozen=True, tag="end"):
    """The last line. ``head``: digest of the last entry; ``digest``: over all bytes before this line."""

    height: int
    head: str
    digest: str


Line = (
    Bundle | GenesisLine | EntryLine | CardLine | StateLine | StudyLine | RoundLine | ProofLine | End
)  # fmt: skip

_encoder = msgspec.json.Encoder(order="deterministic")

T = TypeVar("T", bound=Line)


def encode_line(line: Line) -> bytes:
    """A line with its end."""
    return _encoder.encode(line) + b"\n"


class Lines:
    """A bundle that is read line by line: never more than one line of it is in memory."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        """Read from the beginning. ``name``: of the file, for messages."""
        self._stream = stream
        self._name = name
        self._digest = digesting(DIGEST)
        self._ahead = b""  # the beginning of the next line, as far as it was looked at
        self._taken = 0
        self._looked_at = 0

    @property
    def digest(self) -> str:
        """The digest of all lines that were taken."""
        return self._digest.hexdigest()

    def take(self, kind: type[T]) -> T:
        """The next line, which must be of this kind.

        Raises:
            JournalCorrupt: it is another, over the limit, no line, or not in its one form.
        """
        line = self.take_if(kind)
        if line is None:
            raise self.bad(f"there must be a line of the kind '{kind.__struct_config__.tag}'")
        return line

    def take_if(self, kind: type[T]) -> T | None:
        """The next line if it is of this kind; None, and it stays the next one, if it is not.

        Raises:
            JournalCorrupt: as ``take``.
        """
        self._looked_at = self._taken + 1
        beginning = f'{{"kind":"{kind.__struct_config__.tag}"'.encode()
        if len(self._ahead) < len(beginning):
            self._ahead += self._stream.read(len(beginning) - len(self._ahead))
        if not self._ahead.startswith(beginning):
            return None
        data = self._line()
        try:
            line = msgspec.json.decode(data, type=kind)
            same = encode_line(line) == data
        except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError) as error:
            raise self.bad(f"it cannot be read: {error}") from error
        if not same:
            raise self.bad("it is not in its one form")
        self._took(data)
        return line

    def expect(self, line: Line, what: str) -> None:
        """See that the next line is exactly this one; however long it is, no more than that is read.

        Raises:
            JournalCorrupt: it is another.
        """
        self._looked_at = self._taken + 1
        expected = encode_line(line)
        data = self._ahead + self._stream.read(max(0, len(expected) - len(self._ahead)))
        data, self._ahead = data[: len(expected)], data[len(expected) :]
        if data != expected:
            raise self.bad(f"{what} is not what the calls give")
        self._took(data)

    def end(self) -> None:
        """See that nothing follows.

        Raises:
            JournalCorrupt: something does.
        """
        self._looked_at = self._taken + 1
        if self._ahead or self._stream.read(1):
            raise self.bad("nothing may follow the line of the kind 'end'")

    def bad(self, why: str) -> JournalCorrupt:
        """What is wrong with the line that was looked at last."""
        return JournalCorrupt(
            f"The audit bundle {self._name} does not hold at line {self._looked_at}: {why}.",
            safe="Nothing was changed, and nothing in this file should be believed.",
            do="Get it again, from another member too, and compare the two.",
            line=self._looked_at,
        )

    def _line(self) -> bytes:
        head, newline, rest = self._ahead.partition(b"\n")
        if newline:
            data, self._ahead = head + newline, rest
        else:
            data, self._ahead = head + self._stream.readline(MAX_LINE_BYTES - len(head)), b""
        if not data.endswith(b"\n"):
            over = f"it is over the limit of {MAX_LINE_BYTES} bytes"
            raise self.bad(over if len(data) >= MAX_LINE_BYTES else "the file ends in it")
        return data

    def _took(self, data: bytes) -> None:
        self._digest.update(data)
        self._taken += 1
