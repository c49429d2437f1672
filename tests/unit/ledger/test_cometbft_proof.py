"""A block's header with its votes: what it proves, and that nothing else passes for it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import fields, replace

from konsil.errors import FrameError, IdentityError
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.cometbft import proof as proofs
from konsil.ledger.cometbft.proof import Header, Proof, Signed, check, from_rpc, header_digest, nanoseconds

HEAD = "ab" * 32
CHAIN = "konsil-0123"


def make_key(number: int) -> LedgerKey:
    key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return LedgerKey(key.public_key().public_bytes_raw().hex(), key)


KEYS = [make_key(number) for number in range(1, 5)]
KEEPERS = frozenset(key.public for key in KEYS)


def proof(voters=KEYS[:3], **changes) -> Proof:
    known = tuple(key.public for key in KEYS)
    header = Header(
        version_block=11,
        version_app=1,
        chain=CHAIN,
        height=7,
        time=1_700_000_000_123_456_789,
        last_block="11" * 32,
        last_parts=1,
        last_parts_digest="22" * 32,
        last_commit="33" * 32,
        data="44" * 32,
        validators=proofs._validators_digest(known),
        next_validators="55" * 32,
        consensus="66" * 32,
        app=HEAD,
        last_results="77" * 32,
        evidence="88" * 32,
        proposer="99" * 20,
    )
    unsigned = Proof(replace(header, **changes), 0, 1, "aa" * 32, known, ())
    block = header_digest(unsigned.header)
    votes = tuple(
        Signed(key.public, 5, key.sign(proofs._vote_bytes(unsigned, block, 5)).hex()) for key in voters
    )
    return replace(unsigned, votes=votes)


def test_more_than_two_thirds_prove_a_history():
    assert check(proof(), CHAIN, HEAD, [KEEPERS], verify) == 3
    assert check(proof(KEYS), CHAIN, HEAD, [KEEPERS], verify) == 4


def test_two_thirds_or_fewer_prove_nothing():
    with pytest.raises(IdentityError, match="2 of 4"):
        check(proof(KEYS[:2]), CHAIN, HEAD, [KEEPERS], verify)


def test_a_vote_counts_once_and_only_for_who_may_vote():
    once = proof(KEYS[:2])
    twice = replace(once, votes=once.votes + once.votes)
    stranger = proof([*KEYS[:2], make_key(9)])
    for false in (twice, stranger):
        with pytest.raises(IdentityError, match="2 of 4"):
            check(false, CHAIN, HEAD, [KEEPERS], verify)


@pytest.mark.parametrize(
    ("changes", "chain", "head", "keepers", "why"),
    [
        ({}, "konsil-other", HEAD, KEEPERS, "another chain"),
        ({}, CHAIN, "cd" * 32, KEEPERS, "another history"),
        ({}, CHAIN, HEAD, KEEPERS - {KEYS[0].public}, "not those who keep"),
        ({"validators": "00" * 32}, CHAIN, HEAD, KEEPERS, "other validators"),
    ],
)
def test_a_proof_of_something_else_is_refused(changes, chain, head, keepers, why):
    with pytest.raises(IdentityError, match=why):
        check(proof(**changes), chain, head, [keepers], verify)


@pytest.mark.parametrize("field", [field.name for field in fields(Header)])
def test_no_field_of_the_header_can_be_changed_after_the_votes(field):
    made = proof()
    value = getattr(made.header, field)
    other = value + 1 if isinstance(value, int) else "x" if field == "chain" else "ff" + value[2:]
    with pytest.raises(IdentityError):
        check(replace(made, header=replace(made.header, **{field: other})), CHAIN, HEAD, [KEEPERS], verify)


@pytest.mark.parametrize("changes", [{"round": 1}, {"parts": 2}, {"parts_digest": "bb" * 32}])
def test_nothing_beside_the_header_can_be_changed_either(changes):
    with pytest.raises(IdentityError):
        check(replace(proof(), **changes), CHAIN, HEAD, [KEEPERS], verify)


def test_texts_that_are_no_digests_are_refused():
    made = proof()
    for broken in (replace(made, parts_digest="no"), replace(made, header=replace(made.header, data="é"))):
        with pytest.raises(IdentityError, match="no digest"):
            check(broken, CHAIN, HEAD, [KEEPERS], verify)


def test_times_are_exact_to_the_nanosecond():
    assert nanoseconds("2026-11-27T10:00:00.000000001Z") % 10**9 == 1
    assert nanoseconds("1970-01-01T00:00:01Z") == 10**9


@pytest.mark.parametrize(
    "told", [{}, {"signed_header": None}, {"signed_header": {"header": {}, "commit": {}}}]
)
def test_what_the_engine_does_not_tell_is_said(told):
    with pytest.raises(FrameError):
        from_rpc(told, {"validators": []})
