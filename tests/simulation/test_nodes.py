"""Real nodes in worlds of one seed each: whatever happens there, what was promised holds.

More universes than the usual few: ``KONSIL_NODE_UNIVERSES=2000``. What happened in one that broke:
``konsil simulate --nodes --seed N --trace``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from msgspec.structs import replace

from konsil.core.rules import Best, StudySettings
from konsil.simulation.faults import Crash, Cut, DialsOut, DiskFull, LedgerHalt, Liar, Partition, TrainingDies
from konsil.simulation.nodes import draw_plan, run_universe
from konsil.simulation.nodes.draw import NAMES
from konsil.simulation.nodes.plan import LIES, STUDY, Plan

UNIVERSES = int(os.environ.get("KONSIL_NODE_UNIVERSES", "60"))
GROUP = 5


def require_whole(outcome):
    assert not outcome.broken, f"universe {outcome.plan.seed}: {outcome.broken[0]}\n{outcome.text}"
    return outcome


def calm(names=NAMES[:4], trains_s=0.5, **settings):
    """Nothing goes wrong: where a test lets something go wrong on purpose."""
    agreed = StudySettings(
        name=STUDY,
        min_members=3,
        quorum=2,
        rounds=2,
        every_steps=1,
        weighting="equal",
        audit_fraction=1.0,
        silence_s=5,
        patience_s=30,
        merge_s=3,
        give_up_s=3000,
        best=Best(),
    )
    return Plan(
        seed=4,
        members=names,
        settings=replace(agreed, **settings),
        trains_s=dict.fromkeys(names, trains_s),
        delay_s=0.1,
        repeated=0.1,
        bytes_per_s=2e8,
        ledger_delay_s=0.05,
    )


@pytest.mark.parametrize("first", range(0, UNIVERSES, GROUP))
def test_in_every_universe_what_was_promised_holds(first):
    for seed in range(first, min(first + GROUP, UNIVERSES)):
        assert require_whole(run_universe(draw_plan(seed))).rounds >= 1


@pytest.mark.parametrize("engine", [False, True])
def test_without_faults_everybody_has_every_round(engine):
    plan = replace(calm(rule="norm_clipping", min_members=2), engine=engine, repeated=0.0)
    outcome = require_whole(run_universe(plan))
    assert outcome.rounds == plan.settings.rounds
    last = f"has the model of round {outcome.rounds}"
    assert sum(last in line for line in outcome.trace) == len(plan.members)


def test_without_power_everywhere_at_once_the_study_goes_on_from_the_disks():
    plan = calm(trains_s=1.0, rule="norm_clipping", min_members=2)
    for engine in (False, True):
        for at_s in (2.5, 5.0):
            crashes = tuple(Crash(name, at_s, at_s + 1) for name in plan.members)
            outcome = require_whole(run_universe(replace(plan, engine=engine, faults=crashes)))
            assert outcome.rounds == plan.settings.rounds


COMPARED = 6

SCRIPT = f"""
from konsil.simulation.nodes import draw_plan, run_universe
for seed in range({COMPARED}):
    print(run_universe(draw_plan(seed)).text)
