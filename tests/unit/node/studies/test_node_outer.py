"""Studies with an outer optimiser: late members, restarts, full disks, a step that came out otherwise."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.digest import is_digest
from konsil.core.model_card import decode_card
from konsil.core.outer import layout_of
from konsil.core.parameters import views
from konsil.core.round import Advance
from konsil.core.rules import Best, Outer, start_of
from konsil.errors import NodeError, ParametersError, SchemaMismatch
from konsil.node import outer as outer_module
from konsil.node.shelf import card_for
from konsil.node.store import model_of
from konsil.wall.memory import seal_pieces

NAMES = ("a", "b", "c")
ADAM = Outer("adam", learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.01)
YOGI = Outer("yogi", learning_rate=0.5, beta1=0.5, beta2=0.9, tau=0.1)


ELEMENTS = 1000


async def soon(reached, limit_s=8.0):
    """Wait for what no event tells: a node's own knowledge, or a file."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def finished(world):
    return world.study.phase == "finished"


def rounds(number):
    return lambda world: len(world.study.history) >= number


def model(node):
    return node.runner.outer.model(node.world.study.accepted)


def computed(outer, rosters, kind):
    """The study's model after these rounds, one element of it, by the paper's formulas.

    Args:
        outer: the study's setting.
        rosters: of each round, the numbers that its members added to the model.
        kind: the element's dtype.
    """
    moments = np.float64 if kind is np.float64 else np.float32
    x, m, v = kind(0), moments(0), moments(outer.tau**2)
    for numbers in rosters:
        updates = [np.float64(kind(x + kind(number))) for number in numbers]
        merge = np.float64(kind(sum(updates) / len(updates)))
        delta = merge - np.float64(x)
        m64 = outer.beta1 * np.float64(m) + (1 - outer.beta1) * delta
        square, v64 = delta**2, np.float64(v)
        if outer.method == "adam":
            v64 = outer.beta2 * v64 + (1 - outer.beta2) * square
        else:
            v64 = v64 - (1 - outer.beta2) * square * np.sign(v64 - square)
        x = kind(np.float64(x) + outer.learning_rate * m64 / (np.sqrt(v64) + outer.tau))
        m, v = moments(m64), moments(v64)
    return x


def requires(world, outer, *nodes):
    """All nodes hold one model, and it is what the paper's formulas give for what stands on the ledger."""
    numbers = {name: float(number) for number, name in enumerate(world.names, start=1)}
    rosters = [[numbers[name] for name in sorted(record.roster)] for record in world.study.history]
    for node in nodes or world.nodes.values():
        found = views(node.schema, model(node).data())
        assert set(found["weights"]) == {computed(outer, rosters, np.float32)}
        assert set(found["bias"]) == {computed(outer, rosters, np.float64)}
    assert len({model(node).digest for node in nodes or world.nodes.values()}) == 1


async def small(worlds, **options):
    """A world whose model is small, its members numbered."""
    world = await worlds(start=False, **({"quorum": 3} | options))
    await world.start(elements=ELEMENTS)
    return number(world)


def number(world):
    for value, name in enumerate(world.names, start=1):
        if name in world.nodes:
            world.nodes[name].number = float(value)
    return world


@pytest.mark.parametrize("outer", [ADAM, YOGI], ids=["adam", "yogi"])
async def test_all_end_with_the_model_that_the_papers_formulas_give(worlds, outer):
    world = await small(worlds, outer=outer, rounds=4)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [4] for node in world.nodes.values()))
    requires(world, outer)
    for record in world.study.history:
        assert is_digest(start_of(record))
        assert {commitment.start for commitment in record.roster.values()} == {start_of(record)}
    assert world.study.accepted != model(world.nodes["a"]).digest
    assert all(node.runner.problem == "" for node in world.nodes.values())


async def test_a_model_of_several_chunks_steps_whole(worlds):
    world = number(await worlds(outer=YOGI, rounds=1, quorum=3))  # two chunks, and four of the state
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [1] for node in world.nodes.values()))
    requires(world, YOGI)


async def test_a_study_without_one_has_no_states_and_hands_over_the_merge_itself(worlds):
    world = await worlds()
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    for node in world.nodes.values():
        assert model(node) is node.model()
        assert not (node.folder / "merges" / "aml.outer").exists()
        assert not node.runner.outer.needed()


