"""Cards become peers; a damaged or missing card is fetched, and a false one is not taken."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from konsil.core.rules import Genesis, Renew, apply, initial_state
from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.card import card_digest, encode_card, make_card, member_record, read_card, write_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.verify import canonical_bundle
from konsil.node.directory import OLD_BUNDLE_S, Cards, Directory


class Site:
    """Three members' cards, and the directory of 'a'."""

    def __init__(self, root) -> None:
        self.cards = {}
        self.bytes = {}
        self.keys = {}
        self.places = {name: root / name for name in "abc"}
        for name, place in self.places.items():
            place.mkdir()
            authority = Authority.create(place, f"{name}.example")
            self.keys[name] = LedgerKey.create(place / "ledger.pem")
            card = make_card(
                name, authority.issue(), authority.bundle, self.keys[name], (f"{name}.example:7400",)
            )
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

    def newer(self, name, key=None, after_s=1):
        """The bytes of another card of a member, with another authority."""
        place = self.places[name] / f"after {after_s}"
        place.mkdir()
        authority, issued_s = Authority.create(place, f"{name}.example"), self.cards[name].issued_s + after_s
        svid = authority.issue(now_s=issued_s)
        return encode_card(make_card(name, svid, authority.bundle, key or self.keys[name], now_s=issued_s))

    def renew(self, name, data, now_s=1_000_100):
        """Put a card on the ledger by its member's call."""
        record = member_record(read_card(data))
        self.state = apply(self.state, name, 1, Renew(record.bundle, record.card), now_s)

    def bundle(self, name):
        """What is trusted of a member; None if it is no peer."""
        return next((peer.bundle for peer in self.directory.peers(self.state)[0] if peer.name == name), None)

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


async def test_who_renews_its_card_stays_a_peer_and_is_trusted_by_the_new_one_once_that_is_here(site):
    site.keep("b", "c")
    old, data = site.bundle("b"), site.newer("b")
    site.renew("b", data)
    assert site.names() == (["c", "b"], ["b"])
    assert site.bundle("b") == old
    peers = PeersWith(c=IdentityError("not here"), b=data)
    assert await site.directory.fetch([site.record("b")], peers)
    assert peers.asked == ["b"], "who renews its card has it first"
    assert site.names() == (["b", "c"], [])
    assert site.bundle("b") == read_card(data).bundle.encode()
    assert old not in site.bundle("b"), "the old root is trusted no longer"


def test_an_old_card_is_not_good_for_long_where_the_new_one_is_not_to_be_had(site):
    site.keep("b", "c").renew("b", site.newer("b"))
    site.state = replace(site.state, now_s=1_000_100 + OLD_BUNDLE_S - 1)
    assert site.names() == (["c", "b"], ["b"])
    site.state = replace(site.state, now_s=1_000_100 + OLD_BUNDLE_S)
    assert site.names() == (["c"], ["b"])


def test_an_old_card_of_another_ledger_key_is_good_for_nothing(site):
    site.keep("b", "c")
    other = replace(site.record("b"), ledger_key="d" * 64, card="e" * 64)
    member = replace(site.state.members["b"], record=other, renewed_s=1_000_100)
    site.state = replace(site.state, members=site.state.members | {"b": member})
    assert site.names() == (["c"], ["b"])


def test_a_newer_card_that_was_put_here_by_hand_is_trusted_beside_the_one_on_the_ledger(site):
    site.keep("b", "c")
    old, data = site.bundle("b"), site.newer("b")
    site.held.put(data)
    new = read_card(data).bundle.encode()
    assert site.bundle("b") == canonical_bundle(old + new)
    site.renew("b", data)
    assert site.bundle("b") == new


def test_a_card_that_comes_while_the_folder_is_looked_at_is_seen(site):
    site.keep("b", "c").names()
    before_ns = site.held.directory.stat().st_mtime_ns
    data = site.newer("b")
    site.held.put(data)
    os.utime(site.held.directory, ns=(before_ns, before_ns))  # as where both fell into one step of its time
    assert site.bundle("b") == canonical_bundle((read_card(data).bundle + site.cards["b"].bundle).encode())


def test_a_newer_card_is_taken_by_hand(site):
    site.keep("b", "c")
    data = site.newer("b")
    site.directory.trust(data, site.state)
    assert read_card(data) in site.held.kin()[("b", "spiffe://b.example/node", site.keys["b"].public)]
    site.directory.trust(site.bytes["b"], site.state)  # the one on the ledger: nothing to do
    assert len(list(site.held.directory.iterdir())) == 3


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("another key", "knows no other member 'b'"),
        ("older", "not newer"),
        ("as old", "not newer"),
        ("own", "knows no other member 'a'"),
        ("removed", "knows no other member 'b'"),
        ("changed", "does not fit"),
    ],
)
def test_another_card_is_not_taken_by_hand(site, tmp_path, case, why):
    site.keep("b", "c")
    name, key = ("a" if case == "own" else "b"), None
    if case == "another key":
        key = LedgerKey.create(tmp_path / "other.pem")
    if case == "removed":
        gone = replace(site.state.members["b"], active=False)
        site.state = replace(site.state, members=site.state.members | {"b": gone})
    data = site.newer(name, key, after_s={"older": -1, "as old": 0}.get(case, 1))
    if case == "changed":
        at = data.index(b'"ledger_signature": "') + 25
        data = data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]
    with pytest.raises(IdentityError, match=why):
        site.directory.trust(data, site.state)
    assert len(list(site.held.directory.iterdir())) == 2


@pytest.mark.parametrize("case", ["another key", "older", "as old", "no card"])
def test_what_else_is_in_the_folder_is_trusted_by_nobody(site, case, tmp_path):
    site.keep("b", "c")
    old = site.bundle("b")
    if case == "another key":
        site.held.put(site.newer("b", LedgerKey.create(tmp_path / "other.pem")))
    elif "old" in case:
        site.held.put(site.newer("b", after_s=-1 if case == "older" else 0))
    else:
        (site.held.directory / f"{'a' * 64}.json").write_bytes(site.newer("b"))
    assert site.bundle("b") == old
