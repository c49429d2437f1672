"""A member's calls on their way: none twice, none lost, whatever blocks are made of them and when."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from konsil.core.rules import Announce, ProposeRemove, Tick, Validate, Vote, decode_signed
from konsil.errors import LedgerUnreachable, Refused
from konsil.ledger.cometbft.application import MAX_BLOCK_BYTES, SEQUENCE_WINDOW, Application
from konsil.ledger.cometbft.claims import Claims

START_S = 1_700_000_000


class Member:
    """One member's claims, and the chain as its node sees it."""

    def __init__(self, world, name="lyon"):
        self.world = world
        self.name = name
        self.app = Application(world.genesis, world.verify)
        self.claims = Claims(name, world.keys[name])
        self.entries = []

    def make(self, call):
        return self.claims.make(self.app.state, call, START_S + 1)

    def block(self, calls):
        decided = self.app.finalize(self.app.position + 1, START_S + 1, calls)
        self.app.commit()
        self.entries += decided.entries
        self.claims.decided(self.app.state, decided.outcomes)
        return decided

    def own(self):
        read = [decode_signed(entry.signed) for entry in self.entries]
        return [one.call for one in read if one.caller == self.name]


def announce(number):
    return Announce((f"h{number}.example:1",))


@pytest.fixture
def member(hospitals):
    return Member(hospitals)


async def test_calls_are_numbered_one_after_another_and_settled_at_their_heights(member):
    claims = [member.make(announce(n)) for n in range(3)]
    assert [claim.sequence for claim in claims] == [1, 2, 3]
    member.block([claims[0].signed])
    member.block([claims[1].signed, claims[2].signed])
    assert [await claim.height for claim in claims] == [1, 2, 3]
    assert not member.claims.waiting


async def test_the_same_call_is_on_its_way_once(member):
    first = member.make(announce(1))
    assert member.make(announce(1)) is first
    member.block([first.signed])
    assert member.make(announce(1)).sequence == 2


async def test_what_the_rules_refuse_after_the_calls_before_it_is_not_signed(member):
    member.make(Validate(False))
    member.make(ProposeRemove("nice"))
    with pytest.raises(Refused) as caught:
        member.make(Vote(1, True))  # the proposer has voted by proposing
    assert caught.value.code == "second_vote"
    assert len(member.claims.waiting) == 2


async def test_a_call_that_will_be_refused_hides_no_later_one_from_those_after_it(member):
    """The others' blocks took the ground from under the first; what comes after it goes on all the same."""
    vote = ProposeRemove("metz")
    first = member.make(vote)
    world, app = member.world, member.app
    member.block([world.signed("nice", 1, ProposeRemove("metz")), world.signed("lille", 1, Vote(1, True))])
    assert not app.state.members["metz"].active
    second = member.make(ProposeRemove("nice"))
    with pytest.raises(Refused) as caught:
        member.make(Vote(2, True))  # proposal 2 is its own, as the call before it will make it
    assert caught.value.code == "second_vote"
    assert [claim.sequence for claim in (first, second)] == [1, 2]


async def test_a_refused_calls_number_goes_to_one_that_changes_nothing(member):
    world = member.world
    refused, after = member.make(ProposeRemove("metz")), member.make(announce(1))
    member.block([world.signed("nice", 1, ProposeRemove("metz")), world.signed("lille", 1, Vote(1, True))])
    decided = member.block([refused.signed, after.signed])
    assert [outcome.error.code for outcome in decided.outcomes] == ["unknown_member", "sequence_gap"]
    with pytest.raises(Refused) as caught:
        await refused.height
    assert caught.value.code == "unknown_member"
    closing = member.claims.waiting[0]
    assert [claim.sequence for claim in member.claims.waiting] == [1, 2]
    assert closing.call == Announce(member.app.state.members["lyon"].record.addresses)
    assert not after.height.done(), "one that came too early is not refused"
    member.block([closing.signed, after.signed])
    assert await after.height == member.app.state.height
    assert member.claims.make(member.app.state, announce(9), START_S).sequence == 3


async def test_what_was_refused_is_not_taken_when_it_is_shown_again(member):
    world = member.world
    refused = member.make(ProposeRemove("metz"))
    member.block([world.signed("nice", 1, ProposeRemove("metz")), world.signed("lille", 1, Vote(1, True))])
    member.block([refused.signed])
    assert isinstance(refused.height.exception(), Refused)
    [closing] = member.claims.waiting  # takes its number, so that no lying proposer can bring it again
    assert closing.call == Announce(member.app.state.members["lyon"].record.addresses)
    member.block([closing.signed])
    assert not member.claims.waiting
    height = member.app.state.height
    member.block([refused.signed])
    assert member.app.state.height == height


async def test_a_number_that_another_call_of_the_member_took_is_told_as_0(member):
    claim = member.make(announce(1))
    member.block([member.world.signed("lyon", 1, announce(2))])
    assert await claim.height == 0


async def test_another_call_that_is_refused_under_a_number_leaves_it_to_the_one_that_waits(member):
    claim = member.make(announce(1))
    member.block([member.world.signed("lyon", 1, Tick("no-such-study"))])
    assert not claim.height.done()
    member.block([claim.signed])
    assert await claim.height == 1


async def test_others_calls_and_bytes_that_are_none_settle_nothing(member):
    claim = member.make(announce(1))
    member.block([b"nonsense", member.world.signed("nice", 1, announce(1))])
    assert not claim.height.done()
    assert member.claims.waiting == [claim]


