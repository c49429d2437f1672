"""A trust bundle that changes goes onto the ledger, and the certificate that peers see waits for that."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from konsil.core.rules import Genesis, Renew, apply, initial_state
from konsil.errors import IdentityError, LedgerUnreachable, Refused
from konsil.identity.authority import Authority
from konsil.identity.card import encode_card, make_card, member_record, read_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.verify import bundle_digest, canonical_bundle
from konsil.node import renewal as module
from konsil.node.directory import Cards
from konsil.node.renewal import Renewal

NODE = "spiffe://lyon.example/node"


class Source:
    """A Workload API's news, as a test says them."""

    def __init__(self, svid, bundle):
        self.svid, self.bundle = svid, canonical_bundle(bundle)
        self.listeners = []

    def on_change(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def news(self, svid, bundle):
        self.svid, self.bundle = svid, canonical_bundle(bundle)
        for listener in self.listeners:
            listener()


class Ledger:
    """The contract, and what has been said to it; ``fails`` is raised first."""

    def __init__(self, records):
        self.state = initial_state(Genesis("lungs", "local", "lyon", 1_000, records))
        self.said = []
        self.fails = []
        self.heard = asyncio.Event()
        self.before = lambda: None

    async def submit(self, call):
        self.before()
        self.said.append(call)
        if self.fails:
            raise self.fails.pop(0)
        sequence = self.state.members["lyon"].sequence + 1
        self.state = apply(self.state, "lyon", sequence, call, 2_000)
        self.heard.set()
        return self.state.height


class Lyon:
    def __init__(self, root):
        self.old, self.new = (Authority.create(root / name, "lyon.example") for name in ("old", "new"))
        self.key = LedgerKey.create(root / "ledger.pem")
        (root / "cards").mkdir()
        self.cards = Cards(root / "cards")
        self.source = Source(self.old.issue(), self.old.bundle)
        card = make_card("lyon", self.source.svid, self.old.bundle, self.key, ("lyon.example:7400",))
        self.cards.put(encode_card(card))
        self.card = card
        other = replace(
            member_record(card),
            name="bonn",
            spiffe_id="spiffe://bonn.example/node",
            ledger_key="b" * 64,
            card="c" * 64,
        )
        self.ledger = Ledger((other, member_record(card)))
        config = SimpleNamespace(name="lyon", card_file=root / "lyon.card.json")
        self.now_s = time.time()
        self.renewal = Renewal(config, self.key, self.source, self.cards, clock=lambda: self.now_s)
        self.renewal.ledger = self.ledger
        self.card_file = config.card_file

    @property
    def record(self):
        return self.ledger.state.members["lyon"].record

    @property
    def both(self):
        return self.old.bundle + self.new.bundle

    async def heard(self):
        async with asyncio.timeout(5):
            await self.ledger.heard.wait()
        self.ledger.heard.clear()


@pytest.fixture
def lyon(tmp_path):
    return Lyon(tmp_path)


async def test_another_bundle_goes_onto_the_ledger_with_a_card_that_peers_can_have_by_then(lyon):
    there = []
    lyon.ledger.before = lambda: there.extend(path.name for path in lyon.cards.directory.iterdir())
    async with lyon.renewal:
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.heard()
    (call,) = lyon.ledger.said
    card = lyon.cards.get(lyon.record)
    assert call == Renew(lyon.record.bundle, lyon.record.card)
    assert f"{call.card}.json" in there
    assert card.bundle.encode() == canonical_bundle(lyon.both)
    assert card.addresses == ("lyon.example:7400",)
    assert read_card(lyon.card_file.read_bytes()) == card
    assert not lyon.renewal.problem


async def test_a_bundle_that_the_ledger_has_is_not_said_again(lyon):
    async with lyon.renewal:
        lyon.source.news(lyon.old.issue(), lyon.old.bundle)
        await asyncio.sleep(0)
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.heard()
        lyon.source.news(lyon.new.issue(), lyon.both)
        await asyncio.sleep(0)
        lyon.source.news(lyon.new.issue(), lyon.new.bundle)
        await lyon.heard()
    assert [call.bundle for call in lyon.ledger.said] == [
        bundle_digest(lyon.both),
        bundle_digest(lyon.new.bundle),
    ]


@pytest.mark.parametrize("failure", [LedgerUnreachable("away"), Refused("too_many_renewals", "Too many.")])
async def test_what_the_ledger_did_not_take_is_said_again_with_the_same_card(lyon, monkeypatch, failure):
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
    lyon.ledger.fails = [failure, failure]
    told = []
    lyon.ledger.before = lambda: told.append(lyon.renewal.problem)
    async with lyon.renewal:
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.heard()
    assert len(lyon.ledger.said) == 3
    assert len(set(lyon.ledger.said)) == 1
    assert not told[0]
    assert failure.what in told[2]


async def test_a_later_card_is_the_newer_one_also_where_the_clock_was_put_back(lyon):
    lyon.now_s = lyon.card.issued_s - 60
    async with lyon.renewal:
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.heard()
    assert lyon.cards.get(lyon.record).issued_s == lyon.card.issued_s + 1


async def test_another_spiffe_id_is_told_and_not_put_on_the_ledger(lyon, monkeypatch):
    told = asyncio.Event()
    log = SimpleNamespace(warning=lambda *_words, **_facts: told.set(), info=lambda *_words, **_facts: None)
    monkeypatch.setattr(module, "_log", log)
    async with lyon.renewal:
        lyon.source.news(lyon.new.issue("/other"), lyon.both)
        async with asyncio.timeout(5):
            await told.wait()
        assert "spiffe://lyon.example/other" in lyon.renewal.problem
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.heard()
    assert len(lyon.ledger.said) == 1


async def test_who_is_no_member_says_nothing_until_it_is_one(lyon):
    member = lyon.ledger.state.members["lyon"]

    def put(now):
        lyon.ledger.state = replace(lyon.ledger.state, members=lyon.ledger.state.members | {"lyon": now})

    put(replace(member, active=False))
    async with lyon.renewal:
        lyon.source.news(lyon.new.issue(), lyon.both)
        await lyon.renewal._renew()
        assert lyon.ledger.said == []
        assert lyon.renewal.svid is lyon.source.svid
        put(member)
        lyon.renewal.look()
        await lyon.heard()
    assert len(lyon.ledger.said) == 1


async def test_a_certificate_of_a_root_that_the_ledger_does_not_know_waits(lyon):
    first = lyon.renewal.svid
    second = lyon.old.issue()
    lyon.source.news(second, lyon.both)
    assert lyon.renewal.svid is second, "of the root that is known"
    third = lyon.new.issue()
    lyon.source.news(third, lyon.both)
    assert lyon.renewal.svid is second
    async with lyon.renewal:
        await lyon.heard()
    assert lyon.renewal.svid is third
    assert first is not second


async def test_a_certificate_does_not_wait_for_longer_than_the_one_before_it_is_good(lyon):
    held = lyon.renewal.svid
    new = lyon.new.issue()
    lyon.source.news(new, lyon.both)
    lyon.now_s = held.not_after_s - 1
    assert lyon.renewal.svid is held
    lyon.now_s = held.not_after_s
    assert lyon.renewal.svid is new


async def test_without_a_certificate_it_says_so(lyon):
    class Nothing:
        @property
        def svid(self):
            raise IdentityError("Nothing was issued yet.")

    lyon.renewal._source = Nothing()
    with pytest.raises(IdentityError, match="Nothing was issued"):
        _ = lyon.renewal.svid
