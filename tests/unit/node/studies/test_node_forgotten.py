"""A node that has lost what it promised promises nothing in its place, and its round ends all the same."""

from __future__ import annotations

import asyncio

import pytest

from konsil.core.rules import Publish

NAMES = ("a", "b", "c")


@pytest.fixture
async def forgetful(worlds):
    """In round 1 c has promised its part, the ledger has not heard of it, and c's node has died."""
    world = await worlds(rounds=1, merge_s=30, silence_s=600)
    puts, put = [], world.put
    held = asyncio.Event()

    def noted(name, call):
        puts.append((name, call))
        return put(name, call)

    third = world.nodes["c"]
    submit = third.site.ledger.submit

    async def lost(call):
        if isinstance(call, Publish):
            world.away.add("c")
            held.set()
        return await submit(call)

    third.site.ledger.submit = lost
    for name in NAMES:
        world.nodes[name].train()
    async with asyncio.timeout(20):
        await held.wait()
    await third.close()
    assert b"publish 1" in (third.folder / "journal" / "aml.notes").read_bytes()
    world.put = noted
    world.away.clear()
    world.puts = puts
    return world


async def until_stuck_or_over(world):
    for _ in range(40):
        if world.study.history:
            return
        world.move()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("lost", [True, False])
async def test_without_its_notes_a_node_publishes_nothing_in_that_attempt_and_something_in_the_next(
    forgetful, lost
):
    world = forgetful
    notes = world.root / "c" / "journal" / "aml.notes"
    if lost:
        notes.unlink()
    await world.start("c")
    world.nodes["c"].train()
    await until_stuck_or_over(world)
    published = [call.attempt for name, call in world.puts if name == "c" and isinstance(call, Publish)]
    assert published == ([] if lost else [1])
    if lost:
        assert "does not know any more" in world.nodes["c"].runner.problem
        await world.until(lambda world: world.study.history, at_s=40)
        assert world.study.history[0].attempt == 2
    assert "c" in world.study.history[0].roster