async def test_a_window_full_of_calls_takes_no_further_one(member):
    for number in range(SEQUENCE_WINDOW):
        member.make(announce(number))
    with pytest.raises(LedgerUnreachable, match="not signed"):
        member.make(announce(SEQUENCE_WINDOW))
    assert (
        len(member.app.prepare([c.signed for c in member.claims.waiting], MAX_BLOCK_BYTES)) == SEQUENCE_WINDOW
    )


async def test_a_member_that_is_removed_has_its_calls_refused_and_none_left(member):
    """Else they would come into a block should it be admitted again, long after it was told otherwise."""
    world, claim = member.world, member.make(announce(1))
    member.block([world.signed("nice", 1, ProposeRemove("lyon")), world.signed("lille", 1, Vote(1, True))])
    with pytest.raises(Refused) as caught:
        await claim.height
    assert caught.value.code == "not_a_member"
    assert not member.claims.waiting
    with pytest.raises(Refused):
        member.make(announce(2))


async def test_whoever_gave_up_waiting_does_not_disturb_the_others(member):
    claim, other = member.make(announce(1)), member.make(announce(2))
    claim.height.cancel()
    member.block([claim.signed, other.signed])
    assert await other.height == 2


async def test_once_nothing_will_be_decided_everyone_hears_why(member):
    claims = [member.make(announce(n)) for n in range(2)]
    member.claims.fail(LedgerUnreachable("gone"))
    for claim in claims:
        with pytest.raises(LedgerUnreachable, match="gone"):
            await claim.height


# --- any interleaving ------------------------------------------------------------------------------


class Interleaved(RuleBasedStateMachine):
    """A pool and proposers that reorder, delay, drop and repeat, and others whose calls spoil this member's."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def teardown(self):
        asyncio.set_event_loop(None)
        self.loop.close()

    def run(self, work):
        async def inside():
            return work()

        return self.loop.run_until_complete(inside())

    @initialize()
    def begin(self):
        self.member = Member(Interleaved.world)
        self.seen, self.asked, self.others = [], [], {"lille": 0, "metz": 0, "nice": 0}

    @rule(number=st.integers(0, 6))
    def announce(self, number):
        self.submit(announce(number))

    @rule(name=st.sampled_from(["lille", "metz", "nice"]))
    def remove(self, name):
        self.submit(ProposeRemove(name))

    @rule(number=st.integers(1, 3), yes=st.booleans())
    def vote(self, number, yes):
        self.submit(Vote(number, yes))

    @rule(on=st.booleans())
    def validate(self, on):
        self.submit(Validate(on))

    def submit(self, call):
        try:
            claim = self.run(lambda: self.member.make(call))
        except Refused:
            return
        if claim not in self.asked:
            self.asked.append(claim)
        self.look()

    def look(self):
        """Whatever was ever signed is out: anybody may have kept it."""
        for claim in self.member.claims.waiting:
            if claim.signed not in self.seen:
                self.seen.append(claim.signed)

    @rule(name=st.sampled_from(["lille", "metz", "nice"]), number=st.integers(0, 3), against=st.booleans())
    def others_call(self, name, number, against):
        member = self.member.app.state.members[name]
        call = ProposeRemove("metz") if against and name != "metz" else Vote(number, True)
        self.run(lambda: self.member.block([Interleaved.world.signed(name, member.sequence + 1, call)]))
        self.look()

    @rule(data=st.data(), bold=st.booleans())
    def block(self, data, bold):
        """Any of what was ever signed, in any order, again and again; or as an honest proposer picks it."""
        drawn = data.draw(st.lists(st.sampled_from(self.seen), max_size=6)) if self.seen else []
        calls = drawn if bold else self.member.app.prepare(drawn, MAX_BLOCK_BYTES)
        self.run(lambda: self.member.block(calls))
        self.look()

    @precondition(lambda self: self.seen)
    @rule()
    def all_of_it(self):
        """What waits comes in the end."""
        for _ in range(2 * len(self.member.claims.waiting) + 1):
            waiting = [claim.signed for claim in self.member.claims.waiting]
            self.run(lambda: self.member.block(self.member.app.prepare(waiting, MAX_BLOCK_BYTES)))  # noqa: B023
            self.look()
        assert not self.member.claims.waiting, "it can never be decided"

    @invariant()
    def each_is_told_once_and_truly(self):
        if not hasattr(self, "member"):
            return
        standing = {entry.signed: entry.height for entry in self.member.entries}
        assert len(standing) == len(self.member.entries), "a call was applied twice"
        for claim in self.asked:
            if not claim.height.done():
                assert claim in self.member.claims.waiting
                assert claim.signed not in standing
            elif claim.height.exception() is None and claim.height.result():
                assert standing[claim.signed] == claim.height.result()

    @invariant()
    def numbers_that_wait_have_no_gap(self):
        if not hasattr(self, "member"):
            return
        at = self.member.app.state.members["lyon"].sequence
        waiting = [claim.sequence for claim in self.member.claims.waiting]
        assert waiting == list(range(at + 1, at + 1 + len(waiting)))


def test_no_interleaving_applies_a_call_twice_or_loses_one(hospitals):
    Interleaved.world = hospitals
    run_state_machine_as_test(
        Interleaved, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )


async def test_of_many_members_that_tick_at_once_those_that_are_late_say_no_more(member):
    late = member.claims.make(member.app.state, announce(1), START_S)
    member.block([late.signed])
    tick = member.claims._sign(member.app.state.genesis, 2, Tick("no-such-study"))
    member.claims._pending[2] = tick
    member.block([tick.signed])
    assert isinstance(tick.height.exception(), Refused)
    assert not member.claims.waiting
