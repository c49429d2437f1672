"""Whole studies with the runners of real nodes, over memory instead of sockets, on real folders."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from konsil.core.parameters import views
from konsil.core.round import Deliver, Detached
from konsil.errors import NodeError, StudyError, UpdatesMissing
from konsil.node.bench import Bench
from konsil.node.pull import Puller
from konsil.node.study import StudyRunner

NAMES = ("a", "b", "c")


async def soon(reached, limit_s=20.0):
    """Wait for what no event tells: a node's own knowledge, or a file."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def finished(world):
    return world.study.phase == "finished"


def rounds(number):
    return lambda world: len(world.study.history) >= number


async def test_a_study_runs_to_its_end_and_all_hold_the_same_model(worlds):
    world = await worlds()
    for number, node in enumerate(world.nodes.values(), start=1):
        node.number = float(number)
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    for node in world.nodes.values():
        weights = views(node.schema, node.model().data())["weights"]
        assert np.all(weights == 6.0)
        assert node.seen == [0, 1, 2, 3]
        assert node.runner.problem == ""
        assert node.runner.status().stage == "finished"
        update = world.study.history[-1].roster[node.name].digest
        assert node.runner.store.model(update) is None  # of a study that is over only its model stays
    assert world.study.history[0].scores.keys() == set(NAMES)
    assert world.study.history[0].attempt == 1


async def test_a_model_that_was_let_go_of_just_when_it_was_to_be_handed_over_is_no_end_of_the_study(worlds):
    world = await worlds()
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    node = world.nodes["c"]
    await soon(lambda: node.runner.store.model(world.study.initial) is None)
    seen = list(node.seen)
    with pytest.raises(StudyError, match="newer one"):
        await node.runner._deliver(Deliver(0, world.study.initial))
    assert 0 not in node.seen[len(seen) :]


def at_rest(node):
    digest, store = node.world.study.accepted, node.runner.store
    return store.model(digest) is None and store.stored(digest) is not None


async def test_a_study_that_is_over_takes_no_memory_and_is_still_served_and_handed_over(worlds):
    world = await worlds()
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    first, *others = world.nodes.values()
    for node in others:
        node.runner.trainee = None
        node.runner.post(Detached(goodbye=True))
    await soon(lambda: all(map(at_rest, others)))
    assert not at_rest(first), "its training process may still need it"
    fetched = await first.runner.merging.fetch(world.study.accepted)
    assert np.all(views(first.schema, fetched.data())["weights"] == 3.0)
    fetched.close()

    late = others[0].train()
    await soon(lambda: late.seen == [0, 1, 2, 3, 3])
    assert late.handed.digest == world.study.accepted
    assert not at_rest(late)

    await others[1].close()
    await world.start(others[1].name)
    await soon(lambda: at_rest(world.nodes[others[1].name]))


@pytest.mark.parametrize("contribution", ["snapshot", "active", "inactive"])
async def test_a_member_whose_training_has_finished_contributes_what_it_chose(worlds, contribution):
    world = await worlds()
    world.nodes["c"].stop_after, world.nodes["c"].contribution = 1, contribution
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    last = world.study.history[-1]
    expected = {
        "snapshot": world.study.history[0].roster["c"].digest,
        "active": last.base,
        "inactive": None,
    }[contribution]
    assert (last.roster["c"].digest if "c" in last.roster else None) == expected


@pytest.mark.parametrize("heard", [True, False])
async def test_a_snapshot_is_contributed_on_after_its_node_has_restarted(worlds, heard):
    world = await worlds(rounds=6)
    third = world.nodes["c"]
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    third.runner.trainee = None
    third.runner.post(Detached(goodbye=True))
    if not heard:
        world.away.add("c")
    await third.runner.finish("snapshot")
    left = third.runner.journal.farewell.update.digest
    if heard:
        await world.until(lambda _: world.study.participants["c"].finished == "snapshot")
    await third.close()
    world.away.clear()
    await world.start("c")
    await world.until(finished)
    assert world.study.participants["c"].finished == "snapshot"
    assert world.study.history[-1].roster["c"].digest == left
    kept = world.nodes["c"].folder / "merges" / "aml" / f"{left}.manifest"
    await soon(lambda: not kept.exists())
    await soon(lambda: world.nodes["c"].runner.journal.farewell is None)


