"""Cards become peers; a damaged or missing card is fetched, and a false one is not taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from konsil.core.rules import Genesis, initial_state
from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.card import card_digest, make_card, member_record, write_card
from konsil.identity.ledger_key import LedgerKey
from konsil.node.directory import Cards, Directory


class Site:
    """Three members' cards, and the directory of 'a'."""

    def __init__(self, root) -> None:
        self.cards = {}
        self.bytes = {}
        for name in "abc":
            place = root / name
            place.mkdir()
            authority = Authority.create(place, f"{name}.example")
            key = LedgerKey.create(place / "ledger.pem")
            card = make_card(name, authority.issue(), authority.bundle, key, (f"{name}.example:7400",))
            write_card(card, place / "card.json")
            self.cards[name] = card
            self.bytes[name] = (place / "card.json").read_bytes()
        records = tuple(member_record(self.cards[name]) for name in "abc")
        self.state = initial_state(Genesis("lungs", "local", "a", 1_000_000, records))
        (root / "cards").mkdir()
        self.held = Cards(root / "cards")
        self.directory = Directory("a", self.held)

    def keep(self, *names):
        for name in names:
            self.held.put(self.bytes[name])
        return self

    def file(self, name):
        return self.held.directory / f"{card_digest(self.cards[name])}.json"

    def names(self):
        found, lacking = self.directory.peers(self.state)
        return [peer.name for peer in found], [record.name for record in lacking]

    def record(self, name):
        return self.state.members[name].record


class PeersWith:
    """Peers that answer a request for any card with these bytes."""

    def __init__(self, **answers) -> None:
        self.answers = answers
        self.asked = []

    def connected(self):
        return tuple(self.answers)

    async def ask(self, peer, _request, **_options):
        self.asked.append(peer)
        if isinstance(self.answers[peer], Exception):
            raise self.answers[peer]
        return None, SimpleNamespace(body=self.answers[peer])


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def test_other_members_become_peers_with_their_bundles(site):
    found, lacking = site.keep("a", "b", "c").directory.peers(site.state)
    assert [(peer.name, peer.addresses) for peer in found] == [
        ("b", ("b.example:7400",)),
        ("c", ("c.example:7400",)),
    ]
    assert found[0].bundle == site.cards["b"].bundle.encode()
    assert lacking == []


def test_a_card_is_read_once_until_its_member_moves(site, monkeypatch):
    read = []
    bytes_of = site.held.bytes_of
    monkeypatch.setattr(site.held, "bytes_of", lambda digest: read.append(digest) or bytes_of(digest))
    site.keep("b", "c").names()
    assert site.names() == (["b", "c"], [])
    assert len(read) == 2
    moved = replace(site.record("b"), addresses=("b.example:7401",))
    site.state = replace(
        site.state, members=site.state.members | {"b": replace(site.state.members["b"], record=moved)}
    )
    found, _ = site.directory.peers(site.state)
    assert found[0].addresses == ("b.example:7401",)
    assert len(read) == 3


def test_a_removed_member_is_no_peer(site):
    gone = replace(site.state.members["b"], active=False)
    site.state = replace(site.state, members=site.state.members | {"b": gone})
    assert site.keep("b", "c").names() == (["c"], [])


@pytest.mark.parametrize("damage", ["missing", "empty", "a byte", "another's"])
def test_a_card_that_is_missing_or_damaged_is_to_be_fetched(site, damage):
    site.keep("b", "c")
    if damage == "missing":
        site.file("b").unlink()
    elif damage == "another's":
        site.file("b").write_bytes(site.bytes["c"])
    else:
        site.file("b").write_bytes(site.bytes["b"].replace(b"7400", b"7401") if damage == "a byte" else b"")
    assert site.names() == (["c"], ["b"])


async def test_a_card_is_fetched_from_the_first_peer_that_has_the_right_one(site):
    site.keep("b")
    false = site.bytes["c"].replace(b"7400", b"7401")
    peers = PeersWith(b=b"nonsense", d=site.bytes["b"], e=false, f=site.bytes["c"], g=site.bytes["c"])
    assert await site.directory.fetch([site.record("c")], peers)
    assert peers.asked == ["b", "d", "e", "f"]
    assert site.names() == (["b", "c"], [])


async def test_a_damaged_card_is_replaced_by_the_one_that_was_fetched(site):
    site.keep("b", "c")
    site.file("c").write_bytes(b"{}")
    assert await site.directory.fetch([site.record("c")], PeersWith(b=site.bytes["c"]))
    assert site.names() == (["b", "c"], [])


async def test_when_nobody_has_a_card_none_is_kept(site):
    peers = PeersWith(b=IdentityError("no"), d=b"")
    assert not await site.directory.fetch([site.record("c")], peers)
    assert not site.file("c").exists()


def test_a_digest_from_a_peer_names_no_other_file(site):
    site.keep("b")
    (site.held.directory.parent / "secret.json").write_text("secret")
    for asked in ("../secret", "", "/etc/passwd", "..%2fsecret", "b" * 5000):
        assert site.held.bytes_of(asked) is None


def test_a_false_card_is_not_kept(site):
    with pytest.raises(IdentityError):
        site.held.put(site.bytes["b"].replace(b"7400", b"7401"))
    assert list(site.held.directory.iterdir()) == []
