"""What a swarm's contract is founded with: its members, and which contract behind it takes which call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Announce,
    Commit,
    Dispute,
    Enter,
    Finish,
    Genesis,
    Initialise,
    Leave,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Renew,
    Report,
    Score,
    Tick,
    Validate,
    Verdict,
    Vote,
    genesis_digest,
)
from konsil.ledger.ethereum.calldata import SIGNATURES
from konsil.ledger.ethereum.seen_on_chain import QUESTIONS
from konsil.ledger.ethereum.words import WORD_BYTES, keccak, name_words, selector, word

BEHIND: Final[dict[str, tuple[type, ...]]] = {
    "membership": (
        ProposeAdmit, ProposeRemove, ProposeSwarmSettings, ProposeStudySettings,
        Vote, Announce, Renew, Validate,
    ),
    "studies": (ProposeStudy, Agree, Initialise, Enter, Leave, Finish, Score),
    "rounds": (Commit, Alive, Publish, Accept, Report),
    "deadlines": (Tick, Dispute, Verdict),
    "reading": (),
}  # fmt: skip
"""The contracts behind a swarm's, and the calls that each takes; `reading` takes every question."""


def routes(addresses: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """The four bytes of each function -> the contract that has it."""
    found = {selector(SIGNATURES[kind]): addresses[name] for name, kinds in BEHIND.items() for kind in kinds}
    return found | {selector(question): addresses["reading"] for question in QUESTIONS}


def founding_data(genesis: Genesis, accounts: Mapping[str, bytes], addresses: Mapping[str, bytes]) -> bytes:
    """What follows the code of a swarm's contract when it is put on the chain.

    Args:
        genesis: what the founding members agreed on.
        accounts: member -> its Ethereum account, 20 bytes.
        addresses: the contracts behind it.
    """
    table = routes(addresses)
    founders = [_founder(genesis, at, accounts) for at in range(len(genesis.members))]
    selectors = _list([entry.ljust(WORD_BYTES, b"\0") for entry in table])
    targets = _list([entry.rjust(WORD_BYTES, b"\0") for entry in table.values()])
    heads = 7 * WORD_BYTES
    return b"".join((
        bytes.fromhex(genesis_digest(genesis)),
        word(genesis.created_s),
        word(genesis.settings.proposal_s),
        addresses["membership"].rjust(WORD_BYTES, b"\0"),
        word(heads),
        word(heads + len(selectors)),
        word(heads + len(selectors) + len(targets)),
        selectors,
        targets,
        _list(founders),
    ))  # fmt: skip


def _list(items: list[bytes]) -> bytes:
    return word(len(items)) + b"".join(items)


def _founder(genesis: Genesis, at: int, accounts: Mapping[str, bytes]) -> bytes:
    record = genesis.members[at]
    high, low = name_words(record.name)
    addresses = "".join(f"{address}\n" for address in record.addresses)
    return b"".join((
        word(high),
        word(low),
        accounts[record.name].rjust(WORD_BYTES, b"\0"),
        keccak(record.spiffe_id.encode()),
        bytes.fromhex(record.ledger_key),
        bytes.fromhex(record.bundle),
        bytes.fromhex(record.card),
        keccak(addresses.encode()),
        word(record.witness),
    ))  # fmt: skip
