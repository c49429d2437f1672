"""What a ledger's engine adds to a history that its members signed: who decided on the order of the calls."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from konsil.core.rules import Genesis, State, validators
from konsil.errors import IdentityError
from konsil.ledger.cometbft import proof as cometbft
from konsil.ledger.cometbft.application import chain_id
from konsil.ledger.cometbft.home import Home
from konsil.ledger.cometbft.proving import proof_of
from konsil.ledger.history import Verify


class _Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="engine"):
    """Common shape: the tag, ``engine``, names the engine as the genesis does."""


class LocalProof(_Proof, frozen=True, tag="local"):
    """One member's node orders the calls, and nothing else stands for that order. ``operator``: whose."""

    operator: str


class CometbftProof(_Proof, frozen=True, tag="cometbft"):
    """A block whose header names the last entry, with the votes of those who keep the ledger."""

    block: cometbft.Proof


Proof = LocalProof | CometbftProof
"""One type for each engine that can prove something; told apart by their tag."""


def prove(genesis: Genesis, head: str, engine_dir: Path) -> Proof | None:
    """What the engine of a swarm says for a history that ends with this entry, if it says something now."""
    if genesis.engine == "cometbft":
        found = proof_of(head, Home(engine_dir).rpc_socket)
        return CometbftProof(found) if found is not None else None
    return local_proof(genesis)


def local_proof(genesis: Genesis) -> LocalProof | None:
    """What follows from the genesis alone: who orders the calls of a local ledger."""
    return LocalProof(genesis.operator) if genesis.engine == "local" else None


class Known(NamedTuple):
    """What was recomputed, and what a proof is held against.

    ``genesis``: of the swarm. ``head``: digest of the last entry; ``state``: after it. ``keepers``: the sets
    of ledger keys of those who validate, one of which must have voted on the last entry: the set after it,
    and those before each of the entries of its time, which may be of one block with it. ``verify``: checks
    signatures.
    """

    genesis: Genesis
    state: State
    head: str
    keepers: tuple[frozenset[str], ...]
    verify: Verify


class Keepers:
    """Who validated towards the end of a history; see ``Known.keepers``."""

    def __init__(self, state: State) -> None:
        """``state``: the one before the first call."""
        self._time_s = -1
        self.sets: tuple[frozenset[str], ...] = (_keys(state),)

    def note(self, state: State) -> None:
        """Take in the state after an entry."""
        after = _keys(state)
        if state.now_s != self._time_s:
            self._time_s, self.sets = state.now_s, self.sets[-1:]
        if after != self.sets[-1]:
            self.sets = (*self.sets, after)


def _keys(state: State) -> frozenset[str]:
    if state.engine == "local":
        return frozenset()
    return frozenset(state.members[name].record.ledger_key for name in validators(state))


def why_no_proof(proof: Proof, known: Known) -> str:
    """Why a proof does not hold for the head of a history; "" if it does."""
    genesis = known.genesis
    if isinstance(proof, LocalProof):
        same = (genesis.engine, genesis.operator) == ("local", proof.operator)
        return "" if same else "the genesis names another engine or another operator"
    if genesis.engine != "cometbft":
        return "the genesis names another engine"
    try:
        cometbft.check(proof.block, chain_id(genesis), known.head, known.keepers, known.verify)
    except IdentityError as error:
        return error.what.rstrip(".")
    return ""
