"""Who may call the contract, who is a member, and what is voted on."""

from __future__ import annotations

import pytest
from contract_cast import GENESIS as WITH_A_WITNESS
from contract_cast import START_S, WITNESS, digest, record
from contract_story import (
    AML,
    FIVE,
    GENESIS,
    MIXED,
    begun,
)
from contract_twin import Chain, Twin, account
from msgspec.structs import replace

from konsil.core.rules import (
    Agree,
    Announce,
    Enter,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeSwarmSettings,
    Renew,
    SwarmSettings,
    Validate,
    Vote,
    settings_digest,
)
from konsil.ledger.ethereum.calldata import encode_call
from konsil.ledger.ethereum.words import selector, word

# --- who may call ----------------------------------------------------------------------------------


def test_a_call_comes_from_a_member_itself():
    twin = begun()
    chain = twin.chain
    data = encode_call(Enter("aml"), 4, twin.directory)
    assert chain.send(account("stranger"), data) == "not_a_member"
    # A contract that passes on what it gets: the member signs, but the call is not the transaction's.
    passing_on = bytes.fromhex("36600060003760006000366000600073") + bytes.fromhex(chain.swarm[2:])
    passing_on += bytes.fromhex("5af13d600060003e3d6000fd")  # CALL, and whatever comes back as a refusal
    code = (
        bytes.fromhex("60")
        + bytes([len(passing_on)])
        + bytes.fromhex("600c60003960")
        + bytes([len(passing_on)])
    )
    at = bytes.fromhex(chain.evm.deploy(chain.founder, code + bytes.fromhex("6000f3") + passing_on)[2:])
    assert chain.send(account("aachen"), data, to=at) == "not_direct"


def test_what_no_call_is_and_what_is_not_for_outsiders_is_refused():
    chain = Chain(GENESIS)
    assert chain.send(account("aachen"), bytes(4)) == "bad_call"
    assert chain.send(account("aachen"), selector("close_votes(uint256)") + word(START_S)) == "bad_call"


def test_an_account_is_one_names_for_ever():
    twin = Twin(GENESIS)
    twin.accounts |= {"f": account("f"), "g": account("f"), "h": account("aachen"), "i": bytes(20)}
    assert twin.do("aachen", ProposeAdmit(record("f"))) == ""
    for name, code in (("g", "account_taken"), ("h", "account_taken"), ("i", "bad_account")):
        data = encode_call(ProposeAdmit(record(name)), 2, twin.directory)
        assert twin.chain.send(account("aachen"), data) == code


@pytest.mark.parametrize(
    "change",
    [
        {"name": "-a"},
        {"name": ""},
        {"name": "a" * 64},
        {"name": "Bonn"},
        {"spiffe_id": "spiffe://a"},
        {"spiffe_id": "spiffe://a/"},
        {"spiffe_id": "spiffe:///b"},
        {"spiffe_id": "spiffe://A/b"},
        {"spiffe_id": "spiffe://a//b"},
        {"spiffe_id": "spiffe://a/b c"},
        {"spiffe_id": "http://a/b/c/d"},
        {"spiffe_id": "spiffe://a" + "/b" * 9},
        {"spiffe_id": "spiffe://" + "a" * 256 + "/b"},
        {"spiffe_id": "spiffe://a/" + "b" * 256},
        {"addresses": ("a:1",) * 9},
        {"addresses": ("a:0",)},
        {"addresses": ("a:65536",)},
        {"addresses": ("a:000001",)},
        {"addresses": ("a",)},
        {"addresses": (":1",)},
        {"addresses": ("[1]:1",)},
        {"addresses": ("[::1]",)},
        {"addresses": ("[::1]x:1",)},
        {"addresses": ("[" + "1" * 46 + "]:1",)},
        {"addresses": ("a" * 254 + ":1",)},
        {"addresses": ("a:1:2",)},
        {"addresses": ("",)},
    ],
)
def test_a_malformed_record_is_refused_by_both(change):
    twin = Twin(GENESIS)
    twin.accounts |= {name: account("f") for name in ("f", *change.values()) if isinstance(name, str)}
    assert twin.do("aachen", ProposeAdmit(replace(record("f"), **change))) == "bad_member"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a" * 63},
        {"name": "0-9"},
        {"spiffe_id": "spiffe://a_b.c-9" + "/B.c_D-9" * 8},
        {"spiffe_id": "spiffe://" + "a" * 255 + ("/" + "b" * 255) * 8},
        {"addresses": ()},
        {"addresses": ("A-b_c.9:1", "a:65535", "[::ffff:127.0.0.1]:00001", "a" * 253 + ":5")},
        {"addresses": tuple("a" * 253 + f":5999{i}" for i in range(8))},
    ],
)
def test_a_record_at_the_limits_is_taken_by_both(change):
    twin = Twin(GENESIS)
    twin.accounts |= {name: account("f") for name in ("f", *change.values()) if isinstance(name, str)}
    assert twin.do("aachen", ProposeAdmit(replace(record("f"), **change))) == ""


