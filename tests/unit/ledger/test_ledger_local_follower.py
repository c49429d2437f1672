from __future__ import annotations

import asyncio
import shutil
import threading

import msgspec
import pytest

from konsil.core.rules import (
    MAX_CALL_BYTES,
    ProposeRemove,
    Vote,
    encode_entry,
    entry_digest,
    state_digest,
)
from konsil.errors import FrameError, LedgerError, LedgerUnreachable, PeerUnreachable, Refused
from konsil.ledger.journal import Journal
from konsil.ledger.verify import verify


class Line:
    """The operator as a follower reaches it; breaks where a test says so."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.down = False
        self.lose_request = self.lose_answer = 0
        self.submits = self.follows = 0
        self.refused = asyncio.Event()

    async def submit(self, signed):
        self.submits += 1
        if self.down or self._lost("lose_request"):
            raise PeerUnreachable("lyon does not answer.")
        height = await self.ledger.accept(signed)
        if self._lost("lose_answer"):
            raise PeerUnreachable("The connection to lyon broke.")
        return height

    async def follow(self, after, wait_s):
        self.follows += 1
        if self.down:
            self.refused.set()
            raise PeerUnreachable("lyon does not answer.")
        return await self.ledger.follow(after, wait_s)

    def _lost(self, what):
        left = getattr(self, what)
        setattr(self, what, max(0, left - 1))
        return left > 0


class Told:
    """An operator that tells whatever a test wants."""

    def __init__(self, entries):
        self.entries = [encode_entry(entry) for entry in entries]

    async def submit(self, _signed):
        raise PeerUnreachable("It takes nothing.")

    async def follow(self, after, wait_s):
        if after >= len(self.entries):
            await asyncio.sleep(wait_s)
        return self.entries[after:]


async def _follow_on(follower):
    while True:
        await follower.changed(follower.state.height, 2.0)


async def test_a_followers_call_stands_in_both_states_which_are_equal(tmp_path, world):
    async with (
        await world.operator(tmp_path / "o.db") as operator,
        await world.follower(tmp_path / "f.db", Line(operator)) as follower,
    ):
        assert await follower.submit(world.announcement(1)) == 1
        assert follower.state.members["nice"].record.addresses == ("host-1.example:7400",)
        await operator.submit(world.announcement(2))
        assert await follower.changed(1, 5.0) == 2
        assert state_digest(follower.state) == state_digest(operator.state)
        assert follower.problem == ""
        assert follower.description == operator.description
    assert verify(world.genesis, tmp_path / "f.db", world.verify).height == 2


async def test_concurrent_calls_of_a_follower_are_all_taken_in_order(tmp_path, world):
    async with (
        await world.operator(tmp_path / "o.db") as operator,
        await world.follower(tmp_path / "f.db", Line(operator)) as follower,
    ):
        calls = (follower.submit(world.announcement(number)) for number in range(10))
        assert await asyncio.gather(*calls) == list(range(1, 11))
        assert follower.state.members["nice"].record.addresses == ("host-9.example:7400",)


async def test_two_followers_and_the_operator_agree_on_one_order(tmp_path, world):
    async with (
        await world.operator(tmp_path / "o.db") as operator,
        await world.follower(tmp_path / "n.db", Line(operator), "nice") as nice,
        await world.follower(tmp_path / "l.db", Line(operator), "lille") as lille,
    ):
        everyone = (operator, nice, lille)
        await asyncio.gather(*(who.submit(world.announcement(n)) for n in range(5) for who in everyone))
        for who in everyone:
            assert await who.changed(14, 5.0) == 15
        assert len({state_digest(who.state) for who in everyone}) == 1


async def test_a_lost_answer_does_not_apply_the_call_twice(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            line.lose_answer = 1
            assert await follower.submit(world.announcement(1)) == 1
            assert operator.state.height == 1
            assert await follower.submit(world.announcement(2)) == 2
            assert operator.state.members["nice"].sequence == 2


async def test_a_lost_request_is_sent_again(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            line.lose_request = 2
            assert await follower.submit(world.announcement(1)) == 1
            assert line.submits == 3
            assert operator.state.height == 1


async def test_a_call_that_was_taken_while_the_news_were_cut_off_is_found_in_the_history(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            await follower.submit(world.announcement(1))
            follower._following.cancel()  # no news from here on but what submit itself asks for
            await asyncio.wait((follower._following,))
            line.lose_answer = 1
            assert await follower.submit(world.announcement(2)) == 2
            assert operator.state.height == 2


async def test_a_follower_with_an_old_copy_heals_its_sequence_from_the_history(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            await follower.submit(world.announcement(1))
        shutil.copy(tmp_path / "f.db", tmp_path / "old.db")
        async with await world.follower(tmp_path / "f.db", line) as follower:
            await follower.submit(world.announcement(2))
            await follower.submit(world.announcement(3))
        async with await world.follower(tmp_path / "old.db", line) as follower:
            assert follower.state.height == 1
            assert await follower.submit(world.announcement(4)) == 4
            assert follower.state.members["nice"].sequence == 4


async def test_a_refusal_comes_back_as_it_is(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            with pytest.raises(Refused) as caught:
                await follower.submit(Vote(7, yes=True))
            assert caught.value.code
            with pytest.raises(FrameError, match="over the limit"):
                await follower.submit(ProposeRemove("lille", "x" * MAX_CALL_BYTES))
            assert line.submits == 1
            assert await follower.submit(world.announcement(1)) == 1


async def test_without_an_operator_a_call_fails_at_its_deadline_and_is_safe_to_repeat(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line, submit_s=0.2) as follower:
            line.down = True
            with pytest.raises(LedgerUnreachable, match="may or may not have been taken") as caught:
                await follower.submit(world.announcement(1))
            assert "lyon does not answer" in str(caught.value)
            line.down = False
            follower.nudge()
            assert await follower.submit(world.announcement(1)) == 1
            assert operator.state.height == 1


async def test_a_nudge_ends_the_wait_for_the_operator(tmp_path, world, monkeypatch):
    monkeypatch.setattr("konsil.ledger.local.follower.FIRST_WAIT_S", 60.0)
    monkeypatch.setattr("konsil.ledger.local.follower.LONGEST_WAIT_S", 60.0)
    async with await world.operator(tmp_path / "o.db") as operator:
        line = Line(operator)
        line.down = True
        async with await world.follower(tmp_path / "f.db", line) as follower:
            await asyncio.wait_for(line.refused.wait(), 2)
            await asyncio.sleep(0)
            assert "does not answer" in follower.problem
            line.down = False
            await operator.submit(world.announcement(1))
            follower.nudge()
            assert await follower.changed(0, 2.0) == 1
            assert follower.problem == ""


async def test_a_late_follower_catches_up_in_bounded_pieces(tmp_path, world, monkeypatch):
    monkeypatch.setattr("konsil.ledger.replica.MAX_ENTRIES_BYTES", 4096)
    async with await world.operator(tmp_path / "o.db") as operator:
        await asyncio.gather(*(operator.submit(world.announcement(number)) for number in range(60)))
        line = Line(operator)
        async with await world.follower(tmp_path / "f.db", line) as follower:
            while await follower.changed(follower.state.height, 2.0) < 60:
                pass
            assert state_digest(follower.state) == state_digest(operator.state)
            assert line.follows >= 6


async def test_an_operator_that_answers_at_once_with_nothing_does_not_make_it_spin(tmp_path, world):
    class Empty(Told):
        asked = 0

        async def follow(self, _after, _wait_s):
            self.asked += 1
            return []

    empty = Empty([])
    async with await world.follower(tmp_path / "f.db", empty) as follower:
        await follower.changed(0, 0.25)
        assert 1 <= empty.asked <= 4


def _altered(entries, world):
    other = world.signed("lyon", 3, world.announcement(33))
    return _relinked([*entries[:2], msgspec.structs.replace(entries[2], signed=other), *entries[3:]])


def _forged(entries, world):
    forged = world.signed("nice", 1, world.announcement(3), key=world.keys["lyon"])
    return _relinked([*entries[:2], msgspec.structs.replace(entries[2], signed=forged)])


def _reordered(entries, world):
    return [*entries[:2], entries[3], entries[2]]


def _left_out(entries, world):
    return _relinked([*entries[:2], msgspec.structs.replace(entries[3], height=3)])


def _backwards(entries, world):
    return _relinked([*entries[:2], msgspec.structs.replace(entries[2], time_s=1)])


def _wrong_state(entries, world):
    return _relinked([*entries[:2], msgspec.structs.replace(entries[2], state=entries[1].state)])


def _relinked(entries):
    linked = [entries[0]]
    for entry in entries[1:]:
        linked.append(msgspec.structs.replace(entry, previous=entry_digest(linked[-1])))
    return linked


@pytest.mark.parametrize("lie", [_altered, _forged, _reordered, _left_out, _backwards, _wrong_state])
async def test_a_lying_operator_is_caught_and_what_was_right_is_kept(tmp_path, world, lie):
    told = Told(lie(world.entries(5), world))
    async with await world.follower(tmp_path / "f.db", told) as follower:
        with pytest.raises(LedgerError, match="lyon") as caught:
            await _follow_on(follower)
        assert caught.value.fields["height"] == 3
        assert follower.state.height == 2
        assert "lyon" in follower.problem
        with pytest.raises(LedgerError, match="lyon"):
            await follower.submit(world.announcement(1))
    with Journal(tmp_path / "f.db", world.digest) as journal:
        assert [entry.height for entry in journal.read()] == [1, 2]


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, b"\x00" * 200_000])
async def test_bytes_that_are_no_entry_are_caught(tmp_path, world, data):
    told = Told(world.entries(2))
    told.entries.append(data)
    async with await world.follower(tmp_path / "f.db", told) as follower:
        with pytest.raises(LedgerError, match="does not hold"):
            await _follow_on(follower)
        assert follower.state.height == 2


async def test_a_second_history_of_the_operator_is_called_a_fork(tmp_path, world):
    async with await world.follower(tmp_path / "f.db", Told(world.entries(3))) as follower:
        assert await follower.changed(2, 2.0) == 3
    async with await world.follower(tmp_path / "f.db", Told(world.entries(5, mark="x"))) as follower:
        with pytest.raises(LedgerError, match="another history than the one it told before") as caught:
            await follower.changed(3, 2.0)
        assert caught.value.fields == {"height": 4, "fork": True}
        assert follower.state.height == 3


async def test_an_operator_that_lost_its_history_is_told_apart_from_silence(tmp_path, world):
    async with (
        await world.operator(tmp_path / "o.db") as operator,
        await world.follower(tmp_path / "f.db", Line(operator)) as follower,
    ):
        await follower.submit(world.announcement(1))
    async with (
        await world.operator(tmp_path / "empty.db") as operator,
        await world.follower(tmp_path / "f.db", Line(operator), submit_s=0.3) as follower,
    ):
        with pytest.raises(LedgerUnreachable, match="this history ends at 0"):
            await follower.submit(world.announcement(2))
        assert operator.state.height == 0
        assert "ends at 0" in follower.problem


async def test_an_asker_that_gives_up_leaves_what_was_written_in_view(tmp_path, world):
    async with (
        await world.operator(tmp_path / "o.db") as operator,
        await world.follower(tmp_path / "f.db", Line(operator)) as follower,
    ):
        for number in range(20):
            task = asyncio.ensure_future(follower.submit(world.announcement(number)))
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
        height = await follower.submit(world.announcement(99))
        assert height == operator.state.height
        assert state_digest(follower.state) == state_digest(operator.state)


async def test_giving_up_during_a_write_does_not_hide_what_was_written(tmp_path, world, monkeypatch):
    entries = world.entries(2)
    begun, go_on = asyncio.Event(), threading.Event()
    loop, append = asyncio.get_running_loop(), Journal.append

    def slow(self, written):
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        append(self, written)

    async with await world.follower(tmp_path / "f.db", Told([])) as follower:
        monkeypatch.setattr(Journal, "append", slow)
        taking = asyncio.ensure_future(follower._take_in([encode_entry(entries[0])]))
        await begun.wait()
        taking.cancel()
        await asyncio.wait((taking,))
        go_on.set()
        await follower._take_in([encode_entry(entry) for entry in entries])
        assert follower.state.height == 2


async def test_nothing_is_left_running_after_close(tmp_path, world):
    async with await world.operator(tmp_path / "o.db") as operator:
        follower = await world.follower(tmp_path / "f.db", Line(operator))
        await follower.submit(world.announcement(1))
        await follower.close()
        await follower.close()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("konsil-ledger")]
        Journal(tmp_path / "f.db", world.digest).close()