"""


def test_the_same_seed_gives_the_same_trace_whatever_hashes_are_like():
    def traces(hash_seed):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=110).stdout

    first = traces("1")
    assert first == traces("20")
    assert first != b""
    here = "".join(run_universe(draw_plan(seed)).text + "\n" for seed in range(COMPARED))
    assert here.encode() == first


def test_a_story_is_the_same_wherever_its_files_lie():
    faults = Crash("ada", 2.0, 3.0), DiskFull("ada", 2.5, 6.0)
    plan = replace(calm(NAMES[:3]), engine=True, faults=faults)
    first, second = (run_universe(plan) for _ in range(2))
    assert any("cannot start" in line for line in first.trace)
    assert first.text == second.text


def test_who_never_comes_back_is_not_waited_for():
    plan = calm()
    for fault in (Crash("dov", 3.0), TrainingDies("dov", 3.0)):
        outcome = require_whole(run_universe(replace(plan, faults=(fault,))))
        assert outcome.rounds == plan.settings.rounds


def test_other_seeds_are_other_universes():
    assert len({run_universe(draw_plan(seed)).text for seed in range(10)}) == 10


def test_plans_hold_all_that_can_go_wrong():
    faults = [fault for seed in range(1000) for fault in draw_plan(seed).faults]
    assert {type(fault).__name__ for fault in faults} == {
        "Crash", "Cut", "DialsOut", "DiskFull", "Finishes", "Late", "LedgerHalt", "Liar", "Partition",
        "SaysGoodbye", "Skew", "SlowLine", "TrainingDies",
    }  # fmt: skip
    assert {fault.lie for fault in faults if isinstance(fault, Liar)} == set(LIES)
    assert {fault.loss for fault in faults if isinstance(fault, Crash)} == {"killed", "power"}
    assert {fault.silent for fault in faults if isinstance(fault, Partition)} == {True, False}
    assert {fault.broken for fault in faults if isinstance(fault, DiskFull)} == {True, False}


@pytest.mark.parametrize("engine", [False, True])
def test_a_member_that_publishes_a_wrong_part_is_struck_and_the_round_merges_again(engine):
    plan = replace(calm(), engine=engine, faults=(Liar("cid", "merges a part wrongly"),))
    outcome = require_whole(run_universe(plan))
    assert any("disputes chunk" in line for line in outcome.trace)
    assert any("finds chunk" in line and "wrong" in line for line in outcome.trace)
    assert any("round 1 is accepted" in line and "cid" not in line for line in outcome.trace)


@pytest.mark.parametrize("name", NAMES[1:4])
def test_a_leader_that_publishes_what_everybody_holds_is_struck(name):
    plan = replace(calm(parts="leader", rounds=4), faults=(Liar(name, "publishes what it began with"),))
    outcome = require_whole(run_universe(plan))
    led = any(f"{name} publishes part 0" in line for line in outcome.trace)
    assert led == any("disputes chunk" in line for line in outcome.trace)


def test_a_dispute_is_decided_though_two_members_meet_only_through_the_third():
    faults = DialsOut("bea"), DialsOut("cid"), Liar("cid", "merges a part wrongly")
    plan = replace(calm(NAMES[:3], parts="shared"), faults=faults)
    outcome = require_whole(run_universe(plan))
    assert any("bea finds chunk" in line for line in outcome.trace)


def test_the_proposer_finds_the_initial_parameters_on_its_own_disk_after_a_power_cut():
    plan = replace(calm(NAMES[:3]), ledger_delay_s=0.3)
    (named,) = [line for line in run_universe(plan).trace if "names the initial parameters" in line]
    at_s = (
        float(named.split()[0]) + 0.001
    )  # before the proposer's own node has heard that the ledger took them
    for back_s in (1.0, 1.1, 1.2, 1.3, 1.4):  # before its training process comes with them once more
        crashes = tuple(Crash(name, at_s, at_s + back_s) for name in plan.members)
        require_whole(run_universe(replace(plan, faults=crashes)))


@pytest.mark.parametrize("engine", [False, True])
def test_a_commit_that_the_ledger_never_heard_of_keeps_nobody_out(engine):
    """Node and training die with it, and training makes another update, which the round cannot do without."""
    whole = replace(calm(NAMES[:3]), engine=engine)
    trains_s = whole.trains_s | {"bea": 3.0}  # so that it hears of the round before it is cut off
    whole = replace(whole, settings=replace(whole.settings, quorum=3), trains_s=trains_s)
    (line, *_) = [line for line in run_universe(whole).trace if "bea commits" in line]
    at_s = float(line.split()[0]) + 0.1
    away = Cut("bea", "ada", at_s - 0.4, at_s + 0.1, both_ways=True) if engine else None
    away = away or LedgerHalt(("bea",), at_s - 0.4, at_s + 0.1)
    died = Crash("bea", at_s, at_s + 1), TrainingDies("bea", at_s, at_s + 1)
    outcome = require_whole(run_universe(replace(whole, faults=(away, *died))))
    (commit,) = [line for line in outcome.trace if "bea commits" in line and "to round 1" in line]
    assert float(commit.split()[0]) > at_s + 1
    assert outcome.rounds == whole.settings.rounds


def test_a_member_that_lost_its_update_takes_part_with_another_while_the_round_collects():
    plan = calm(NAMES[:3])
    plan = replace(plan, trains_s=plan.trains_s | {"cid": 4.0})
    (line, *_) = [line for line in run_universe(plan).trace if "bea commits" in line]
    at_s = float(line.split()[0]) + 0.1
    died = Crash("bea", at_s, at_s + 1), TrainingDies("bea", at_s, at_s + 1)
    outcome = require_whole(run_universe(replace(plan, faults=died)))
    first = [line.split()[5] for line in outcome.trace if "bea commits" in line and "to round 1" in line]
    assert len(set(first)) == 2
    assert any("round 1 is accepted" in line and "bea" in line for line in outcome.trace)
    assert not any("round 1.2" in line for line in outcome.trace)
