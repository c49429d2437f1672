"""The best merge stays at every node, and comes from peers where it is not."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest

from konsil.core.model_card import ModelCard
from konsil.core.parameters import views
from konsil.core.round import NodeRound, ScoreReady, to_keep
from konsil.core.rules import Announce, Best, Outer, Score
from konsil.errors import StudyError
from konsil.node import service as service_module
from konsil.node import shelf as shelf_module
from konsil.node.shelf import card_for

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
    assert to_keep(NodeRound("a", "aml"), world.study) == {
        best,
        *(record.digest for record in world.study.history[-2:]),
    }
    plain = msgspec.structs.replace(
        world.study, settings=msgspec.structs.replace(world.study.settings, best=None), best=0, best_of_old=0
    )
    assert to_keep(NodeRound("a", "aml"), plain) == {plain.accepted}


async def test_a_node_that_was_away_at_the_end_gets_the_final_model_by_itself(worlds):
    world = await worlds(start=False, min_members=2, rounds=5, best=HIGHEST)
    await world.start("a", "b", elements=2000)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await world.start("c")
    best = world.study.history[0].digest
    await soon(lambda: best in on_disk(world.nodes["c"]))


ADAM = Outer("adam", learning_rate=0.5, tau=0.01)


async def scored_late_and_badly(worlds, outer):
    """A study in which one member scores each round only once the next is accepted, still in time, and badly.

    So each newer merge is the best one for a while, until the first one is again.
    """
    world = await worlds(start=False, rounds=7, quorum=3, best=Best("loss", "max"), outer=outer)
    await world.start(elements=1000)
    ledger = world.nodes["c"].runner.site.ledger
    right, told = ledger.submit, set()

    async def submit(call):
        return world.state.height if isinstance(call, Score) else await right(call)

    def score_badly(world):
        number = len(world.study.history) - 1
        if number > 1 and number not in told:
            told.add(number)
            world.put("c", Score("aml", number, 5, loss=-1e6))
        return finished(world)

    def better_and_better(node, right):
        def post(event):
            if isinstance(event, ScoreReady):
                event = ScoreReady(msgspec.structs.replace(event.score, loss=float(event.score.round)))
            right(event)

        node.runner.post = post

    ledger.submit = submit
    for node in world.nodes.values():
        better_and_better(node, node.runner.post)
        node.train()
    await world.until(score_badly)
    await soon(lambda: all(node.seen[-1:] == [7] for node in world.nodes.values()))
    world.put("c", Score("aml", 7, 5, loss=-1e6))
    return world


@pytest.mark.parametrize("outer", [None, ADAM], ids=["plain", "outer"])
async def test_a_best_merge_that_was_not_the_best_for_a_while_is_still_at_every_node(worlds, outer):
    world = await scored_late_and_badly(worlds, outer)
    assert world.study.best == 1
    for node in world.nodes.values():
        chosen = node.runner.shelf.chosen()
        assert chosen.round == 1
        node.runner.merging.fetch = None  # from its own disk
        found = await node.runner.shelf.model_of(chosen)
        assert outer is not None or found.digest == world.study.history[0].digest


@pytest.mark.parametrize("outer", [None, ADAM], ids=["plain", "outer"])
async def test_a_node_that_lost_it_gets_it_from_peers_that_started_again(worlds, outer):
    world = await scored_late_and_badly(worlds, outer)
    third = world.nodes["c"]
    before = await third.runner.shelf.model_of(third.runner.shelf.chosen())
    digest = before.digest
    for name in "abc":
        await world.nodes[name].close()
    for path in (third.folder / "merges").glob("*/*"):
        path.unlink()
    await world.start(elements=1000)
    third = world.nodes["c"]
    # In memory, or on disk already again, since the study is over.
    store, accepted = third.runner.store, world.study.accepted
    await soon(lambda: third.runner.outer.model(accepted) is not None or store.stored(accepted) is not None)
    assert (await third.runner.shelf.model_of(third.runner.shelf.chosen())).digest == digest


async def test_a_final_model_that_nobody_has_is_not_sought_whenever_the_ledger_moves(worlds):
    world, best = await ended(worlds)
    await soon(lambda: not any(node.runner.shelf._getting for node in world.nodes.values()))
    for node in list(world.nodes.values()):
        await node.close()
        for path in (node.folder / "merges" / "aml").glob(f"{best}.*"):
            path.unlink()
    await world.start("a", elements=2000)
    runner, tries = world.nodes["a"].runner, []
    right = runner.merging.fetch

    async def fetch(digest, *arguments):
        tries.append(digest)
        return await right(digest, *arguments)

    runner.merging.fetch = fetch
    await soon(lambda: not runner.shelf._getting)
    for _ in range(20):
        world.move()
        await asyncio.sleep(0.02)
    assert tries.count(best) <= 1


async def test_whether_the_choice_is_settled_follows_the_ledgers_time_where_that_has_moved_on(worlds):
    world = await worlds(start=False, rounds=2, best=HIGHEST)
    await world.start(elements=1000)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    shelf, silence_s = world.nodes["a"].runner.shelf, world.study.settings.silence_s
    slow_s = world.now_s
    world.nodes["a"].runner.site.clock = lambda: slow_s
    assert "c" not in world.study.history[-1].scores
    world.now_s += silence_s - 1
    world.put("b", Announce(("b:1",)))
    assert not shelf.chosen().settled
    world.now_s += 1
    world.put("b", Announce(("b:2",)))
    assert shelf.chosen().settled  # though this node's clock stands still
    world.put("c", Score("aml", 2, 5, loss=9.0))
    assert world.study.history[-1].scores["c"].late
    assert (shelf.chosen().round, world.study.best) == (1, 1)