async def test_a_farewell_reaches_the_ledger_though_its_node_died_before_it_could(worlds):
    world = await worlds(rounds=4)
    third = world.nodes["c"]
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    world.away.add("c")
    await third.runner.finish("active")
    third.runner.trainee = None
    third.runner.post(Detached(goodbye=True))
    await third.close()
    assert world.study.participants["c"].finished is None
    world.away.clear()
    await world.start("c")
    await world.until(finished)
    assert world.study.participants["c"].finished == "active"
    last = world.study.history[-1]
    assert last.roster["c"].digest == last.base


async def test_a_training_process_that_comes_back_takes_its_farewell_back(worlds):
    world = await worlds()
    runner = world.nodes["c"].runner
    await runner.finish("inactive")
    await runner.last_words.forget()
    await world.nodes["c"].close()
    await world.start("c")
    assert world.nodes["c"].runner.state.finish is None


async def test_a_node_that_restarts_takes_the_accepted_model_from_its_disk(worlds):
    world = await worlds()
    for name in "ab":
        world.nodes[name].train()
    third = world.nodes["c"].train()
    third.stop_after = 2
    await world.until(rounds(2))
    await soon((third.folder / "merges" / "aml" / f"{world.study.accepted}.manifest").exists)
    await third.close()
    for name in "ab":
        world.network.cut(name, "c")
    await world.start("c")
    assert world.nodes["c"].model().digest == world.study.accepted


async def test_a_late_member_fetches_the_accepted_model_from_its_peers_and_joins(worlds):
    world = await worlds(start=False, min_members=2, rounds=6)
    await world.start("a", "b")
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    await world.start("c")
    world.nodes["c"].train()
    await world.until(finished)
    assert "c" in world.study.history[-1].roster
    assert world.nodes["c"].seen[0] >= 2


async def test_while_the_ledger_is_away_the_problem_is_shown_and_then_gone(worlds):
    world = await worlds()
    world.away.add("b")
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: w.study.participants["a"].present)
    await soon(lambda: "The ledger is away. Wait." in world.nodes["b"].runner.problem)
    world.away.clear()
    await world.until(finished, at_s=1.0)
    assert world.nodes["b"].runner.problem == ""


async def test_a_merge_whose_round_went_on_during_its_audit_is_fetched_whole(worlds, monkeypatch):
    world = await worlds(rounds=1, merge_s=1)
    audit = Bench.audit

    async def late_audit(bench, parts, model, settled):
        await audit(bench, parts, model, settled)
        if bench.me == "c":
            bench.close()  # as when the others accept the round meanwhile

    monkeypatch.setattr(Bench, "audit", late_audit)
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: w.study.open is not None and w.study.open.accepts == ("a", "b"))
    third = world.nodes["c"]
    for _ in range(100):  # the members' clocks go on: first the round's time is over, then c tries again
        world.now_s += 1.0
        world.move()
        await asyncio.sleep(0.02)
        if finished(world) and third.model() is not None:
            break
    assert np.all(views(third.schema, third.model().data())["weights"] == 1.0)