async def test_a_late_member_gets_the_state_from_its_peers_and_steps_itself(worlds):
    world = await worlds(start=False, names=tuple("abcd"), quorum=3, rounds=6, outer=ADAM)
    await world.start("a", "b", "c", elements=ELEMENTS)
    number(world)
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    await world.start("d", elements=ELEMENTS)
    number(world)
    world.nodes["d"].train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [6] for node in world.nodes.values()))
    assert "d" in world.study.history[-1].roster
    requires(world, ADAM)


async def test_a_member_that_was_away_for_three_rounds_ends_with_the_others(worlds):
    world = await small(worlds, names=tuple("abcd"), rounds=8, outer=YOGI)
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    await world.nodes["d"].close()
    await world.until(lambda w: "d" not in (w.study.open.commits if w.study.open else ()), limit_s=1)
    before = len(world.study.history)
    await world.until(rounds(before + 3), at_s=61.0)
    await world.start("d", elements=ELEMENTS)
    number(world)
    world.nodes["d"].train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [8] for node in world.nodes.values()))
    assert sum("d" not in record.roster for record in world.study.history) >= 3
    assert "d" in world.study.history[-1].roster
    requires(world, YOGI)


async def test_when_all_nodes_are_killed_in_a_round_and_start_again_nothing_is_lost(worlds):
    world = await small(worlds, rounds=5, outer=ADAM)
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    for node in list(world.nodes.values()):
        await node.close()
    before = len(world.study.history)
    assert before < 5
    await world.start(elements=ELEMENTS)
    number(world)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [5] for node in world.nodes.values()))
    assert all(node.seen[0] == before for node in world.nodes.values())
    requires(world, ADAM)


async def test_a_node_that_restarts_alone_after_the_end_still_has_the_final_model(worlds):
    world = await small(worlds, outer=ADAM)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    third = world.nodes["c"]
    await soon((third.folder / "merges" / "aml" / f"{world.study.accepted}.manifest").exists)
    for name in "abc":
        await world.nodes[name].close()
    await world.start("c", elements=ELEMENTS)
    await soon(lambda: model(world.nodes["c"]) is not None)
    requires(world, ADAM)


@pytest.mark.parametrize("contribution", ["snapshot", "active"])
async def test_a_member_whose_training_has_finished_contributes_what_it_chose(worlds, contribution):
    world = await small(worlds, outer=ADAM)
    world.nodes["c"].stop_after, world.nodes["c"].contribution = 1, contribution
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(model(node) is not None for node in world.nodes.values()))
    last = world.study.history[-1]
    if contribution == "snapshot":
        assert last.roster["c"].digest == world.study.history[0].roster["c"].digest
    else:  # neither the merge nor an update: the model itself, which says that nothing is to change
        assert last.roster["c"].digest not in {last.base, world.study.history[0].roster["c"].digest}
        merged = views(world.nodes["a"].schema, world.nodes["a"].model().data())["bias"][0]
        before = computed(ADAM, [[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]], np.float64)
        assert merged == pytest.approx(before + 1.0)
        assert model(world.nodes["c"]).digest == model(world.nodes["a"]).digest


async def test_a_full_disk_keeps_a_member_from_committing_what_it_could_not_go_on_from(worlds):
    world = await small(worlds, outer=ADAM)
    third = world.nodes["c"]
    models, save = third.runner.site.models, third.runner.site.models.save

    async def refuse(study, *arguments):
        if study == "aml.outer":
            raise NodeError("No space.", do="Free disk space; the node tries again by itself.")
        await save(study, *arguments)

    models.save = refuse
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: w.study.open is not None and set(w.study.open.commits) == {"a", "b"})
    await soon(lambda: "Free disk space" in third.runner.problem)
    assert "c" not in world.study.open.commits
    models.save = save
    await world.until(finished, at_s=1.0)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    requires(world, ADAM)


def steps_otherwise(node, *rounds_wrong, factor=2):
    """Let this node compute other outer states after these rounds, as another version or a broken chip would."""
    right = node.runner.outer._stepped

    async def wrong(outer, layout, study, merge):
        is_wrong = len(study.history) in rounds_wrong
        return await right(
            replace(outer, tau=outer.tau * factor) if is_wrong else outer, layout, study, merge
        )

    node.runner.outer._stepped = wrong


