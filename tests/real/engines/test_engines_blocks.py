"""Engines whose members decide together on blocks: some of them die, at any moment, and in any part."""

from __future__ import annotations

import random
import time

import pytest

from konsil.errors import LedgerUnreachable

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

STEPS = ("decided", "applied", "told", "kept", "over")


def test_one_of_four_may_die_and_with_two_dead_calls_say_so_and_nothing_is_lost_nor_counts_twice(cometbft):
    kept = cometbft
    swarm = kept.swarm(witnesses=())
    swarm.start([name for name in swarm.members if name != "bonn"])
    kept.start_script("bonn", "hasty_node.py", "3")
    for number in range(3):
        kept.announce("bonn", number)
    kept.kill("lyon")
    for number in range(3, 6):
        kept.announce("bonn", number)
        kept.announce("berlin", number)
    kept.kill("koeln")
    for _ in range(2):  # submitting it again is safe, as the error says
        began_s = time.monotonic()
        with pytest.raises(LedgerUnreachable, match=r"2 cannot be reached from here \(koeln, lyon\)") as told:
            kept.announce("bonn", 6)
        assert time.monotonic() - began_s < 6
        assert "safe" in str(told.value)
    assert any("koeln" in problem for problem in swarm.control("berlin").node().problems)

    swarm.start(["koeln"])
    swarm.wait("koeln", lambda state: state.members["bonn"].sequence == 7)
    kept.announce("koeln", 7)
    swarm.start(["lyon"])
    kept.announce("lyon", 8)
    kept.alike()
    assert set(kept.times_called("lyon", "bonn").values()) == {1}
    assert len(kept.times_called("lyon", "bonn")) == 7
    assert len(kept.times_called("lyon", "berlin")) == 3


def test_a_node_killed_with_a_call_on_its_way_signs_no_other_call_that_counts_beside_it(cometbft):
    """The call waits in the pools of others; its member, which has forgotten it, makes another."""
    kept = cometbft
    swarm = kept.swarm(witnesses=())
    swarm.start([name for name in swarm.members if name != "bonn"])
    kept.start_script("bonn", "hasty_node.py", "2")
    kept.announce("bonn", 0)
    kept.kill("koeln")
    kept.kill("lyon")
    with pytest.raises(LedgerUnreachable):
        kept.announce("bonn", 1)
    kept.kill("bonn")
    swarm.start(["bonn", "koeln", "lyon"])
    kept.announce("bonn", 2)
    kept.alike()
    called = kept.times_called("berlin", "bonn")
    numbers = [addresses[-1].removesuffix(".example:7400") for addresses in called]
    assert set(called.values()) == {1}
    assert numbers in (["number-0", "number-1", "number-2"], ["number-0", "number-2"])


@pytest.mark.parametrize("victim", ["node", "engine"])
def test_ledger_and_application_killed_between_any_two_steps_agree_again(cometbft, victim):
    kept = cometbft
    swarm = kept.swarm(witnesses=())
    swarm.start([name for name in swarm.members if name != "lyon"])
    for number, step in enumerate(STEPS):
        kept.start_script("lyon", "dying_node.py", victim, step)
        pid = kept.engine_pid("lyon")
        process = swarm._processes["lyon"]
        kept.alike()  # lyon's engine is one of theirs by now
        kept.announce("bonn", number)
        if victim == "node":
            process.wait(15)
            kept.wait_ended(pid)
            swarm.start(["lyon"])
        else:
            kept.wait_ended(pid)
        kept.announce("lyon", number)
        kept.alike()
        swarm.stop("lyon")


def test_nodes_and_engines_killed_at_any_moment_of_a_study_do_not_change_its_end(cometbft):
    kept = cometbft
    swarm = kept.swarm()
    swarm.start()
    kept.study(rounds=12, silence_s=20)
    trainers = kept.train(pause=0.3)
    trainers[0].until("merged", 1)
    moments = random.Random(7)  # noqa: S311 - so that a failure comes again
    for _ in range(8):
        time.sleep(moments.uniform(0.0, 0.7))
        victim = moments.choice(swarm.members)
        if moments.random() < 0.5:
            kept.kill_engine(victim)
        else:
            kept.kill(victim)
            swarm.start([victim])
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4, ends
    assert len({end["digest"] for end in ends}) == 1
    history = kept.alike().studies["aml"].history
    assert len(history) == 12
    assert set(history[-1].roster) == set(kept.trainers)
