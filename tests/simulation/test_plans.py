"""Plans of both worlds: written down, read back, refused where they cannot be, made smaller."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from konsil.errors import ConfigError
from konsil.simulation.faults import (
    Crash,
    Cut,
    DiskFull,
    Finishes,
    Late,
    LedgerHalt,
    Liar,
    Partition,
    Skew,
    TrainingDies,
)
from konsil.simulation.minimise import minimise
from konsil.simulation.nodes import draw_plan
from konsil.simulation.nodes import plan as of_nodes
from konsil.simulation.nodes.loop import SimulatedLoop
from konsil.simulation.nodes.plan import LATEST_S, SaysGoodbye, SlowLine
from konsil.simulation.nodes.world import run_universe as run_nodes
from konsil.simulation.plans import ELSEWHERE, LONG_S, encode_plan, world_of
from konsil.simulation.universe import Plan, run_universe
from konsil.simulation.universe import plan as of_core
from konsil.simulation.universe import world as core_world
from konsil.simulation.universe.plan import Slow, Weather
from konsil.simulation.worlds import world

FOUND = Path(__file__).with_name("found")
WORLDS = ("core", "nodes")


@pytest.mark.parametrize("file", sorted(FOUND.rglob("*.json")), ids=lambda file: file.stem)
def test_what_a_universe_found_once_stays_mended(file):
    data = file.read_bytes()
    there = world(world_of(data))
    outcome = there.run(there.decode(data), None)
    assert not outcome.law, outcome.what


@pytest.mark.parametrize("name", WORLDS)
def test_plans_are_written_down_and_read_back(name):
    for seed in range(200):
        plan = world(name).draw(seed)
        data = encode_plan(plan).encode()
        assert world_of(data) == name
        assert world(name).decode(data) == plan
        assert "".join(world(name).sentences(plan)).count("\n") == 0


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_smaller_can_be_too_and_is_smaller(name):
    for seed in range(60):
        plan = world(name).draw(seed)
        sizes = []
        for less in world(name).smaller(plan):
            assert world(name).decode(encode_plan(less).encode()) == less
            assert less != plan
            sizes.append(len(less.faults))
        assert sizes.count(len(plan.faults) - 1) == len(plan.faults)


def test_only_what_breaks_the_same_law_is_taken_away():
    def smaller(plan):
        return [plan[:place] + plan[place + 1 :] for place in range(len(plan))]

    def law(plan):
        return "two" if "ab" in plan else "one" if "a" in plan else ""

    assert minimise("xaxyabz", smaller, law) == "ab"
    assert minimise("xaxy", smaller, law) == "a"
    assert minimise("xyz", smaller, law) == "xyz"


def test_a_universe_of_nodes_whose_minimiser_finds_nothing_stays_as_it_is():
    plan = draw_plan(3)
    assert world("nodes").minimised(plan) == plan


@pytest.mark.parametrize("fault", [
    Crash("a", 1.0, 2.0, "killed"),
    Partition(("a",), 1.0, 2.0, silent=True),
    Cut("a", "b", 1.0, 2.0, both_ways=True),
    DiskFull("a", 1.0, 2.0, broken=True),
    Finishes("a", 0, "active", 3.0),
    Liar("a", "publishes what it began with"),
])  # fmt: skip
def test_the_world_of_the_core_refuses_what_only_real_nodes_can_do(fault):
    plan = encode_plan(replace(world("core").draw(3), faults=(fault,))).encode()
    with pytest.raises(ConfigError, match="cannot be") as caught:
        world("core").decode(plan)
    assert caught.value.safe == "Nothing was run."


def changed(**changes):
    plan = draw_plan(4)
    settings = {name: changes.pop(name) for name in list(changes) if hasattr(plan.settings, name)}
    plan = replace(plan, settings=replace(plan.settings, **settings)) if settings else plan
    return encode_plan(replace(plan, **changes)).encode()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"trains_s": {"ada": 1.0}}, "trains_s"),
        ({"trains_s": dict.fromkeys(("ada", "bea", "cid", "dov"), 0.0)}, "training takes"),
        ({"trains_s": dict.fromkeys(("ada", "bea", "cid", "dov"), 151.0)}, "training takes up to 300 s"),
        ({"rounds": 7}, "6 rounds"),
        ({"silence_s": 61, "patience_s": 61}, "silence_s"),
        ({"patience_s": 61}, "patience_s"),
        ({"merge_s": 61}, "merge_s"),
        ({"delay_s": 1.1}, "a delay is up to 1 s"),
        ({"delay_s": 0.1, "faults": (SlowLine("ada", 11.0),)}, "on a slow line too"),
        ({"ledger_delay_s": 0.6}, "a delay of the ledger"),
        ({"bytes_per_s": 1e6}, "bytes_per_s"),
        ({"delay_s": 0.0}, "a delay"),
        ({"ledger_delay_s": -1.0}, "a delay"),
        ({"bytes_per_s": 0.0}, "bytes_per_s"),
        ({"lost_calls": 2.0}, "lost_calls"),
        ({"quorum": 9}, "quorum"),
        ({"rule": "best"}, "rule"),
        ({"name": "lungs"}, "aml"),
        ({"every_steps": 7}, "every_steps"),
        ({"rule_digest": "0" * 64}, "members' own"),
        ({"faults": (Crash("zoe", 1.0),)}, "'zoe'"),
        ({"faults": (Crash("ada", 5.0, 4.0),)}, "before it begins"),
        ({"faults": (Crash("ada", LATEST_S + 1, LATEST_S + 2),)}, "the last fault"),
        ({"faults": (SaysGoodbye("zoe", 1.0, 2.0),)}, "'zoe'"),
        ({"faults": (SlowLine("ada", 0.0),)}, "slow"),
        ({"faults": (Skew("ada", 1e300),)}, "a day"),
        ({"faults": (Cut("ada", "ada", 1.0, 2.0),)}, "two members"),
        ({"faults": (Finishes("ada", 2, "active"),)}, "rounds"),
        ({"faults": (Liar("bea", "ticks and flaps"),)}, "ticks and flaps.*reports honest members; "),
        ({"faults": (SlowLine("ada", 2.0), SlowLine("ada", 3.0))}, "one `SlowLine`"),
        ({"faults": (Skew("ada", 2.0), Skew("ada", 3.0))}, "one `Skew`"),
        ({"faults": (Partition((), 1.0, 2.0),)}, "a partition"),
    ],
)
def test_a_universe_of_real_nodes_that_cannot_be_is_refused(changes, why):
    with pytest.raises(ConfigError, match=why) as caught:
        world("nodes").decode(changed(**changes))
    assert caught.value.safe == "Nothing was run."


@pytest.mark.parametrize("members", [["../etc", "bea"], ["ada", "ada"], [], ["Ada"], list("abcdefghijk")])
def test_members_have_names_that_can_be_folders(members):
    facts = msgspec.json.decode(encode_plan(draw_plan(4)))
    facts |= {"members": members, "trains_s": dict.fromkeys(members, 1.0), "faults": []}
    with pytest.raises(ConfigError, match="cannot be"):
        world("nodes").decode(msgspec.json.encode(facts))


@pytest.mark.parametrize(
    "data", [b'{"world": "nodes"}', b'{"world": 7}', b"[", b"\xff", b'{"world": "mars"}']
)
def test_what_is_no_plan_is_refused(data):
    with pytest.raises(ConfigError, match="no plan of a universe"):
        world("nodes").decode(data)


def core(*faults, **changes):
    return encode_plan(replace(world("core").draw(3), faults=faults, **changes)).encode()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (TrainingDies("a", 1.0, 1e7), "the last fault is over at 86400 s"),
        (Late("a", 1e300), "the last fault is over at 86400 s"),
        (Slow("a", 21.0), "20 times"),
        (Partition((), 1.0, 2.0), "a partition"),
        (Partition(("a", "b", "c"), 1.0, 2.0), "a partition"),
        (Partition(("a", "a"), 1.0, 2.0), "names a member once"),
        (LedgerHalt(("a", "a"), 1.0, 2.0), "names a member once"),
        (Finishes("a", 2, "active"), "within the 1 rounds"),
        (Liar("a", "publishes what it began with"), "leads nothing; "),
    ],
)
def test_a_universe_of_the_core_that_cannot_be_is_refused(fault, why):
    with pytest.raises(ConfigError, match=why) as caught:
        world("core").decode(core(fault, members=3, rounds=1))
    assert caught.value.safe == "Nothing was run."
    assert ".." not in str(caught.value)


@pytest.mark.parametrize("twice", [
    (Liar("a", "reads early"), Liar("a", "leads nothing")),
    (Skew("a", 1.0), Skew("a", 2.0)),
    (Slow("a", 2.0), Slow("a", 3.0)),
])  # fmt: skip
def test_what_would_take_the_place_of_another_is_refused(twice):
    with pytest.raises(ConfigError, match=f"one `{type(twice[0]).__name__}`"):
        world("core").decode(core(*twice, members=3))
    assert world("core").decode(core(twice[0], replace(twice[1], member="b"), members=3))


def test_hours_leave_faults_more_time():
    late = Crash("a", 90_000.0, 90_001.0)
    assert world("core").decode(core(late, hours=30.0)).healed_s > LONG_S


@pytest.mark.parametrize("weather", [Weather(delay_s=5.1), Weather(lag_s=5.1)])
def test_messages_of_the_core_come_in_time(weather):
    with pytest.raises(ConfigError, match="a delay"):
        world("core").decode(core(weather=weather))


@pytest.mark.parametrize("fault", [
    TrainingDies("a", 1.0, LONG_S),
    Partition(("a", "b"), 1.0, LONG_S),
    Late("a", LONG_S),
    *(Slow(name, 20.0) for name in "ac"),
])  # fmt: skip
@pytest.mark.parametrize("running", [True, False])
def test_a_fault_of_a_day_breaks_no_law(fault, running):
    outcome = run_universe(Plan(seed=1, running=running, faults=(fault,)))
    assert not outcome.law, outcome.what


def test_many_rounds_are_no_machine_that_spins(monkeypatch):
    monkeypatch.setattr(core_world, "EVENTS_AT_ONCE", 1_000)
    assert run_universe(Plan(seed=1, rounds=60)).rounds == 60
    monkeypatch.setattr(core_world, "EVENTS_A_SECOND", 1)
    outcome = run_universe(Plan(seed=1, rounds=60))
    assert outcome.law == "rounds end"
    assert "something spins" in outcome.what


def test_the_slowest_universe_of_nodes_that_can_be_has_an_end():
    plan = replace(
        draw_plan(4), faults=(), delay_s=of_nodes.MOST_MESSAGE_S, ledger_delay_s=of_nodes.MOST_LEDGER_S
    )
    rounds = of_nodes.MOST_ROUNDS
    trains_s = dict.fromkeys(plan.members, of_nodes.MOST_TRAINING_S / rounds)
    settings = replace(plan.settings, rounds=rounds)
    plan = replace(plan, settings=settings, trains_s=trains_s, bytes_per_s=of_nodes.LEAST_BYTES_PER_S)
    outcome = run_nodes(world("nodes").decode(encode_plan(plan).encode()), None)
    assert (outcome.law, outcome.rounds) == ("", rounds), outcome.what


@pytest.mark.parametrize(("name", "fault", "do"), [
    ("core", SlowLine("a", 2.0), 'add `"world": "nodes"`'),
    ("core", SaysGoodbye("a", 2.0), 'add `"world": "nodes"`'),
    ("nodes", Slow("ada", 2.0), "Take it out"),
])  # fmt: skip
def test_a_fault_of_the_other_world_is_said_to_be_one(name, fault, do):
    plan = replace(world(name).draw(4), faults=(fault,))
    with pytest.raises(ConfigError, match=f"`{type(fault).__name__}` is a fault of the world of") as caught:
        world(name).decode(encode_plan(plan).encode())
    assert do in caught.value.do


def test_faults_of_one_world_alone_are_known_as_such():
    kinds = {"core": of_core.AnyFault, "nodes": of_nodes.AnyFault}
    names = {name: {kind.__name__ for kind in get_args(union)} for name, union in kinds.items()}
    assert set(ELSEWHERE["core"]) == names["nodes"] - names["core"]
    assert set(ELSEWHERE["nodes"]) == names["core"] - names["nodes"]


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_smaller_keeps_two_sides_of_a_partition(name):
    plan = replace(world(name).draw(4), faults=())
    if name == "core":
        plan = replace(plan, members=4, quorum=3)
    members = plan.names if name == "core" else plan.members
    plan = replace(plan, faults=(Partition(members[:-1], 1.0, 2.0),))
    for less in world(name).smaller(plan):
        assert world(name).decode(encode_plan(less).encode()) == less


@pytest.mark.parametrize("stops", [OSError(32, "Broken pipe"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 10, 40])
def test_a_universe_of_nodes_that_is_broken_off_leaves_nothing_behind(stops, at, monkeypatch):
    told, left = [], []
    close = SimulatedLoop.close

    def closes(loop):
        left.append(asyncio.all_tasks(loop))
        close(loop)

    monkeypatch.setattr(SimulatedLoop, "close", closes)

    def tell(sentence):
        told.append(sentence)
        if len(told) == at:
            raise stops

    with pytest.raises(type(stops)):
        run_nodes(draw_plan(3), tell)
    assert len(told) == at
    assert left == [set()]