def held_back(world, names, until):
    """In round 2, let these members hand over their updates only once the ledger says so."""
    for name in names:
        node = world.nodes[name]

        async def later(node, effect, trained):
            if effect.round == 1:
                await world.until(until)
            trained(effect)

        def start(effect, node=node, trained=node._trained):
            node.waiting = asyncio.ensure_future(later(node, effect, trained))

        node._trained = start


def committed(*names):
    return lambda w: (
        w.study.open is not None and w.study.open.number == 2 and set(names) <= set(w.study.open.commits)
    )


async def test_who_steps_otherwise_and_notices_in_time_sits_the_round_out_and_goes_on_with_the_others(worlds):
    world = await small(worlds, names=tuple("abcd"), rounds=6, outer=ADAM)
    third = world.nodes["d"]
    steps_otherwise(third, 1)
    held_back(world, "d", committed("a", "b", "c"))
    problems = []
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: problems.append(third.runner.problem) or len(w.study.history) >= 2)
    assert any(
        "After round 1 this node computed another outer state than the others" in each for each in problems
    )
    assert world.study.history[1].absent == {"d": "left"}
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [6] for node in world.nodes.values()))
    assert "d" in world.study.history[-1].roster
    assert third.runner.problem == ""
    requires(world, ADAM)


async def test_who_steps_otherwise_and_commits_first_is_told_and_goes_on_with_the_others(worlds):
    world = await small(worlds, rounds=4, outer=ADAM)
    third = world.nodes["c"]
    steps_otherwise(third, 1)
    held_back(world, "ab", committed("c"))
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    starts = {name: each.start for name, each in world.study.history[1].roster.items()}
    assert starts["a"] == starts["b"] != starts["c"]
    assert "this node computed another outer state" in third.runner.problem
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [4] for node in world.nodes.values()))
    assert len({commitment.start for commitment in world.study.history[2].roster.values()}) == 1
    assert third.runner.problem == ""
    assert len({model(node).digest for node in world.nodes.values()}) == 1


async def test_without_a_majority_each_goes_on_from_its_own_state_and_says_so(worlds):
    world = await small(
        worlds, names=("a", "b"), members=("a", "b"), min_members=2, quorum=2, rounds=3, outer=ADAM
    )
    steps_otherwise(world.nodes["b"], 1, 2)
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    for node in world.nodes.values():
        assert "none had a majority" in node.runner.problem
    assert start_of(world.study.history[1]) == ""
    await world.nodes["b"].close()
    await world.start("b", elements=ELEMENTS)  # its own is on the ledger, and on its disk
    await soon(lambda: model(world.nodes["b"]) is not None)


async def test_who_comes_late_and_finds_no_majority_for_any_state_says_so_for_as_long_as_it_lasts(worlds):
    world = await worlds(start=False, names=tuple("abcd"), quorum=3, rounds=9, outer=ADAM)
    await world.start("a", "b", "c", elements=ELEMENTS)
    for factor, name in enumerate("bc", start=2):
        steps_otherwise(world.nodes[name], *range(1, 9), factor=factor)
    for node in number(world).nodes.values():
        node.train()
    await world.until(rounds(2))
    await world.start("d", elements=ELEMENTS)
    late, problems = world.nodes["d"].train(), []
    await soon(lambda: "none had a majority" in late.runner.problem)
    await world.until(lambda w: problems.append(late.runner.problem) or w.study.phase == "finished")
    assert len(problems) > 10
    assert all("none had a majority" in problem for problem in problems)
    assert "none had a majority" in late.runner.status().problem
    assert all("d" not in record.roster for record in world.study.history)


async def test_a_state_that_is_on_disk_takes_no_memory_and_is_served_from_there(worlds):
    world = await small(worlds, outer=ADAM)
    held_back(world, "c", committed("a", "b"))
    for node in world.nodes.values():
        node.train()
    await world.until(committed("a", "b"))
    first, _, third = world.nodes.values()
    start = world.study.open.commits["a"].start
    assert first.runner.store.model(start) is None
    assert first.runner.store.chunk(start, 0) == first.runner.store.stored(start).chunk(0)
    assert first.runner.store.chunk(start, 1) is None
    assert third.runner.outer.model(world.study.accepted) is not None
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    requires(world, ADAM)


