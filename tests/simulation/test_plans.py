"""Plans of both worlds: written down, read back, refused where they cannot be, made smaller."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from konsil.errors import ConfigError
from konsil.simulation.faults import Crash, Cut, DiskFull, Finishes, Liar, Partition, Skew
from konsil.simulation.minimise import minimise
from konsil.simulation.nodes import draw_plan
from konsil.simulation.nodes.plan import LATEST_S, SaysGoodbye, SlowLine
from konsil.simulation.plans import encode_plan, world_of
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
        ({"faults": (Liar("bea", "ticks and flaps"),)}, "ticks and flaps"),
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
