from __future__ import annotations

import json
import time

import msgspec
import pytest

from konsil.core.messages import MAX_CARD_BYTES
from konsil.errors import IdentityError
from konsil.identity import card as card_module
from konsil.identity.authority import Authority
from konsil.identity.card import (
    Card,
    card_digest,
    check_card,
    check_record,
    encode_card,
    is_address,
    make_card,
    member_record,
    read_card,
    write_card,
)
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.verify import bundle_digest


class Site:
    def __init__(self, directory, name):
        self.name = name
        self.authority = Authority.create(directory / name, f"{name}.example")
        self.ledger_key = LedgerKey.create(directory / name / "ledger.pem")

    def card(self, **changes):
        usual = {
            "name": self.name,
            "identity": self.authority.issue(),
            "bundle": self.authority.bundle,
            "ledger_key": self.ledger_key,
            "addresses": ["node.lyon.example:7443", "[2001:db8::7]:7443"],
        }
        return make_card(**(usual | changes))


@pytest.fixture
def lyon(tmp_path):
    return Site(tmp_path, "lyon")


@pytest.fixture
def metz(tmp_path):
    return Site(tmp_path, "metz")


def test_a_card_is_written_read_and_believed(lyon, tmp_path):
    card = lyon.card()
    write_card(card, tmp_path / "out" / "lyon.card.json")
    data = (tmp_path / "out" / "lyon.card.json").read_bytes()
    assert read_card(data) == card
    readable = json.loads(data)
    assert readable["name"] == "lyon"
    assert readable["spiffe_id"] == "spiffe://lyon.example/node"
    assert readable["bundle"] == lyon.authority.bundle.decode()
    assert len(data.splitlines()) > 10


def test_a_card_never_holds_a_private_key(lyon):
    svid = lyon.authority.issue()
    data = encode_card(lyon.card(identity=svid))
    number = svid.private_key.private_numbers().private_value
    assert b"PRIVATE" not in data
    assert f"{number:064x}".encode() not in data


def test_a_card_outlives_the_svid_that_signed_it(lyon):
    long_ago_s = time.time() - 60
    svid = lyon.authority.issue(ttl_s=10, now_s=long_ago_s)
    assert read_card(encode_card(lyon.card(identity=svid, now_s=long_ago_s)))
    with pytest.raises(IdentityError, match="expired"):
        lyon.card(identity=svid)


def test_the_ledger_gets_identities_and_digests(lyon):
    card = lyon.card()
    record = member_record(card)
    assert (record.name, record.spiffe_id) == ("lyon", "spiffe://lyon.example/node")
    assert record.ledger_key == lyon.ledger_key.public
    assert record.bundle == bundle_digest(lyon.authority.bundle)
    assert record.card == card_digest(card)
    assert record.addresses == card.addresses
    check_record(card, msgspec.structs.replace(record, addresses=("elsewhere.example:1",)))
    for other in ({"card": "0" * 64}, {"name": "metz"}, {"bundle": "0" * 64}):
        with pytest.raises(IdentityError, match="not the card"):
            check_record(card, msgspec.structs.replace(record, **other))


def test_a_card_with_one_byte_changed_anywhere_is_refused(lyon):
    data = encode_card(lyon.card())
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(IdentityError):
            read_card(changed)


def test_a_card_with_a_byte_more_or_less_is_refused(lyon):
    data = encode_card(lyon.card())
    for changed in (
        data[:-1],
        data + b"\n",
        b" " + data,
        data[: len(data) // 2],
        b"",
        b"{}",
        b"[" * 50_000,
        b"\xff",
    ):
        with pytest.raises(IdentityError, match="not a member's card"):
            read_card(changed)


def test_an_oversized_card_is_refused_before_it_is_read():
    with pytest.raises(IdentityError, match="at most"):
        read_card(b" " * (MAX_CARD_BYTES + 1))


def test_a_card_with_an_unknown_field_is_refused(lyon):
    fields = json.loads(encode_card(lyon.card())) | {"more": 1}
    with pytest.raises(IdentityError, match="more"):
        read_card(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("name", "Lyon"),
        ("name", "metz"),
        ("spiffe_id", "spiffe://metz.example/node"),
        ("spiffe_id", "spiffe://lyon.example"),
        ("spiffe_id", "lyon"),
        ("ledger_key", "00"),
        ("ledger_key", "A" * 64),
        ("addresses", ("elsewhere.example:7443",)),
        ("addresses", ("no port",)),
        ("addresses", ("a:1", "a:1")),
        ("addresses", tuple(f"a:{port}" for port in range(1, 10))),
        ("issued_s", 0),
        ("issued_s", -1),
        ("issued_s", 2**62),
        ("bundle", ""),
        ("chain", ""),
        ("svid_signature", ""),
        ("ledger_signature", "zz"),
    ],
)
def test_a_card_with_a_changed_field_is_refused(lyon, field, value):
    with pytest.raises(IdentityError):
        check_card(msgspec.structs.replace(lyon.card(), **{field: value}))