# --- votes -----------------------------------------------------------------------------------------


def test_a_member_is_admitted_removed_and_admitted_again_and_goes_on_where_it_was():
    twin = begun(MIXED, FIVE[:4])
    twin.accounts["z"] = account("z")
    twin.do("aachen", ProposeAdmit(record("z")))
    for name in ("bonn", "celle"):
        twin.do(name, Vote(1, yes=True))
    assert twin.do("z", Announce(("z:1",))) == ""
    assert twin.do("z", Agree("mixed", digest("x"))) == "not_invited"
    for number, gone in ((2, "z"), (3, "bonn")):
        twin.do("aachen", ProposeRemove(gone, "left the consortium"))
        for name in ("celle", "dresden"):
            twin.do(name, Vote(number, yes=True))
    assert not twin.state.members["bonn"].active
    assert twin.do("z", Announce(())) == "not_a_member"
    twin.accounts["z"] = account("z2")
    twin.do("aachen", ProposeAdmit(record("z")))
    for name in ("celle", "dresden"):
        twin.do(name, Vote(4, yes=True))
    assert twin.do("z", Announce(()), 1) == "replayed"
    assert twin.do("z", Announce(()), 2) == ""


def test_nobody_floods_the_others_with_votes():
    twin = Twin(replace(GENESIS, settings=SwarmSettings(3_000)))
    for _ in range(16):
        assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == ""
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == "too_many_proposals"
    for number in range(1, 17):
        for name in ("bonn", "celle", "dresden"):
            twin.do(name, Vote(number, yes=False))
    for _ in range(3):
        for _ in range(16):
            assert twin.do("aachen", ProposeRemove("erlangen")) == ""
            for name in ("bonn", "celle"):
                twin.do(name, Vote(len(twin.state.proposals), yes=False))
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == "too_many_proposals"
    twin.now_s += 3_000
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == ""


def test_the_last_member_stays():
    alone = replace(GENESIS, members=GENESIS.members[:1])
    assert Twin(alone).do("aachen", ProposeRemove("aachen")) == "last_member"


def test_a_card_is_renewed_sixteen_times_at_once_and_then_once_in_a_while():
    twin = Twin(GENESIS)
    assert twin.do("bonn", Renew(digest("b"), digest("aachen card"))) == "card_taken"
    assert twin.do("bonn", Renew("", digest("c"))) == "bad_digest"
    for i in range(16):
        assert twin.do("bonn", Renew(digest("b"), digest(("card", i)))) == ""
    assert twin.do("bonn", Renew(digest("b"), digest(("card", 15)))) == ""
    assert twin.do("bonn", Renew(digest("other"), digest(("card", 15)))) == "same_card"
    twin.now_s += 599
    assert twin.do("bonn", Renew(digest("b"), digest("more"))) == "too_many_renewals"
    twin.now_s += 1
    assert twin.do("bonn", Renew(digest("b"), digest("more"))) == ""
    assert twin.do("bonn", Renew(digest("b"), digest("still more"))) == "too_many_renewals"


def test_a_witness_votes_and_takes_part_in_no_study():
    twin = Twin(WITH_A_WITNESS)
    assert twin.do(WITNESS, ProposeStudy(AML)) == "witness"
    assert twin.do("aachen", ProposeStudy(replace(AML, min_members=6))) == "bad_settings"
    assert (
        twin.do("aachen", ProposeStudy(replace(AML, members=("aachen", "bonn", WITNESS)))) == "bad_settings"
    )
    assert twin.do("aachen", ProposeStudy(AML)) == ""
    assert twin.do(WITNESS, Agree("aml", settings_digest(AML))) == "witness"
    assert twin.do(WITNESS, Validate(on=True)) == "no_validators"
    assert twin.do(WITNESS, ProposeRemove("bonn")) == ""
    assert twin.state.proposals[0].votes == {WITNESS: True}
