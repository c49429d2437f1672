"""The auditor's check: recompute a whole history from the genesis, offline and without changing a byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from konsil.core.rules import Entry, Genesis, SignedCall, State, decode_signed, genesis_digest, state_digest
from konsil.ledger.history import Step, Verify, replay_fully, replaying
from konsil.ledger.journal import Journal


class Verified(NamedTuple):
    """A history that replays. ``digest``: of the state; ``head``: of the last entry; ``calls``: how many of
    each kind.
    """

    height: int
    state: State
    digest: str
    head: str
    calls: dict[str, int]


def verify(genesis: Genesis, journal_path: Path, check: Verify) -> Verified:
    """Recompute a journal: links, signatures, rules, and the state's digest after every entry.

    Args:
        genesis: what the members agreed on; compare its digest with the others'.
        journal_path: the journal's file; it may be in use.
        check: whether a signature is that of a public key (hex) over some bytes.

    Raises:
        JournalCorrupt: the history does not replay; names the height and why.
        ConfigError: no journal there, or one of another genesis.
    """
    calls: Counter[str] = Counter()

    def counted(entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            yield entry
            calls[type(decode_signed(entry.signed).call).__name__] += 1

    with Journal(journal_path, genesis_digest(genesis), read_only=True) as journal:
        state, head = replay_fully(genesis, counted(journal.read()), check)
    return Verified(state.height, state, state_digest(state), head, dict(sorted(calls.items())))


def read_calls(genesis: Genesis, journal_path: Path) -> Iterator[tuple[Entry, SignedCall]]:
    """Every entry of a journal with its call, in order; the links are checked.

    Raises:
        JournalCorrupt: an entry is missing or was changed.
        ConfigError: no journal there, or one of another genesis.
    """
    with Journal(journal_path, genesis_digest(genesis), read_only=True) as journal:
        for entry in journal.read():
            yield entry, decode_signed(entry.signed)


def read_steps(genesis: Genesis, journal_path: Path, check: Verify) -> Iterator[Step]:
    """As ``read_calls``, with the state after each call; see ``konsil.ledger.history.replaying``.

    Raises:
        JournalCorrupt: an entry is missing, was changed, or does not follow from those before it.
        ConfigError: no journal there, or one of another genesis.
    """
    with Journal(journal_path, genesis_digest(genesis), read_only=True) as journal:
        yield from replaying(genesis, journal.read(), check)