def test_neither_key_can_be_put_on_a_card_without_its_owner(lyon, metz):
    card, other = lyon.card(), metz.card()
    for stolen in (
        msgspec.structs.replace(card, ledger_key=other.ledger_key),
        msgspec.structs.replace(card, ledger_key=other.ledger_key, ledger_signature=other.ledger_signature),
        msgspec.structs.replace(card, bundle=other.bundle, chain=other.chain),
        msgspec.structs.replace(card, svid_signature=other.svid_signature),
        msgspec.structs.replace(card, svid_signature=lyon.card(addresses=[]).svid_signature),
        msgspec.structs.replace(card, bundle=card.bundle + other.bundle),
    ):
        with pytest.raises(IdentityError):
            check_card(stolen)


def test_nobody_can_put_another_ledger_key_on_a_card_and_sign_it_with_that(lyon, metz):
    taken = msgspec.structs.replace(lyon.card(), ledger_key=metz.ledger_key.public)
    signature = metz.ledger_key.sign(card_module._ledger_statement(taken)).hex()
    with pytest.raises(IdentityError, match="signature of its SPIFFE identity"):
        check_card(msgspec.structs.replace(taken, ledger_signature=signature))


def test_nobody_can_claim_another_members_ledger_key(lyon, metz):
    class Borrowed:
        public = metz.ledger_key.public
        sign = lyon.ledger_key.sign

    with pytest.raises(IdentityError, match="signature of its ledger key"):
        lyon.card(ledger_key=Borrowed())


def test_a_ledger_key_that_is_none_is_named(lyon):
    with pytest.raises(IdentityError, match="not a ledger key"):
        check_card(msgspec.structs.replace(lyon.card(), ledger_key="A" * 64))


def test_another_members_authority_cannot_make_a_card_for_this_one(lyon, metz):
    forged = Authority(
        "lyon.example", metz.authority.bundle, metz.authority._certificate, metz.authority._key
    )
    with pytest.raises(IdentityError, match="own trust bundle"):
        lyon.card(identity=forged.issue())
    with pytest.raises(IdentityError, match=r"metz\.example"):
        lyon.card(identity=forged.issue(), bundle=metz.authority.bundle)


@pytest.mark.parametrize("name", ["", "-lyon", "lyon-", "ly on", "lyön", "l" * 64, "lyon\n", "../lyon"])
def test_a_name_that_is_no_slug_makes_no_card(lyon, name):
    with pytest.raises(IdentityError, match="small letters"):
        lyon.card(name=name)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("127.0.0.1:7443", True),
        ("localhost:1", True),
        ("node.lyon.example:65535", True),
        ("[::1]:7443", True),
        ("", False),
        ("lyon.example", False),
        ("lyon.example:", False),
        (":7443", False),
        ("lyon.example:0", False),
        ("lyon.example:65536", False),
        ("lyon.example:07", False),
        ("lyon.example:\u0661", False),
        ("ly on:7443", False),
        ("http://lyon.example:7443", False),
        ("::1:7443", False),
        ("[::1:7443", False),
        ("[lyon]:7443", False),
        ("a" * 64 + ":7443", False),
        ("lyon.example:7443\n", False),
        (".lyon:7443", False),
    ],
)
def test_an_address_is_host_and_port(address, good):
    assert is_address(address) is good


def test_a_card_is_a_plain_value(lyon):
    card = lyon.card()
    assert isinstance(card, Card)
    assert hash(card) == hash(read_card(encode_card(card)))
