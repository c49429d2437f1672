"""The best merge stays at every node, and comes from peers where it is not."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from konsil.core.model_card import ModelCard
from konsil.core.parameters import views
from konsil.core.rules import Best, Score
from konsil.errors import StudyError
from konsil.node import service as service_module
from konsil.node import shelf as shelf_module
from konsil.node.shelf import card_for, to_keep

HIGHEST = Best("loss", "max")
"""The members of these tests say 1 / round as their loss: so the first merge is the best one."""


def finished(world):
    return world.study.phase == "finished"


async def soon(reached, limit_s=5.0):
    """Wait for what no event tells: a node's own knowledge, or a file."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def on_disk(node):
    return {path.stem for path in (node.folder / "merges" / "aml").glob("*.manifest")}


async def ended(worlds, **settings):
    """A study of five rounds whose first merge is the best one."""
    world = await worlds(start=False, rounds=5, best=HIGHEST, **settings)
    await world.start(elements=2000)
    for number, node in enumerate(world.nodes.values(), start=1):
        node.number = float(number)
        node.train()
    await world.until(finished)
    for name in world.names:
        if name not in world.study.history[-1].scores:
            world.put(name, Score("aml", 5, 5, loss=0.1))
    await soon(lambda: all(world.study.accepted in on_disk(node) for node in world.nodes.values()))
    return world, world.study.history[0].digest


async def test_the_best_merge_stays_on_every_disk_and_the_others_go(worlds, monkeypatch):
    monkeypatch.setattr(service_module, "CATCH_UP_S", 0.01)
    world, best = await ended(worlds)
    assert world.study.best == 1
    for node in world.nodes.values():
        assert best in on_disk(node)
        assert world.study.history[1].digest not in on_disk(node)
        chosen = node.runner.shelf.chosen()
        assert (chosen.round, chosen.digest, chosen.settled) == (1, best, True)
        model = await node.runner.shelf.model(best)
        assert np.all(views(node.schema, model.data())["weights"] == 2.0)
        card = msgspec.json.decode(card_for(world.state, "aml", chosen, model), type=ModelCard)
        assert (card.digest, card.groups, card.final) == (best, (1,), True)
    with pytest.raises(StudyError, match="is not at this node"):
        await world.nodes["a"].runner.shelf.model(world.study.history[1].digest)
    with pytest.raises(StudyError, match="Round 9 of study 'aml' is not accepted; 5 are"):
        world.nodes["a"].runner.shelf.chosen(9)
    assert world.nodes["a"].runner.shelf.chosen(-1).digest == world.study.accepted


async def test_without_the_best_merge_on_its_disk_a_node_gets_it_from_its_peers(worlds, monkeypatch):
    monkeypatch.setattr(shelf_module, "LENT_S", 0.05)
    world, best = await ended(worlds)
    third = world.nodes["c"]
    shelves = [node.runner.shelf for node in world.nodes.values()]
    await soon(lambda: all(shelf._sought == best and not shelf._getting for shelf in shelves))
    await soon(lambda: all(node.runner.store.model(best) is None for node in world.nodes.values()))
    for path in (third.folder / "merges" / "aml").glob(f"{best}.*"):
        path.unlink()
    model = await third.runner.shelf.model(best)
    assert model.digest == best
    assert best in on_disk(third)
    # It was taken from their disks into their memory for this, and given back.
    await soon(lambda: all(node.runner.store.model(best) is None for node in world.nodes.values()))
    assert third.runner.shelf.lent == frozenset()


async def test_only_the_merges_that_can_still_be_chosen_are_recalled_for_peers(worlds):
    world, best = await ended(worlds)
    shelf = world.nodes["a"].runner.shelf
    assert await shelf.recall(best)
    assert await shelf.recall(world.study.history[-2].digest)
    assert not await shelf.recall(world.study.history[1].digest)
    assert not await shelf.recall(world.study.initial)


async def test_a_merge_whose_scores_still_count_is_not_let_go(worlds):
    world, best = await ended(worlds)
    assert to_keep(world.study) == {best, *(record.digest for record in world.study.history[-2:])}
    plain = msgspec.structs.replace(
        world.study, settings=msgspec.structs.replace(world.study.settings, best=None), best=0
    )
    assert to_keep(plain) == {plain.accepted}


async def test_a_node_that_was_away_at_the_end_gets_the_final_model_by_itself(worlds):
    world = await worlds(start=False, min_members=2, rounds=5, best=HIGHEST)
    await world.start("a", "b", elements=2000)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await world.start("c")
    best = world.study.history[0].digest
    await soon(lambda: best in on_disk(world.nodes["c"]))
