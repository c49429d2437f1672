"""Scores on their way to the ledger: through a node's death, a full disk, and a ledger that is away."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
from functools import partial

import pytest

from konsil.core.round import NodeRound, Promise
from konsil.core.rules import Score
from konsil.errors import NodeBusy, Refused
from konsil.files import write_whole

NAMES = ("a", "b", "c")
MEASURED = Score("aml", 1, 7, loss=0.5, metrics={"auc": 0.875})


async def soon(reached, limit_s=20.0):
    """Wait for what no event tells: a node's own knowledge, or a file."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


@pytest.fixture
async def world(worlds):
    """After one round, which c has not scored."""
    made = await worlds(rounds=1000, silence_s=600)
    for name in NAMES:
        made.nodes[name].train().runner.scoring.look()
    made.nodes["c"].stop_after = 1
    await made.until(lambda world: len(world.study.history) >= 1)
    assert "c" not in made.study.history[0].scores
    return made


def scored(world):
    return world.study.history[0].scores.get("c")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_was_acknowledged_reaches_the_ledger_though_the_node_died_before_it_could(world):
    world.away.add("c")
    await world.nodes["c"].runner.scoring.take(MEASURED)
    await world.nodes["c"].close()
    world.away.clear()
    await world.start("c")
    await world.until(scored)
    assert (scored(world).loss, scored(world).metrics) == (0.5, {"auc": 0.875})
    await soon(lambda: not world.nodes["c"].runner.journal.scores)


async def test_what_the_ledger_has_is_not_said_again(world):
    node, said = world.nodes["c"], []
    await node.runner.scoring.take(MEASURED)
    await world.until(scored)
    await soon(lambda: not node.runner.journal.scores)
    assert (
        b"auc" in (node.folder / "journal" / "aml.notes").read_bytes()
    )  # until it is written for another reason
    await node.close()
    world.put = lambda name, call, put=world.put: said.append(call) or put(name, call)
    await world.start("c")
    await node.runner.scoring.take(MEASURED)
    assert not [call for call in said if isinstance(call, Score)]
    assert not world.nodes["c"].runner.journal.scores


async def test_what_the_contract_cannot_take_is_not_noted(world):
    runner = world.nodes["c"].runner
    world.away.add("c")
    for wrong in (
        Score("aml", 1, 7, loss=math.nan),
        Score("aml", 1, 7),
        Score("aml", 1, 0, loss=1.0),
        Score("aml", 1000, 7, loss=1.0),
        Score("aml", 0, 7, loss=1.0),
    ):
        await runner.scoring.take(wrong)
    assert not runner.journal.scores


async def test_what_the_contract_refuses_is_not_noted_any_more(world):
    node = world.nodes["c"]
    world.away.add("c")
    await node.runner.scoring.take(MEASURED)
    world.put("c", Score("aml", 1, 3, loss=9.0))  # as an earlier life of this node may have said
    assert node.runner.journal.scores == (MEASURED,)
    await node.close()
    world.away.clear()
    await world.start("c")
    assert not world.nodes["c"].runner.journal.scores
    assert scored(world).loss == 9.0


async def test_what_was_said_too_fast_is_said_again(world):
    runner, put, said = world.nodes["c"].runner, world.put, []

    def busy(name, call):
        if name == "c" and isinstance(call, Score):
            said.append(call)
            if len(said) == 1:
                raise Refused("too_fast", "Too many calls at once.", wait_s=0.1)
        return put(name, call)

    world.put = busy
    await runner.scoring.take(MEASURED)
    await soon(lambda: said)
    assert runner.journal.scores == (MEASURED,)
    await world.until(scored, at_s=60)
    assert len(said) == 2


async def test_on_a_full_disk_training_is_told_once_the_ledger_has_its_scores(world, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    await world.nodes["c"].runner.scoring.take(MEASURED)
    assert scored(world).loss == 0.5


async def test_with_a_full_disk_and_no_ledger_training_keeps_its_scores(world, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("konsil.node.scoring.SAID_S", 0.05)
    world.away.add("c")
    take = partial(world.nodes["c"].runner.scoring.take, MEASURED)
    with pytest.raises(NodeBusy, match=r"not on the ledger yet.*No space left"):
        await take()
    world.away.clear()
    monkeypatch.undo()
    await take()  # said again, as a session does
    assert world.nodes["c"].runner.journal.scores == (MEASURED,)
    await world.until(scored, at_s=60)


async def test_a_node_whose_journal_is_damaged_does_nothing_in_the_study_until_it_is_mended(world):
    world.away.add("c")
    await world.nodes["c"].runner.scoring.take(MEASURED)
    await world.nodes["c"].close()
    notes = world.root / "c" / "journal" / "aml.notes"
    notes.write_bytes(notes.read_bytes().replace(b'"head"', b'"herd"'))
    world.away.clear()
    height = world.state.height
    await world.start("c")
    runner = world.nodes["c"].runner
    runner.look()
    world.nodes["c"].train()
    assert runner.state == NodeRound(me="c", study="aml")
    assert world.state.height == height
    assert runner.status().stage == "stopped"
    assert "konsil study mend aml" in runner.problem
    with pytest.raises(NodeBusy, match="is damaged"):
        runner.require_participant()
    assert runner.store.model(world.study.accepted) is not None  # which peers may have all the same
    runner.trainee = None
    assert (await runner.mend()).kept >= 1
    assert not runner.journal.damage
    await world.until(scored)
    assert runner.problem == ""
    runner.require_participant()


async def test_the_event_loop_does_not_wait_for_the_disk_where_a_score_is_forgotten(world, monkeypatch):
    runner = world.nodes["c"].runner
    world.away.add("c")
    await runner.scoring.take(MEASURED)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        go_on.wait(5)
        return write_whole(*args)

    monkeypatch.setattr("konsil.node.journal.write_whole", slow)
    promise = Promise("aml", 10**6, "publish 1 0", "1" * 64)
    writing = asyncio.create_task(asyncio.to_thread(runner.journal.promise, promise))
    await asyncio.to_thread(begun.wait, 10)
    world.away.clear()
    world.now_s += 60
    world.move()
    await soon(lambda: not runner.journal.scores)
    assert not writing.done()
    go_on.set()
    await writing
    assert not runner.journal.scores


async def test_what_neither_disk_nor_ledger_takes_is_kept_once(world, monkeypatch):
    runner = world.nodes["c"].runner
    world.away.add("c")

    monkeypatch.setattr("konsil.node.journal.write_whole", full)
    monkeypatch.setattr("konsil.node.scoring.SAID_S", 0.01)
    for _ in range(5):
        with pytest.raises(NodeBusy):
            await runner.scoring.take(MEASURED)
    assert runner.state.scores.count(MEASURED) == 1
