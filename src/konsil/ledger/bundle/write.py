"""Make an audit bundle from a member's own journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from konsil.core.digest import bytes_digest, digesting
from konsil.core.rules import Genesis, entry_digest, genesis_digest, initial_state
from konsil.errors import ConfigError
from konsil.files import BY_UMASK, write_whole
from konsil.ledger.bundle.lines import (
    DIGEST,
    Bundle,
    CardLine,
    End,
    EntryLine,
    GenesisLine,
    Line,
    ProofLine,
    encode_line,
)
from konsil.ledger.bundle.members import Records
from konsil.ledger.bundle.proof import Proof, local_proof
from konsil.ledger.bundle.summary import summary
from konsil.ledger.history import Verify, replaying
from konsil.ledger.journal import Journal

PIECE_BYTES = 256 * 1024
"""What is written at once."""


class Written(NamedTuple):
    """What is in a bundle. ``cards``: how many; ``lacking``: members whose card this node does not have;
    ``proof``: whether the engine's proof is in it.
    """

    height: int
    head: str
    cards: int
    lacking: tuple[str, ...]
    proof: bool


def write_bundle(
    path: Path,
    genesis: Genesis,
    journal_path: Path,
    check: Verify,
    card: Callable[[str], bytes | None],
    proof: Callable[[str], Proof | None] | None = None,
) -> Written:
    """Write a whole history to a file, which is there whole or not at all; an older one gives way.

    Args:
        path: of the file.
        genesis: what the members agreed on.
        journal_path: this member's journal; it may be in use.
        check: whether a signature is that of a public key (hex) over some bytes.
        card: the bytes of a card by its digest, if it is here.
        proof: what the engine says for the last entry's digest, if it can; by default what follows from
            the genesis alone.

    Raises:
        JournalCorrupt: the history does not replay; names the height and why.
        ConfigError: no journal there, one of another genesis, or the file cannot be written.
    """
    with Journal(journal_path, genesis_digest(genesis), read_only=True) as journal:
        telling = _Telling(genesis, journal, check, card, proof or (lambda _head: local_proof(genesis)))
        try:
            write_whole(path, _pieces(telling.lines()), mode=BY_UMASK)
        except OSError as error:
            raise ConfigError(
                f"The audit bundle cannot be written to {path}: {error.strerror}.",
                safe="Nothing was left half written there.",
                do="Name another place.",
            ) from error
    return telling.written


class _Telling:
    """A history on its way into a bundle. ``written``: what went in, once all has."""

    written: Written

    def __init__(
        self,
        genesis: Genesis,
        journal: Journal,
        check: Verify,
        card: Callable[[str], bytes | None],
        proof: Callable[[str], Proof | None],
    ) -> None:
        self._genesis = genesis
        self._journal = journal
        self._check = check
        self._card = card
        self._proof = proof

    def lines(self) -> Iterator[Line]:
        """All lines but the last, in their order, each made when it is asked for."""
        genesis = self._genesis
        yield Bundle()
        yield GenesisLine(msgspec.json.encode(genesis, order="deterministic").decode())
        state, head = initial_state(genesis), genesis_digest(genesis)
        records = Records(state)
        for step in replaying(genesis, self._journal.read(), self._check):
            yield EntryLine.of(step.entry)
            state, head = step.state, entry_digest(step.entry)
            records.note(state)
        for digest in sorted(records.known):
            data = self._card(digest)
            if data is not None and bytes_digest(data, "card") == digest:
                records.has(digest)
                yield CardLine(digest, data.decode())
        for line, _ in summary(state):
            yield line
        proof = self._proof(head)
        if proof is not None:
            yield ProofLine(proof)
        self.written = Written(
            state.height, head, len(records.found), records.lacking(state), proof is not None
        )
        yield End(state.height, head, "")


def _pieces(lines: Iterator[Line]) -> Iterator[bytes]:
    """The lines as bytes; into the last one goes the digest of those before it."""
    digest, piece = digesting(DIGEST), bytearray()
    for line in lines:
        if isinstance(line, End):
            digest.update(bytes(piece))
            yield bytes(piece) + encode_line(replace(line, digest=digest.hexdigest()))
            return
        piece += encode_line(line)
        if len(piece) >= PIECE_BYTES:
            digest.update(bytes(piece))
            yield bytes(piece)
            piece.clear()