async def test_what_a_slow_line_brought_before_the_others_went_on_is_not_fetched_again(worlds, monkeypatch):
    world = await worlds(rounds=1, merge_s=1)
    audit, pull, gone_on, pulled = Bench.audit, Puller.chunk, asyncio.Event(), []

    async def late_audit(bench, parts, model, settled):
        if bench.me == "c":
            await gone_on.wait()
            raise UpdatesMissing(("a",), "The update of a round that is over is nobody's to read.")
        await audit(bench, parts, model, settled)

    async def counted(puller, digest, *rest, **options):
        if puller.me == "c" and gone_on.is_set():
            pulled.append(digest)
        await pull(puller, digest, *rest, **options)

    monkeypatch.setattr(Bench, "audit", late_audit)
    monkeypatch.setattr(Puller, "chunk", counted)
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: w.study.open is not None and w.study.open.accepts == ("a", "b"))
    third = world.nodes["c"]
    for _ in range(100):
        world.now_s += 1.0
        world.move()
        await asyncio.sleep(0.02)
        if finished(world):
            gone_on.set()
            if third.model() is not None:
                break
    assert np.all(views(third.schema, third.model().data())["weights"] == 1.0)
    assert not pulled
    await soon(lambda: third.runner.merging.assembly is None)


async def test_a_member_that_has_not_agreed_is_told_how(worlds):
    world = await worlds(names=("a", "b", "c", "d"), start=False)
    await world.start("a", "d")
    world.nodes["d"].runner.require_participant()
    stranger = StudyRunner("aml", world.nodes["a"].runner.site)
    stranger.site.me, kept = "zoe", stranger.site.me
    with pytest.raises(StudyError, match=r"zoe has not agreed.*`konsil study agree aml`"):
        stranger.require_participant()
    stranger.site.me = kept


async def test_an_update_is_not_served_before_the_roster_is_fixed(worlds):
    world = await worlds()
    for name in "ab":
        world.nodes[name].train()
    await world.until(lambda w: w.study.participants["b"].present)
    update = world.nodes["a"].runner.store
    world.nodes["c"].train()
    await world.until(finished)
    assert not world.nodes["a"].runner.may_read("zoe", world.study.accepted)
    assert world.nodes["a"].runner.may_read("b", world.study.accepted)
    assert update.model(world.study.accepted) is not None


def full(models):
    """Let a node's disk be full; what to call when there is room again."""
    save = models.save

    async def refuse(*_):
        raise NodeError("No space.", do="Free disk space; the node tries again by itself.")

    models.save = refuse
    return lambda: setattr(models, "save", save)


async def test_a_full_disk_keeps_a_member_from_committing_and_shows_why(worlds):
    world = await worlds()
    third = world.nodes["c"]
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    make_room = full(third.runner.site.models)
    await world.until(lambda w: w.study.open is not None and set(w.study.open.commits) == {"a", "b"})
    await soon(lambda: "Free disk space" in third.runner.problem)
    await soon(lambda: not third.runner.state.scores)
    assert "Free disk space" in third.runner.problem  # what succeeds beside it does not hide it
    make_room()
    await world.until(finished, at_s=1.0)
    assert third.runner.problem == ""


async def test_the_last_model_is_written_when_there_is_room_again(worlds, monkeypatch):
    monkeypatch.setattr("konsil.node.saving.SAVE_AGAIN_S", 0.01)
    world = await worlds()
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    second = world.nodes["b"]
    await world.until(lambda w: w.study.open is None or "b" in w.study.open.commits)
    make_room = full(second.runner.site.models)
    await world.until(lambda w: w.study.open is not None and set(w.study.open.accepts) == {"a", "c"})
    await world.until(finished, at_s=60.0)  # what is not on its disk, b does not accept: a majority does
    await soon(lambda: "Free disk space" in second.runner.problem)
    make_room()
    await soon((second.folder / "merges" / "aml" / f"{world.study.accepted}.manifest").exists)
    await soon(lambda: second.runner.problem == "")


async def test_nothing_is_left_running_or_open_when_a_runner_closes(worlds):
    before = asyncio.all_tasks()
    world = await worlds()
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    for node in list(world.nodes.values()):
        await node.close()
        assert not node.runner._tasks
        assert node.runner.merging.assembly is None
    await soon(lambda: asyncio.all_tasks() == before)
