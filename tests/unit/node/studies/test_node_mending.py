"""A study that is mended begins as at any start, and one that could not begin says so and can be begun again."""

from __future__ import annotations

import asyncio
import threading

import pytest

from konsil.core.round import Promise
from konsil.core.rules import Commit, Score
from konsil.errors import LedgerUnreachable, NodeBusy, NodeError
from konsil.files import write_whole

NAMES = ("a", "b", "c")
MEASURED = Score("aml", 1, 7, loss=0.5)


async def soon(reached, limit_s=20.0):
    """Wait for what no event tells: a node's own knowledge."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def spoil(world):
    notes = world.root / "c" / "journal" / "aml.notes"
    notes.write_bytes(notes.read_bytes().replace(b'"head"', b'"herd"'))


@pytest.fixture
async def left(worlds):
    """c has left a snapshot, which a round waits for; its node is stopped, and its notes are damaged."""
    world = await worlds(rounds=1000, silence_s=600)
    for name in NAMES:
        world.nodes[name].train()
    c = world.nodes["c"]
    await world.until(lambda world: len(world.study.history) >= 1)
    await soon(lambda: c.runner.state.update is not None and c.runner.state.update.round >= 2)
    c.runner.trainee = None
    await c.runner.finish("snapshot")
    await world.until(lambda world: world.study.participants["c"].finished == "snapshot")
    put = world.put

    def without_commits(name, call):
        if name == "c" and isinstance(call, Commit):
            raise LedgerUnreachable("away")
        return put(name, call)

    world.put = without_commits
    await world.until(
        lambda world: world.study.open.phase == "collecting" and set(world.study.open.commits) == {"a", "b"}
    )
    world.snapshot = c.runner.journal.farewell.update.digest
    await c.close()
    spoil(world)
    world.commits = []

    def noted(name, call):
        if name == "c" and isinstance(call, Commit):
            world.commits.append(call.digest)
        return put(name, call)

    world.put = noted
    await world.start("c")
    return world


async def test_while_a_snapshot_is_read_nothing_is_contributed_in_its_place(left, monkeypatch):
    world, runner = left, left.nodes["c"].runner
    load, reading, go_on = runner.site.models.load, asyncio.Event(), asyncio.Event()

    async def slow(study, digest):
        if digest == world.snapshot:
            reading.set()
            await go_on.wait()
        return await load(study, digest)

    monkeypatch.setattr(runner.site.models, "load", slow)
    mending = asyncio.create_task(runner.mend())
    async with asyncio.timeout(10):
        await reading.wait()
    for _ in range(20):
        world.move()
        await asyncio.sleep(0.005)
    with pytest.raises(NodeBusy, match="is just beginning"):
        runner.require_participant()
    assert not runner.start.is_over.is_set()
    go_on.set()
    await mending
    await soon(lambda: world.commits)
    assert set(world.commits) == {world.snapshot}
    runner.require_participant()


async def test_a_study_that_could_not_begin_says_so_and_is_begun_by_mending_again(left, monkeypatch):
    runner = left.nodes["c"].runner

    async def failing(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(runner.site.models, "load", failing)
        with pytest.raises(MemoryError):
            await runner.mend()
    assert runner.journal.damage is None
    assert "could not begin at this node: MemoryError()" in runner.problem
    assert runner.status().stage == "stopped"
    with pytest.raises(NodeBusy, match="konsil study mend aml"):
        runner.require_participant()
    assert (await runner.mend()).aside is None
    await soon(lambda: left.commits)
    assert set(left.commits) == {left.snapshot}
    assert runner.problem == ""
    with pytest.raises(NodeError, match="as it must be"):
        await runner.mend()


async def test_the_event_loop_does_not_wait_for_the_disk_where_a_score_is_forgotten(worlds, monkeypatch):
    world = await worlds(rounds=1000, silence_s=600)
    for name in NAMES:
        world.nodes[name].train()
    world.nodes["c"].stop_after = 1
    await world.until(lambda world: len(world.study.history) >= 1)
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


async def test_what_neither_disk_nor_ledger_takes_is_kept_once(worlds, monkeypatch):
    world = await worlds(rounds=1000, silence_s=600)
    for name in NAMES:
        world.nodes[name].train()
    world.nodes["c"].stop_after = 1
    await world.until(lambda world: len(world.study.history) >= 1)
    runner = world.nodes["c"].runner
    world.away.add("c")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("konsil.node.journal.write_whole", full)
    monkeypatch.setattr("konsil.node.scoring.SAID_S", 0.01)
    for _ in range(5):
        with pytest.raises(NodeBusy):
            await runner.scoring.take(MEASURED)
    assert runner.state.scores.count(MEASURED) == 1