@pytest.mark.parametrize("damage", ["changed", "cut short"])
async def test_a_state_that_a_disk_has_damaged_is_fetched_from_a_peer_before_it_is_used(worlds, damage):
    world = await small(worlds, rounds=4, outer=ADAM)
    held_back(world, "c", committed("a", "b"))
    for node in world.nodes.values():
        node.train()
    await world.until(committed("a", "b"))
    first = world.nodes["a"]
    start = world.study.open.commits["a"].start
    with (first.folder / "merges" / "aml.outer" / f"{start}.safetensors").open("r+b") as file:
        if damage == "changed":
            file.seek(-3, 2)
            file.write(b"x")
        else:
            file.truncate(1000)
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [4] for node in world.nodes.values()))
    assert first.runner.problem == ""
    requires(world, ADAM)


async def test_what_is_no_state_is_not_taken_for_one(worlds):
    world = await small(worlds, outer=ADAM)
    first, second, _ = world.nodes.values()
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(model(node) is not None for node in world.nodes.values()))
    layout = layout_of(first.schema)
    with pytest.raises(SchemaMismatch):
        await first.runner.merging.fetch(world.study.accepted, layout.state)
    data = np.zeros(layout.state.data_bytes // 4, np.float32)
    views(layout.state, data.data.cast("B"))["v/F32"][7] = -1.0
    lie = model_of(seal_pieces([layout.state.header, data.tobytes()]), layout.state)
    second.runner.store.add_model(lie)
    second.runner.may_read = lambda _peer, digest: digest == lie.digest
    with pytest.raises(ParametersError, match="second moment below zero"):
        await first.runner.outer._have(layout, lie.digest)
    assert first.runner.store.model(lie.digest) is None


async def test_a_step_that_is_cancelled_gives_back_what_it_made_and_nothing_else(worlds, monkeypatch, make):
    world = await worlds(start=False, outer=ADAM, quorum=3)
    await world.start("a", elements=ELEMENTS)
    runner = world.nodes["a"].train().runner
    await soon(lambda: runner.store.stored(runner.outer._now.start) is not None)
    initial = world.study.accepted
    began, go_on = threading.Event(), threading.Event()
    right = outer_module._first

    def slow(*arguments):
        began.set()
        go_on.wait(5)
        return right(*arguments)

    monkeypatch.setattr(outer_module, "_first", slow)
    before = make.open_files()
    step = asyncio.ensure_future(runner.outer.advance(Advance(0, initial)))
    await asyncio.to_thread(began.wait, 5)
    step.cancel()
    go_on.set()
    await asyncio.gather(step, return_exceptions=True)
    assert step.cancelled()
    assert make.open_files() == before
    assert bytes(runner.store.model(initial).data()[:4]) == b"\0\0\0\0"


async def test_a_node_without_the_memory_for_a_state_says_what_to_raise(worlds):
    world = await small(worlds, outer=ADAM)
    third = world.nodes["c"]
    third.runner.merging.max_model_bytes = 2 * third.schema.data_bytes - 1
    for node in world.nodes.values():
        node.train()
    await soon(lambda: "Raise max_model_gb under [node]" in third.runner.problem)
    assert not third.seen


async def test_the_best_rounds_model_is_kept_and_can_be_had_from_peers_who_have_its_state(worlds):
    # The members of these tests say 1 / round as their loss.
    world = await small(worlds, rounds=5, outer=ADAM, best=Best("loss", "max"))
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [5] for node in world.nodes.values()))
    assert world.study.best == 1
    first, second, third = world.nodes.values()
    expected = computed(ADAM, [[1.0, 2.0, 3.0]], np.float64)

    async def value(node, after):
        return views(node.schema, (await node.runner.outer.model_after(after)).data())["bias"][0]

    assert await value(first, 1) == expected
    await soon(lambda: model(third) is not None)
    assert await value(third, 5) == views(third.schema, model(third).data())["bias"][0] != expected
    chosen = third.runner.shelf.chosen()
    handed = await third.runner.shelf.model_of(chosen)  # what members get as the final model, with its card
    assert (chosen.round, views(third.schema, handed.data())["bias"][0]) == (1, expected)
    card = decode_card(card_for(world.state, "aml", chosen, handed))
    assert (card.digest, card.merge) == (handed.digest, world.study.history[0].digest)
    await second.close()
    await world.start("b", elements=ELEMENTS)
    again = world.nodes["b"]
    await soon(lambda: model(again) is not None)
    assert await value(again, 1) == expected  # from its disk
    for file in (again.folder / "merges" / "aml.outer").iterdir():
        file.unlink()
    again.runner.store.keep_only({world.study.accepted})
    assert await value(again, 1) == expected  # from its peers
