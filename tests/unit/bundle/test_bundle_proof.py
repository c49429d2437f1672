"""Votes of those who keep the ledger, in a bundle: what they prove, and of which history."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.cli.audit_report import not_proven, proven
from konsil.core.digest import bytes_digest
from konsil.core.rules import Announce, Validate
from konsil.errors import JournalCorrupt
from konsil.identity.card import check_record, read_card
from konsil.identity.ledger_key import verify
from konsil.ledger.bundle import CometbftProof, LocalProof, check_bundle, write_bundle
from konsil.ledger.cometbft import proof as proofs
from konsil.ledger.cometbft.application import chain_id

DIGESTS = ("last_block", "last_parts_digest", "last_commit", "data", "next_validators", "consensus")


@pytest.fixture
def kept(history, members):
    """A swarm whose members keep the ledger together, and two calls."""
    made = type(history)(Path(tempfile.mkdtemp(dir=members)), "cometbft")
    made.do("lyon", Announce(("lyon.example:7400",)))
    made.do("nice", Announce(("nice.example:7400",)))
    return made


def voted(
    kept, head: str, voters=("lille", "lyon", "nice"), among=("nice", "lille", "lyon"), chain=""
) -> CometbftProof:
    keys = tuple(kept.keys[name].public for name in among)
    header = proofs.Header(
        version_block=11,
        version_app=1,
        chain=chain or chain_id(kept.genesis),
        height=9,
        time=1_700_000_000_123_456_789,
        last_parts=1,
        validators=proofs._validators_digest(keys),
        app=head,
        last_results="",
        evidence="",
        proposer="99" * 20,
        **{name: bytes_digest(name.encode(), "test") for name in DIGESTS},
    )
    block = proofs.Proof(header, 0, 1, "aa" * 32, keys, ())
    signed = proofs._vote_bytes(block, proofs.header_digest(header), 5)
    votes = tuple(
        proofs.Signed(kept.keys[name].public, 5, kept.keys[name].sign(signed).hex()) for name in voters
    )
    return CometbftProof(replace(block, votes=votes))


def checked(kept, tmp_path, proof):
    journal = kept.journal(tmp_path / "l.db")
    write_bundle(tmp_path / "b", kept.genesis, journal, verify, kept.cards.get, proof)
    return check_bundle(tmp_path / "b", verify, lambda data, record: check_record(read_card(data), record))


def test_votes_for_the_head_prove_the_order(kept, tmp_path):
    found = checked(kept, tmp_path, lambda head: voted(kept, head))
    assert isinstance(found.proof, CometbftProof)
    assert found.keepers == 3
    said = " ".join(proven(found, genesis_named=True))
    assert "More than two thirds of the 3 members that kept the ledger at its end signed a block" in said
    open_to_doubt = " ".join(not_proven(found, genesis_named=True))
    assert "can agree on any, though on no call that its member did not sign" in open_to_doubt
    assert "the word of" not in open_to_doubt


def test_without_votes_the_order_is_the_word_of_whoever_made_the_file(kept, tmp_path):
    found = checked(kept, tmp_path, None)
    assert (found.proof, found.keepers) == (None, 0)
    said = " ".join(not_proven(found, genesis_named=True))
    assert "the word of whoever made the file: it holds no proof of the ledger's engine" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"voters": ("lyon", "nice")}, "2 of 3 voted for it"),
        ({"head": "ab" * 32}, "agreed on another history"),
        ({"among": ("lille", "lyon")}, "not those who keep the ledger"),
        ({"chain": "konsil-another"}, "another chain"),
    ],
)
def test_votes_that_prove_nothing_of_this_history_are_refused(kept, tmp_path, changes, why):
    with pytest.raises(JournalCorrupt, match=why):
        checked(kept, tmp_path, lambda head: voted(kept, **({"head": head} | changes)))


def test_a_proof_is_of_the_engine_that_the_genesis_names(kept, history, tmp_path):
    with pytest.raises(JournalCorrupt, match="another engine or another operator"):
        checked(kept, tmp_path, lambda _head: LocalProof(""))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(JournalCorrupt, match="names another engine"):
        checked(history, other, lambda head: voted(kept, head))


def test_who_left_just_before_the_end_may_still_have_voted(kept, tmp_path):
    """A change of those who keep the ledger counts some blocks later, and its block may be the last one."""
    kept.do("nice", Validate(on=False))
    assert checked(kept, tmp_path, lambda head: voted(kept, head)).keepers == 3
    kept.do("lyon", Announce(()), after_s=5)
    others = {"voters": ("lille", "lyon"), "among": ("lille", "lyon")}
    (tmp_path / "l.db").unlink()
    assert checked(kept, tmp_path, lambda head: voted(kept, head, **others)).keepers == 2
