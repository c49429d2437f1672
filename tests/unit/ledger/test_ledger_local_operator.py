from __future__ import annotations

import asyncio

import pytest

from konsil.core.rules import (
    MAX_CALL_BYTES,
    Entry,
    ProposeRemove,
    Vote,
    decode_entry,
    entry_digest,
    state_digest,
)
from konsil.errors import ConfigError, FrameError, IdentityError, JournalCorrupt, LedgerError, Refused
from konsil.ledger import budget
from konsil.ledger.journal import Journal
from konsil.ledger.local import LocalLedger
from konsil.ledger.verify import verify


async def test_a_submitted_call_stands_in_the_state_and_on_disk(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        assert await ledger.submit(world.announcement(1)) == 1
        assert ledger.state.members["lyon"].record.addresses == ("host-1.example:7400",)
        with Journal(tmp_path / "l.db", world.digest, read_only=True) as disk:
            assert disk.height == 1


async def test_a_restart_gives_the_same_state_digest(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        for number in range(5):
            await ledger.submit(world.announcement(number))
        digest = state_digest(ledger.state)
    async with await world.operator(tmp_path / "l.db") as ledger:
        assert state_digest(ledger.state) == digest
        assert await ledger.submit(world.announcement(9)) == 6
    verified = verify(world.genesis, tmp_path / "l.db", world.verify)
    assert (verified.height, verified.calls) == (6, {"Announce": 6})


async def test_concurrent_calls_are_ordered_as_submitted_and_share_fsyncs(tmp_path, world, monkeypatch):
    writes = []
    append = Journal.append
    monkeypatch.setattr(
        Journal, "append", lambda self, entries: (writes.append(len(entries)), append(self, entries))[1]
    )
    async with await world.operator(tmp_path / "l.db") as ledger:
        heights = await asyncio.gather(*(ledger.submit(world.announcement(number)) for number in range(50)))
        assert heights == list(range(1, 51))
        assert ledger.state.members["lyon"].record.addresses == ("host-49.example:7400",)
    assert sum(writes) == 50
    assert len(writes) < 10


async def test_nothing_is_acknowledged_or_shown_before_it_is_on_disk(tmp_path, world, monkeypatch):
    async with await world.operator(tmp_path / "l.db") as ledger:
        seen = []
        append = Journal.append

        def looking(self, entries):
            seen.append((ledger.state.height, submitting.done()))
            append(self, entries)
            seen.append((ledger.state.height, submitting.done()))

        monkeypatch.setattr(Journal, "append", looking)
        submitting = asyncio.ensure_future(ledger.submit(world.announcement(1)))
        assert await submitting == 1
        assert seen == [(0, False), (0, False)]


async def test_another_members_call_is_taken_once_and_a_replay_is_refused(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        signed = world.signed("nice", 1, world.announcement(1))
        assert await ledger.accept(signed) == 1
        with pytest.raises(Refused) as caught:
            await ledger.accept(signed)
        assert caught.value.code == "replayed"
        assert ledger.state.height == 1


async def test_calls_that_nobody_of_this_swarm_signed_are_refused(tmp_path, world, other_world):
    call = world.announcement(1)
    stranger = other_world.keys["nice"]
    cases = {
        "stranger": (world.signed("paris", 1, call, key=stranger), "bad_signature"),
        "other's key": (world.signed("nice", 1, call, key=world.keys["lille"]), "bad_signature"),
        "other swarm": (world.signed("nice", 1, call, swarm=other_world.digest), "other_swarm"),
        "gap": (world.signed("nice", 2, call), "sequence_gap"),
    }
    async with await world.operator(tmp_path / "l.db") as ledger:
        for signed, code in cases.values():
            with pytest.raises(Refused) as caught:
                await ledger.accept(signed)
            assert caught.value.code == code
        tampered = world.signed("nice", 1, call).replace(b"host-1", b"host-2")
        with pytest.raises(Refused, match="signature"):
            await ledger.accept(tampered)
        assert ledger.state.height == 0


async def test_bytes_that_are_no_call_or_too_many_are_refused(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        for data in (b"", b"{}", b"\xff" * 100, b"[" * 10_000, b" " * (MAX_CALL_BYTES + 1)):
            with pytest.raises(FrameError):
                await ledger.accept(data)
        with pytest.raises(FrameError, match="over the limit"):
            await ledger.submit(ProposeRemove("nice", "x" * MAX_CALL_BYTES))
        assert await ledger.submit(world.announcement(1)) == 1


async def test_what_the_contract_refuses_changes_nothing(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        before = ledger.state
        with pytest.raises(Refused):
            await ledger.submit(Vote(77, yes=True))
        assert ledger.state is before


async def test_a_member_that_writes_without_end_is_held_back_and_the_others_are_not(
    tmp_path, world, monkeypatch
):
    loop = asyncio.get_running_loop()
    now_s = loop.time()
    async with await world.operator(tmp_path / "l.db") as ledger:
        long = [world.signed("nice", n, ProposeRemove("lille", "x" * 2000)) for n in range(1, 4)]
        monkeypatch.setattr(budget, "BURST_BYTES", 2 * len(long[0]) + 10)
        monkeypatch.setattr(loop, "time", lambda: now_s)
        for signed in long[:2]:
            await ledger.accept(signed)
        digest = state_digest(ledger.state)
        with pytest.raises(Refused) as caught:
            await ledger.accept(long[2])
        assert caught.value.code == "too_fast"
        wait_s = caught.value.fields["wait_s"]
        assert 0 < wait_s < 1
        assert state_digest(ledger.state) == digest
        await ledger.accept(world.signed("lille", 1, ProposeRemove("nice", "x" * 2000)))
        for _ in range(4):
            await ledger.submit(ProposeRemove("lille", "x" * 2000))  # the operator could do so anyway
        now_s += wait_s + 0.01
        await ledger.accept(long[2])


async def test_the_ledgers_time_never_goes_back_when_the_clock_does(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        world.now_s += 100
        await ledger.submit(world.announcement(1))
        world.now_s -= 90
        await ledger.submit(world.announcement(2))
        times = [decode_entry(entry).time_s for entry in await ledger.follow(0, 0)]
        assert times == [world.now_s + 90, world.now_s + 90]
    verify(world.genesis, tmp_path / "l.db", world.verify)


async def test_followers_are_told_as_soon_as_there_is_news(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        waiting = asyncio.ensure_future(ledger.follow(0, 30.0))
        changed = asyncio.ensure_future(ledger.changed(0, 30.0))
        await asyncio.sleep(0)
        await ledger.submit(world.announcement(1))
        async with asyncio.timeout(1):
            assert len(await waiting) == 1
            assert await changed == 1
        assert await ledger.follow(1, 0.01) == []
        assert await ledger.changed(1, 0.01) == 1


async def test_an_answer_to_followers_is_bounded_but_never_empty_when_there_is_news(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        await asyncio.gather(*(ledger.submit(world.announcement(number)) for number in range(20)))
        everything = await ledger.follow(0, 0)
        assert [decode_entry(entry).height for entry in everything] == list(range(1, 21))
        room = len(everything[0]) * 3 + 20
        assert await ledger.follow(0, 0, max_bytes=room) == everything[:3]
        assert await ledger.follow(7, 0, max_bytes=1) == everything[7:8]


async def test_old_entries_come_from_the_journal(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        await asyncio.gather(*(ledger.submit(world.announcement(number)) for number in range(20)))
        recent = await ledger.follow(0, 0)
    async with await world.operator(tmp_path / "l.db") as ledger:
        assert await ledger.follow(0, 0) == recent
        assert await ledger.follow(12, 0) == recent[12:]


async def test_who_asks_beyond_the_end_is_told_that_the_histories_differ(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        with pytest.raises(LedgerError, match="ends at 0"):
            await ledger.follow(3, 0)
        with pytest.raises(LedgerError):
            await ledger.follow(-1, 0)


async def test_a_full_disk_refuses_every_waiting_call_and_is_overcome(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        await ledger.submit(world.announcement(0))
        journal = ledger._replica.journal
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        answers = await asyncio.gather(
            *(ledger.submit(world.announcement(number)) for number in range(60)), return_exceptions=True
        )
        assert all(isinstance(answer, LedgerError) for answer in answers)
        assert ledger.state.height == 1
        journal._db.execute("PRAGMA max_page_count = 100000")
        assert await ledger.submit(world.announcement(1)) == 2
    assert verify(world.genesis, tmp_path / "l.db", world.verify).height == 2


async def test_closing_finishes_what_was_taken_and_takes_nothing_more(tmp_path, world):
    ledger = await world.operator(tmp_path / "l.db")
    submitting = [asyncio.ensure_future(ledger.submit(world.announcement(number))) for number in range(5)]
    await asyncio.sleep(0)
    await ledger.close()
    await ledger.close()
    assert [task.result() for task in submitting] == [1, 2, 3, 4, 5]
    with pytest.raises(LedgerError, match="closed"):
        await ledger.submit(world.announcement(9))
    assert verify(world.genesis, tmp_path / "l.db", world.verify).height == 5


async def test_a_caller_that_gives_up_does_not_stop_the_others(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        given_up = asyncio.ensure_future(ledger.submit(world.announcement(1)))
        going_on = asyncio.ensure_future(ledger.submit(world.announcement(2)))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await going_on == 2
        assert ledger.state.height == 2


async def test_only_the_operator_may_serve_and_only_with_its_own_key(tmp_path, world, other_world):
    with pytest.raises(ConfigError, match="names 'lyon' as its operator"):
        await LocalLedger.open(
            tmp_path / "l.db", world.genesis, world.keys["nice"], "nice", world.clock, world.verify
        )
    async with await LocalLedger.open(
        tmp_path / "l.db", world.genesis, other_world.keys["lyon"], "lyon", world.clock, world.verify
    ) as ledger:
        with pytest.raises(IdentityError, match="knows 'lyon' by the key"):
            await ledger.submit(world.announcement(1))


async def test_a_journal_whose_links_hold_but_whose_calls_do_not_is_refused(tmp_path, world):
    entries = world.entries(2)
    nobody = world.signed("lyon", 3, world.announcement(3), key=world.keys["nice"])
    forged = Entry(3, entries[1].time_s, nobody, entry_digest(entries[1]), entries[1].state)
    with Journal(tmp_path / "l.db", world.digest) as journal:
        journal.append([*entries, forged])
    with pytest.raises(JournalCorrupt, match="height 3 does not hold: its signature"):
        await world.operator(tmp_path / "l.db")
    with pytest.raises(JournalCorrupt, match="height 3"):
        verify(world.genesis, tmp_path / "l.db", world.verify)
    Journal(tmp_path / "l.db", world.digest).close()  # nothing holds it any more


async def test_a_journal_with_a_wrong_state_is_refused(tmp_path, world):
    entries = world.entries(2)
    signed = world.signed("lyon", 3, world.announcement(3))
    forged = Entry(3, entries[1].time_s, signed, entry_digest(entries[1]), entries[1].state)
    with Journal(tmp_path / "l.db", world.digest) as journal:
        journal.append([*entries, forged])
    with pytest.raises(JournalCorrupt, match="height 3 does not hold: the state"):
        await world.operator(tmp_path / "l.db")


async def test_it_says_plainly_who_keeps_the_ledger(tmp_path, world):
    async with await world.operator(tmp_path / "l.db") as ledger:
        assert "one operator, 'lyon'" in ledger.description
        assert "delay or withhold" in ledger.description
        assert "cannot forge or alter" in ledger.description
