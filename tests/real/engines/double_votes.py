"""Proof that a validator signed two votes, as CometBFT takes it: made with the validator's own key."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime
from typing import Any

from konsil.ledger.cometbft.application import POWER, key_address

PRECOMMIT = 2


def double_vote(key: Any, chain: str, header: dict[str, Any], validators: int, index: int) -> dict[str, Any]:
    """Evidence that ``key`` signed precommits for two blocks at a header's height.

    Args:
        key: the validator's ledger key.
        chain: the chain's name.
        header: of the block at that height, as CometBFT tells it.
        validators: how many there were.
        index: the validator's place among them.
    """
    votes = [_vote(key, chain, header, name, index) for name in ("one block", "another block")]
    votes.sort(key=lambda vote: base64.b16decode(vote["block_id"]["hash"]))
    return {
        "type": "tendermint/DuplicateVoteEvidence",
        "value": {
            "vote_a": votes[0],
            "vote_b": votes[1],
            "TotalVotingPower": str(validators * POWER),
            "ValidatorPower": str(POWER),
            "Timestamp": header["time"],
        },
    }


def _vote(key: Any, chain: str, header: dict[str, Any], block: str, index: int) -> dict[str, Any]:
    height, digest = int(header["height"]), hashlib.sha256(block.encode()).digest()
    signed = _canonical(height, digest, header["time"], chain)
    return {
        "type": PRECOMMIT,
        "height": str(height),
        "round": 0,
        "block_id": {
            "hash": digest.hex().upper(),
            "parts": {"total": 1, "hash": digest.hex().upper()},
        },
        "timestamp": header["time"],
        "validator_address": key_address(key.public).hex().upper(),
        "validator_index": index,
        "signature": base64.b64encode(key.sign(signed)).decode(),
    }


def _canonical(height: int, digest: bytes, time: str, chain: str) -> bytes:
    """What a validator signs: CanonicalVote of tendermint/types/canonical.proto, behind its length."""
    seconds, nanos = _stamp(time)
    parts = b"\x08\x01" + _bytes(2, digest)
    block = _bytes(1, digest) + _bytes(2, parts)
    stamp = b"\x08" + _varint(seconds) + (b"\x10" + _varint(nanos) if nanos else b"")
    vote = (
        b"\x08"
        + _varint(PRECOMMIT)
        + b"\x11"
        + height.to_bytes(8, "little")
        + _bytes(4, block)
        + _bytes(5, stamp)
        + _bytes(6, chain.encode())
    )
    return _varint(len(vote)) + vote


def _stamp(time: str) -> tuple[int, int]:
    whole, _, fraction = time.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds, int(fraction.ljust(9, "0")) if fraction else 0


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
