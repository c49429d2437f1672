"""Proof that the members agreed on a history: a block's header with the votes of those who keep the ledger.

The header names the application's hash, which is the digest of the last entry, so one header with the votes
of more than two thirds stands for the whole history. It can be checked anywhere, with no engine at hand; what
is hashed and signed is laid down in CometBFT 0.38's ``spec/core/data_structures.md``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec

from konsil.core.protobuf import field, varint
from konsil.errors import FrameError, IdentityError
from konsil.ledger.cometbft.application import POWER
from konsil.ledger.history import Verify

_VOTED_FOR_BLOCK = 2
_PRECOMMIT = 2
_BASE = "1970-01-01T00:00:00+00:00"


Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""A number that CometBFT can have written."""


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One validator's vote for the block. ``key``: its ledger key, hex; ``signature``: hex; ``time``: as it
    was signed, in nanoseconds of unix time.
    """

    key: str
    time: Whole
    signature: str


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A block's header. Digests are hex, SHA-256; ``time`` is in nanoseconds of unix time."""

    version_block: Whole
    version_app: Whole
    chain: str
    height: Whole
    time: Whole
    last_block: str
    last_parts: Whole
    last_parts_digest: str
    last_commit: str
    data: str
    validators: str
    next_validators: str
    consensus: str
    app: str
    last_results: str
    evidence: str
    proposer: str


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header, its block's parts, and the votes for it in ``round``. ``validators``: the ledger keys (hex)
    of all who could vote, in CometBFT's order.
    """

    header: Header
    round: Whole
    parts: Whole
    parts_digest: str
    validators: tuple[str, ...]
    votes: tuple[Signed, ...]


def from_rpc(commit: Any, validators: Any) -> Proof:
    """The proof in what CometBFT's ``commit`` and ``validators`` tell of one height.

    Raises:
        FrameError: they do not tell what is needed.
    """
    try:
        header, signed = commit["signed_header"]["header"], commit["signed_header"]["commit"]
        keys = {one["address"]: _key(one["pub_key"]) for one in validators["validators"]}
        return Proof(
            header=_header(header),
            round=int(signed["round"]),
            parts=int(signed["block_id"]["parts"]["total"]),
            parts_digest=signed["block_id"]["parts"]["hash"].lower(),
            validators=tuple(keys.values()),
            votes=tuple(
                Signed(
                    keys[one["validator_address"]], nanoseconds(one["timestamp"]), _hex64(one["signature"])
                )
                for one in signed["signatures"]
                if int(one["block_id_flag"]) == _VOTED_FOR_BLOCK
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FrameError(
            f"CometBFT does not tell of its votes what is needed: {error!r}.",
            safe="Nothing was taken from it.",
            do="Use CometBFT 0.38: see `konsil doctor`.",
        ) from error


def check(proof: Proof, chain: str, head: str, keepers: Iterable[frozenset[str]], verify: Verify) -> int:
    """How many of those who keep the ledger voted for a history that ends with this entry.

    Args:
        proof: the header and its votes.
        chain: the chain's name, of the swarm's genesis.
        head: digest of the last entry, hex.
        keepers: sets of ledger keys, one of which must have been those who could vote: those that the
            history gives at its end and just before.
        verify: whether a signature is that of a public key (hex) over some bytes.

    Raises:
        IdentityError: it proves nothing about this history; says why.
    """
    header = proof.header
    _require(header.chain == chain, f"it is of another chain, {header.chain[:64]!r}")
    _require(header.app == head, "the members agreed on another history than this one")
    _require(len(set(proof.validators)) == len(proof.validators), "it names a member twice")
    _require(frozenset(proof.validators) in set(keepers), "those who voted are not those who keep the ledger")
    _require(_validators_digest(proof.validators) == header.validators, "its header names other validators")
    block = header_digest(header)
    right = {
        vote.key
        for vote in proof.votes
        if vote.key in proof.validators
        and verify(vote.key, _vote_bytes(proof, block, vote.time), _unhex(vote.signature))
    }
    _require(
        3 * len(right) > 2 * len(proof.validators),
        f"{len(right)} of {len(proof.validators)} voted for it, and it takes more than two thirds",
    )
    return len(right)


def header_digest(header: Header) -> str:
    """A header's digest, by which its block is voted for: the root over its fields, hex."""
    last = field(1, _unhex(header.last_block)) + field(
        2, _number(1, header.last_parts) + field(2, _unhex(header.last_parts_digest)), always=True
    )
    digests = (
        header.last_commit,
        header.data,
        header.validators,
        header.next_validators,
        header.consensus,
        header.app,
        header.last_results,
        header.evidence,
        header.proposer,
    )
    return _root(
        [
            _number(1, header.version_block) + _number(2, header.version_app),
            field(1, header.chain.encode()),
            _number(1, header.height),
            _time(header.time),
            last,
            *(field(1, _unhex(digest)) for digest in digests),
        ]
    ).hex()


