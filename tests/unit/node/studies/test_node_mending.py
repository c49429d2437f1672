"""A study that is mended begins as at any start, and one that could not begin says so and can be begun again."""

from __future__ import annotations

import asyncio

import pytest

from konsil.core.rules import Commit
from konsil.errors import LedgerUnreachable, NodeBusy, NodeError

NAMES = ("a", "b", "c")


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
    told = await runner.mend()  # what the first time found
    assert told.kept == 2
    assert told.aside.name == "aml.damaged-1"
    await soon(lambda: left.commits)
    assert set(left.commits) == {left.snapshot}
    assert runner.problem == ""
    with pytest.raises(NodeError, match="as it must be"):
        await runner.mend()
