"""Verify an audit bundle: everything is recomputed from its genesis, and nothing in it is believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Genesis,
    MemberRecord,
    State,
    decode_signed,
    entry_digest,
    genesis_digest,
    initial_state,
)
from konsil.errors import ConfigError, IdentityError, JournalCorrupt, KonsilError
from konsil.ledger.bundle.lines import (
    BUNDLE_VERSION,
    Bundle,
    CardLine,
    End,
    EntryLine,
    GenesisLine,
    Lines,
    ProofLine,
)
from konsil.ledger.bundle.members import Records
from konsil.ledger.bundle.proof import CometbftProof, Keepers, Known, Proof, why_no_proof
from konsil.ledger.bundle.summary import summary
from konsil.ledger.history import Verify, follow_on

CheckCard = Callable[[bytes, MemberRecord], None]
"""(a card's bytes, the member's record on the ledger) -> nothing; IdentityError if they do not fit."""


@dataclass(frozen=True)
class Checked:
    """A bundle that holds.

    ``head``: digest of the last entry; ``state``: after it. ``calls``: how many of each kind. ``begun_s``,
    ``ended_s``: ledger time of the first and the last call; the genesis's without any. ``cards``: how many
    there are, and ``lacking``: active members without one. ``digest``: of the bundle, the same for the same
    history with the same cards.
    """

    genesis: Genesis
    genesis_digest: str
    state: State
    head: str
    calls: dict[str, int]
    begun_s: int
    ended_s: int
    cards: int
    lacking: tuple[str, ...]
    proof: Proof | None
    digest: str

    @property
    def keepers(self) -> int:
        """How many members kept the ledger together at its end, if their votes for it are there; else 0."""
        return len(self.proof.block.validators) if isinstance(self.proof, CometbftProof) else 0


def check_bundle(path: Path, check: Verify, check_card: CheckCard) -> Checked:
    """Read a bundle and recompute all of it; never more than a line and the contract's state is in memory.

    Args:
        path: of the file.
        check: whether a signature is that of a public key (hex) over some bytes.
        check_card: whether a card is what it says, and the one that the ledger knows.

    Raises:
        ConfigError: the file cannot be read.
        JournalCorrupt: it does not hold; says at which line, and why.
    """
    try:
        with path.open("rb") as stream:
            return _checked(stream, path.name, check, check_card)
    except OSError as error:
        raise ConfigError(
            f"The audit bundle {path} cannot be read: {error.strerror}.",
            safe="Nothing was changed.",
            do="Give the path of a file that `konsil audit export` wrote.",
        ) from error


def _checked(stream: BinaryIO, name: str, check: Verify, check_card: CheckCard) -> Checked:
    lines = Lines(stream, name)
    if lines.take(Bundle).version != BUNDLE_VERSION:
        raise lines.bad(f"this program reads bundles of version {BUNDLE_VERSION}")
    genesis = _genesis(lines)
    state, head = _initial(lines, genesis), genesis_digest(genesis)
    records, keepers = Records(state), Keepers(state)
    calls: Counter[str] = Counter()
    begun_s = 0
    while (line := lines.take_if(EntryLine)) is not None:
        entry = line.entry()
        try:
            state = follow_on(state, entry, head, check)
            head = entry_digest(entry)
        except JournalCorrupt as error:
            raise lines.bad(error.what.rstrip(".")) from error
        except OverflowError as error:
            raise lines.bad("it holds, or leads to, a number that no ledger can hold") from error
        records.note(state)
        keepers.note(state)
        calls[str(type(decode_signed(entry.signed).call).__struct_config__.tag)] += 1
        begun_s = begun_s or entry.time_s
    _cards(lines, records, check_card)
    for expected, what in summary(state):
        lines.expect(expected, what)
    proof = _proof(lines, Known(genesis, state, head, keepers.sets, check))
    digest = lines.digest
    end = lines.take(End)
    if end != End(state.height, head, digest):
        raise lines.bad("it does not end what comes before it: something was changed, or left out")
    lines.end()
    return Checked(
        genesis=genesis,
        genesis_digest=state.genesis,
        state=state,
        head=head,
        calls=dict(sorted(calls.items())),
        begun_s=begun_s or state.now_s,
        ended_s=state.now_s,
        cards=len(records.found),
        lacking=records.lacking(state),
        proof=proof,
        digest=digest,
    )


def _genesis(lines: Lines) -> Genesis:
    text = lines.take(GenesisLine).text.encode()
    try:
        genesis = msgspec.json.decode(text, type=Genesis)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise lines.bad(f"it is no genesis: {error}") from error
    if msgspec.json.encode(genesis, order="deterministic") != text:
        raise lines.bad("the genesis is not in its canonical form")
    return genesis


def _initial(lines: Lines, genesis: Genesis) -> State:
    try:
        return initial_state(genesis)
    except KonsilError as error:
        raise lines.bad(error.what.rstrip(".")) from error


def _cards(lines: Lines, records: Records, check_card: CheckCard) -> None:
    before = ""
    while (line := lines.take_if(CardLine)) is not None:
        data, record = line.text.encode(), records.known.get(line.digest)
        if record is None:
            raise lines.bad("the ledger never had this card for a member")
        if line.digest <= before or bytes_digest(data, "card") != line.digest:
            raise lines.bad("the card is not what its digest says, or does not stand in its place")
        try:
            check_card(data, record)
        except IdentityError as error:
            raise lines.bad(error.what.rstrip(".")) from error
        before = line.digest
        records.has(line.digest)


def _proof(lines: Lines, known: Known) -> Proof | None:
    line = lines.take_if(ProofLine)
    if line is None:
        return None
    why = why_no_proof(line.proof, known)
    if why:
        raise lines.bad(f"the engine's proof does not hold: {why}")
    return line.proof
