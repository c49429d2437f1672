"""Merge rules that need more than the updates: the model the round started from, or a file at every member."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from konsil.core.parameters import views
from konsil.node.rules import Rules, read_rule_file

LARGEST = """
import numpy as np
from konsil.core.merge import Rule

def largest(values, weights, out):
    np.copyto(out, values[0])
    for row in values[1:]:
        np.maximum(out, row, out=out)

def rule(options):
    return Rule("largest", options, largest)
"""


async def through(world, reached, limit_s=8.0):
    """Wait until the ledger says so, while the members' clocks go ten times as fast as the test's."""
    async with asyncio.timeout(limit_s):
        while not reached():
            await asyncio.sleep(0.02)
            world.now_s += 0.2
            world.move()


def finished(world):
    return world.study.phase == "finished"


async def soon(reached):
    """Wait for what no event tells: a node's own knowledge."""
    async with asyncio.timeout(8.0):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def weights(node):
    return views(node.schema, node.model().data())["weights"]


async def started(worlds, tmp_path, text):
    """Three members with a rule of their own, in a study of two rounds."""
    file = tmp_path / "largest.py"
    file.write_text(text)
    for name in "abc":
        Rules(tmp_path / name / "rules").add(file, {})
    digest = read_rule_file(file)[0].digest
    return await worlds(rule="largest", rule_digest=digest, rounds=2, merge_s=1)


def train(world):
    for number, node in enumerate(world.nodes.values(), start=1):
        node.number = float(number)
        node.train()


async def test_a_study_with_norm_clipping_holds_back_who_goes_too_far(worlds):
    world = await worlds(rule="norm_clipping", rounds=2)
    train(world)
    world.nodes["c"].number = 1000.0
    await world.until(finished)
    await soon(lambda: all(node.model() for node in world.nodes.values()))
    for node in world.nodes.values():
        # In each round steps of 1, 2 and 1000 become 1, 2 and 2.
        np.testing.assert_allclose(weights(node), 2 * 5 / 3, rtol=1e-6)
    assert world.study.history[0].attempt == 1
    assert all(part.gram for part in world.study.history[0].parts)


async def test_a_leader_that_lost_the_rounds_base_gets_it_from_a_peer(worlds):
    world = await worlds(rule="norm_clipping", rounds=1)
    first, second, third = (world.nodes[name] for name in "abc")
    trained = third._trained

    def all_others_forget(effect):  # the last to commit: only then does anybody merge
        for node in (first, second):
            store = node.runner.store
            store.keep_only(set(store._models) - {effect.digest})
            assert store.model(effect.digest) is None
        trained(effect)

    third._trained = all_others_forget
    for node in (first, second):
        node.train()
    await world.until(lambda w: w.study.participants["b"].present)
    base = f"{world.study.accepted}.manifest"
    await soon(lambda: all((node.folder / "merges/aml" / base).exists() for node in (first, second)))
    third.train()
    await world.until(finished)
    await soon(lambda: all(node.model() for node in world.nodes.values()))
    assert world.study.history[0].attempt == 1
    assert np.all(weights(first) == 1.0)


async def test_a_study_merges_by_the_rule_in_the_members_files(worlds, tmp_path):
    world = await started(worlds, tmp_path, LARGEST)
    train(world)
    await world.until(finished)
    await soon(lambda: all(node.model() for node in world.nodes.values()))
    assert all(np.all(weights(node) == 6.0) for node in world.nodes.values())
    assert all(record.attempt == 1 for record in world.study.history)


async def test_a_member_whose_file_was_changed_says_so_and_the_others_go_on(worlds, tmp_path):
    world = await started(worlds, tmp_path, LARGEST)
    (stored,) = (tmp_path / "c" / "rules").iterdir()
    stored.write_text(LARGEST.replace("maximum", "minimum"))
    now = read_rule_file(stored.rename(tmp_path / "changed.py"))[0].digest
    stored.write_bytes((tmp_path / "changed.py").read_bytes())
    assert now in world.nodes["c"].runner.status().problem  # before anything is to be merged
    train(world)
    await through(world, lambda: len(world.study.history) == 1)
    problem = world.nodes["c"].runner.problem
    assert f"from the file with digest {world.study.settings.rule_digest}" in problem
    assert f"it has digest {now} now" in problem
    assert "konsil rule add" in problem
    await through(world, lambda: finished(world))
    for name in "ab":
        assert world.nodes[name].runner.problem == ""
        assert np.all(weights(world.nodes[name]) == 6.0)
    for record in world.study.history:
        assert record.accepts == ("a", "b")
        assert "c" not in {part.leader for part in record.parts}
        assert "c" in record.roster  # its update counts: that took no merging


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("    if values[0][0] == 1: raise ValueError('one')\n", "'largest' raised ValueError: one."),
        ("    if values[0][0] == 1: out[0] = np.nan\n", "'largest' gave a NaN or an infinity."),
    ],
)
async def test_a_rule_that_fails_in_a_merge_is_a_problem_and_publishes_nothing(worlds, tmp_path, fails, says):
    world = await started(worlds, tmp_path, LARGEST.replace("\ndef rule", f"{fails}\ndef rule"))
    train(world)
    await world.until(lambda w: w.study.open is not None and w.study.open.phase == "merging")
    leaders = {part.leader for part in world.study.open.parts}
    await soon(lambda: all(says in world.nodes[name].runner.problem for name in leaders))
    assert not any(part.digest for part in world.study.open.parts)
    assert world.study.history == ()
