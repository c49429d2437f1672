"""What a ledger's engine adds to a history that its members signed: who decided on the order of the calls."""

from __future__ import annotations

import msgspec

from konsil.core.rules import Genesis, State


class _Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="engine"):
    """Common shape: the tag, ``engine``, names the engine as the genesis does."""


class LocalProof(_Proof, frozen=True, tag="local"):
    """One member's node orders the calls, and nothing else stands for that order. ``operator``: whose."""

    operator: str


Proof = LocalProof
"""One type for each engine that can prove something; told apart by their tag."""


def prove(genesis: Genesis) -> Proof | None:
    """What the engine of a swarm says for its history; None for one that gives nothing to carry along."""
    return LocalProof(genesis.operator) if genesis.engine == "local" else None


def why_no_proof(proof: Proof, state: State, _head: str) -> str:
    """Why a proof does not hold for the head of a history; "" if it does.

    Args:
        proof: from a bundle.
        state: the state after the last entry, recomputed.
        _head: the last entry's digest, which an engine that signs blocks must have signed.
    """
    if (state.engine, state.operator) == ("local", proof.operator):
        return ""
    return "the genesis names another engine or another operator"