def nanoseconds(stamp: str) -> int:
    """Unix time in nanoseconds of a time as CometBFT writes it.

    Raises:
        ValueError: it is none.
    """
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    seconds = (datetime.fromisoformat(f"{whole}+00:00") - datetime.fromisoformat(_BASE)).total_seconds()
    return int(seconds) * 10**9 + int(fraction.ljust(9, "0") if fraction else 0)


# --- what is hashed and signed -------------------------------------------------------------------


def _vote_bytes(proof: Proof, block: str, time: int) -> bytes:
    parts = _number(1, proof.parts) + field(2, _unhex(proof.parts_digest))
    vote = (
        _number(1, _PRECOMMIT)
        + _fixed(2, proof.header.height)
        + _fixed(3, proof.round)
        + field(4, field(1, _unhex(block)) + field(2, parts, always=True), always=True)
        + field(5, _time(time), always=True)
        + field(6, proof.header.chain.encode())
    )
    return varint(len(vote)) + vote


def _validators_digest(keys: Sequence[str]) -> str:
    return _root([field(1, field(1, _unhex(key)), always=True) + _number(2, POWER) for key in keys]).hex()


def _root(leaves: Sequence[bytes]) -> bytes:
    """The root of RFC 6962 over some leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _root(leaves[:split]) + _root(leaves[split:])).digest()


def _number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value) if value else b""


def _fixed(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + value.to_bytes(8, "little") if value else b""


def _time(value: int) -> bytes:
    return _number(1, value // 10**9) + _number(2, value % 10**9)


# --- reading -------------------------------------------------------------------------------------


def _header(told: Any) -> Header:
    version, last = told["version"], told["last_block_id"]
    return Header(
        version_block=int(version.get("block", 0)),
        version_app=int(version.get("app", 0)),
        chain=told["chain_id"],
        height=int(told["height"]),
        time=nanoseconds(told["time"]),
        last_block=last["hash"].lower(),
        last_parts=int(last["parts"]["total"]),
        last_parts_digest=last["parts"]["hash"].lower(),
        last_commit=told["last_commit_hash"].lower(),
        data=told["data_hash"].lower(),
        validators=told["validators_hash"].lower(),
        next_validators=told["next_validators_hash"].lower(),
        consensus=told["consensus_hash"].lower(),
        app=told["app_hash"].lower(),
        last_results=told["last_results_hash"].lower(),
        evidence=told["evidence_hash"].lower(),
        proposer=told["proposer_address"].lower(),
    )


def _key(told: Any) -> str:
    if told["type"] != "tendermint/PubKeyEd25519":
        raise ValueError(told["type"])
    return _hex64(told["value"])


def _hex64(text: str) -> str:
    return base64.b64decode(text, validate=True).hex()


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise _nothing(f"{text[:80]!r} is no digest, key or signature") from error


def _require(held: bool, why: str) -> None:
    if not held:
        raise _nothing(why)


def _nothing(why: str) -> IdentityError:
    return IdentityError(
        f"The block's header with its votes proves nothing about this history: {why}.",
        safe="The members' own signatures on their calls were checked apart from this.",
        do="Ask another member for its copy, and compare heads.",
    )
