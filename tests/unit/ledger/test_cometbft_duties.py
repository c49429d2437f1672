"""What a node says on the ledger by itself: that it validates, and who was proven to cheat."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from msgspec.structs import replace

from konsil.core.rules import ProposeRemove, Validate, apply, initial_state
from konsil.errors import LedgerUnreachable
from konsil.ledger.cometbft import duties as duties_module
from konsil.ledger.cometbft.application import Misbehaviour
from konsil.ledger.cometbft.duties import Duties

CHEAT = Misbehaviour("nice", "signed two different votes", 7)


class Ledger:
    """The contract alone: every call that is submitted stands at once."""

    def __init__(self, genesis):
        self.state = initial_state(genesis)
        self.said = []
        self.catching_up = False
        self.news = asyncio.Event()

    async def ask(self, method):
        assert method == "status"
        if self.catching_up is None:
            raise LedgerUnreachable("it is just starting")
        return {"sync_info": {"catching_up": self.catching_up}}

    async def changed(self, after, timeout_s):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.state.height <= after:
                    self.news.clear()
                    await self.news.wait()
        return self.state.height

    def take(self, name, call):
        sequence = self.state.members[name].sequence + 1
        self.state = apply(self.state, name, sequence, call, self.state.now_s + 1)
        self.said.append((name, call))
        self.news.set()

    def by(self, name, *, validate=True):
        async def submit(call):
            self.take(name, call)
            return self.state.height

        return Duties(name, validate, self, self, submit)


@pytest.fixture
def ledger(world, monkeypatch):
    monkeypatch.setattr(duties_module, "LOOK_S", 0.02)
    monkeypatch.setattr(duties_module, "TURN_S", 0.2)
    return Ledger(replace(world.genesis, engine="cometbft", operator=""))


@contextlib.asynccontextmanager
async def running(*duties):
    try:
        yield
    finally:
        for each in duties:
            await each.close()


async def test_a_member_says_nothing_where_all_is_as_its_settings_say(ledger):
    duties = ledger.by("lyon")
    async with running(duties):
        duties.start()
        await asyncio.sleep(0.1)
    assert ledger.said == []


async def test_a_member_that_is_to_validate_says_so_once_it_has_all_blocks(ledger):
    ledger.take("lyon", Validate(on=False))
    ledger.said.clear()
    ledger.catching_up = None
    duties = ledger.by("lyon")
    async with running(duties):
        duties.start()
        await asyncio.sleep(0.06)
        ledger.catching_up = True
        await asyncio.sleep(0.06)
        assert ledger.said == []
        ledger.catching_up = False
        await ledger.changed(ledger.state.height, 5.0)
    assert ledger.said == [("lyon", Validate(on=True))]


async def test_a_member_that_shall_not_validate_says_so(ledger):
    duties = ledger.by("lyon", validate=False)
    async with running(duties):
        duties.start()
        await ledger.changed(0, 5.0)
    assert ledger.said == [("lyon", Validate(on=False))]


async def test_the_first_other_member_accuses_and_nobody_does_it_again(ledger):
    all_duties = [ledger.by(name) for name in ("lille", "lyon", "nice")]
    async with running(*all_duties):
        for duties in all_duties:
            duties.accuse([CHEAT])
        await asyncio.sleep(0.5)
    [(accuser, call)] = ledger.said
    assert accuser == "lille"
    assert isinstance(call, ProposeRemove)
    assert call.member == "nice"
    assert "height 7" in call.reason


async def test_where_the_first_is_silent_the_next_one_accuses(ledger):
    duties = ledger.by("lyon")
    async with running(duties):
        duties.accuse([CHEAT])
        await ledger.changed(0, 5.0)
    assert [name for name, _ in ledger.said] == ["lyon"]


async def test_a_proof_that_was_put_to_a_vote_is_not_again_after_a_restart(ledger):
    first = ledger.by("lille")
    async with running(first):
        first.accuse([CHEAT])
        await ledger.changed(0, 5.0)
    again = ledger.by("lille")
    async with running(again):
        again.accuse([CHEAT])
        await asyncio.sleep(0.1)
    assert len(ledger.said) == 1


async def test_the_cheat_itself_accuses_nobody(ledger):
    duties = ledger.by("nice")
    async with running(duties):
        duties.accuse([CHEAT])
        await asyncio.sleep(0.5)
    assert ledger.said == []
