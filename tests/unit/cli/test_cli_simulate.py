"""``konsil simulate`` in both worlds: seeds, plans in files, the smallest, and JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from konsil.cli import main
from konsil.simulation.faults import Crash, Liar, Skew
from konsil.simulation.plans import encode_plan
from konsil.simulation.worlds import world

WORLDS = ("core", "nodes")


def run(*words, expect=0):
    result = CliRunner().invoke(main, ["simulate", *map(str, words)])
    assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
    return result.output


def small_plan(name, *faults):
    """A universe of one round, in which these things go wrong."""
    plan = replace(world(name).draw(4), faults=faults)
    if name == "core":
        return replace(plan, rounds=1)
    return replace(plan, settings=replace(plan.settings, rounds=1))


def broken_plan(name):
    """A quorum that never comes together, and what has no part in that."""
    plan = small_plan(name)
    members = plan.names if name == "core" else plan.members
    gone = [Crash(member, 0.5) for member in members[1:]]
    return replace(plan, faults=(Skew(members[0], 0.5), *gone))


@pytest.fixture
def written(tmp_path):
    def write(plan):
        file = tmp_path / "plan.json"
        file.write_text(encode_plan(plan))
        return file

    return write


@pytest.mark.parametrize(("flags", "name"), [((), "core"), (("--nodes",), "nodes")])
def test_a_seeds_plan_is_printed_as_it_was_drawn(flags, name):
    printed = run(*flags, "--seed", 6, "--plan").encode()
    assert world(name).decode(printed) == world(name).draw(6)
    assert json.loads(printed)["world"] == name


@pytest.mark.parametrize("name", WORLDS)
def test_a_file_alone_says_in_which_world_its_plan_runs(name, written):
    said = run("--from", written(small_plan(name, Skew("a" if name == "core" else "ada", 1.0))))
    assert ("of real nodes" in said) == (name == "nodes")
    assert "clock is 1 s ahead" in said
    assert "All laws held: 1 round accepted" in said


def test_a_plan_for_the_other_world_is_refused(written):
    said = run("--nodes", "--from", written(small_plan("core")), expect=1)
    assert "for the world of the core" in said
    assert "Nothing was run." in said
    assert "Leave out `--nodes`" in said


def test_a_world_that_there_is_not_is_refused(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text('{"world": "mars", "seed": 1}')
    assert "no plan of a universe" in run("--from", file, expect=1)


@pytest.mark.parametrize("name", WORLDS)
def test_what_cannot_be_in_a_plan_is_said_as_json_too(name, written):
    facts = json.loads(
        run("--from", written(small_plan(name, Liar("zoe", "reads early"))), "--json", expect=1)
    )
    assert "'zoe'" in json.dumps(facts)


@pytest.mark.parametrize("name", WORLDS)
def test_a_broken_universe_is_json_for_programs_and_an_exit_status(name, written):
    facts = json.loads(run("--from", written(broken_plan(name)), "--json", expect=1))
    assert facts["law"] == "rounds end"
    assert facts["what"]
    assert facts["plan"]["world"] == name
    assert facts["rounds"] == 0
    assert facts["calls"] >= 0
    assert facts["seconds"] > 0
    assert "trace" not in facts


@pytest.mark.parametrize("name", WORLDS)
def test_the_smallest_universe_is_a_plan_that_breaks_the_same_law(name, written):
    small = run("--from", written(broken_plan(name)), "--minimise", "--plan").encode()
    plan = world(name).decode(small)
    assert all(isinstance(fault, Crash) for fault in plan.faults)
    assert world(name).run(plan, None).law == "rounds end"


@pytest.mark.parametrize("flags", [(), ("--nodes",)])
def test_a_story_is_told_event_by_event(flags):
    story = run(*flags, "--seed", 4, "--trace").splitlines()
    assert any(line.lstrip()[:1].isdigit() and " s  " in line for line in story)
    assert story[-1].startswith("All laws held")
    assert len(story) > 20


@pytest.mark.parametrize("flags", [(), ("--nodes",)])
def test_many_are_counted(flags):
    facts = json.loads(run(*flags, "--universes", 3, "--processes", 1, "--json"))
    assert facts["universes"] == 3
    assert facts["rounds"] >= 3
    assert facts["broken"] == []
    assert "3 universes" in run(*flags, "--universes", 3, "--processes", 1)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--nodes", "--hours", 1), "--hours is for the world of the core"),
        (("--universes", 2, "--plan"), "for one universe"),
        (("--nodes", "--universes", 2, "--trace"), "for one universe"),
        (("--trace", "--json"), "--trace tells a story to people"),
        (("--hours", "nan"), "'--hours': nan is not in the range 0<x<=1000."),
        (("--hours", "inf"), "'--hours': inf is not in the range 0<x<=1000."),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, why):
    assert why in run(*words, expect=2)


@pytest.mark.parametrize("name", WORLDS)
def test_a_file_has_its_seed(name, written):
    said = run("--from", written(small_plan(name)), "--seed", 0, expect=2)
    assert "--seed does not go with it" in said


@pytest.fixture
def started():
    """Starts the command in a session of its own, as a shell starts it in a job of its own."""
    running = []

    def start(*words):
        call = f"from konsil.cli import main; main(['simulate', *{list(map(str, words))!r}])"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen([sys.executable, "-c", call], start_new_session=True, **pipes))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


@pytest.mark.parametrize("flags", [(), ("--nodes",)])
def test_a_story_that_nobody_hears_out_ends_quietly(flags, started):
    process = started(*flags, "--seed", 3, "--trace")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 1


@pytest.mark.parametrize("flags", [(), ("--nodes",)])
def test_many_are_stopped_by_an_interrupt(flags, started):
    process = started(*flags, "--universes", 100_000, "--processes", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until_s = time.monotonic() + 20
    while len(children.read_text().split()) < 2:
        assert time.monotonic() < until_s, "nothing was begun"
        time.sleep(0.01)  # the system tells nobody
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"Stopped.\n")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flags", [(), ("--nodes",)])
def test_one_is_stopped_by_an_interrupt(flags, monkeypatch):
    there = world("nodes" if flags else "core")
    told = []

    def tell(sentence):
        told.append(sentence)
        if len(told) == 30:
            raise KeyboardInterrupt

    before = there.run
    monkeypatch.setattr("konsil.cli.simulate.World.run", None, raising=False)
    monkeypatch.setattr("konsil.cli.simulate._one", lambda _there, plan, **_: before(plan, tell))
    assert "Stopped." in run(*flags, "--seed", 3, "--trace", expect=130)
    assert len(told) == 30
