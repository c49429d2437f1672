"""The demo as a newcomer runs it: one command, real processes, a table, a page, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from konsil.evaluation import experiment, models
from konsil.evaluation.datasets import load

pytestmark = pytest.mark.real

BREAST = ("hillview", "lakeside", "northgate", "riverside")
LEUKAEMIA = ("clermont", "cochin", "grenoble", "lyon", "mondor", "nantes")


def leukaemia_data() -> Path:
    folder = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "aipal-leukaemia").is_dir():
        problem = f"NOT TESTED: the leukaemia data are not at {folder}; set KONSIL_DATA to their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


class Place:
    """Where a demo runs: its own temporary directory, so that what it leaves behind can be seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.temporary = root / "t"
        self.temporary.mkdir()
        self.report = root / "report.html"

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "konsil", "demo", "--report", str(self.report), *options]

    def environment(self) -> dict[str, str]:
        return os.environ | {"TMPDIR": str(self.temporary)}

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def json(self, *options: str) -> dict[str, Any]:
        done = self.run("--json", *options)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    def require_nothing_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert processes_of(self.temporary) == []


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that were started for this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            if f"TMPDIR={directory}\0".encode() in environment:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture
def place():
    # Unix sockets need a short path, and pytest's own temporary folders are long.
    with tempfile.TemporaryDirectory(prefix="kd-") as root:
        yield Place(Path(root))


class Resources(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in {"script", "link", "img", "iframe"}:
            self.found.append(tag)
        self.found += [value for name, value in attrs if name in {"src", "srcset"} and value]


def require_a_page_of_its_own(report: Path, hospitals: tuple[str, ...]) -> None:
    text = report.read_text(encoding="utf-8")
    resources = Resources()
    resources.feed(text)
    assert resources.found == []
    assert not re.search(r"url\(\s*['\"]?https?:|@import", text)
    for hospital in hospitals:
        assert f">{hospital}<" in text


def require_all_in_every_round(facts: dict[str, Any], hospitals: tuple[str, ...], rounds: int) -> None:
    result = facts["result"]
    assert [set(record["roster"]) for record in result["rounds"]] == [set(hospitals)] * rounds
    assert all(set(record["scores"]) == set(hospitals) for record in result["rounds"])
    assert result["models"] == dict.fromkeys(hospitals, result["final_digest"])
    assert set(facts["verified"]) == set(hospitals)
    assert len({found["head"] for found in facts["verified"].values()}) == 1
    assert all(found["height"] == len(result["events"]) for found in facts["verified"].values())
    assert facts["problems"] == []


def test_four_hospitals_learn_together_with_one_command_and_leave_nothing_behind(place):
    facts = place.json("--rounds", "4")
    place.require_nothing_left()
    require_all_in_every_round(facts, BREAST, 4)
    require_a_page_of_its_own(place.report, BREAST)
    assert facts["comparison"]["swarm"][0] >= facts["comparison"]["local"][0]
    assert 0 < facts["timings"]["first_merge_s"] <= facts["timings"]["last_merge_s"] <= 60
    assert len(facts["result"]["round_s"]) == 4
    assert all(traffic["bytes_out"] > 10_000 for traffic in facts["result"]["traffic"])


def test_the_real_swarm_learns_what_the_bare_method_learns(place):
    facts = place.json("--rounds", "3", "--seed", "5")
    hospitals = load("breast-cancer", None, seed=5)
    bare = experiment.train_swarm(hospitals, seed=5, rounds=3)
    for result in facts["result"]["hospitals"]:
        expected = models.probabilities(bare, hospitals[result["name"]].test)
        assert result["swarm"] == pytest.approx(expected, abs=1e-9)
        alone = models.train(hospitals[result["name"]].train, 5, 3 * models.EPOCHS_PER_ROUND)
        assert result["local"][result["name"]] == pytest.approx(
            models.probabilities(alone, hospitals[result["name"]].test), abs=1e-9
        )


def test_six_real_hospitals_beat_each_alone_and_come_near_to_all_data_in_one_place(place):
    rounds = 10  # half the demo's, for the time of a test
    facts = place.json("--data", str(leukaemia_data()), "--rounds", str(rounds))
    place.require_nothing_left()
    require_all_in_every_round(facts, LEUKAEMIA, rounds)
    require_a_page_of_its_own(place.report, LEUKAEMIA)
    comparison = facts["comparison"]
    swarm, local, home, central = (
        comparison[arm][0] for arm in ("swarm", "local", "local_at_home", "central")
    )
    assert swarm > local
    assert swarm > home
    assert swarm > central - 0.02
    assert comparison["swarm_minus_local"][1] > 0


def test_without_a_terminal_every_round_is_a_line_and_the_members_can_be_kept_and_read(place):
    kept = place.root / "kept"
    done = place.run("--rounds", "2", "--keep", str(kept))
    assert done.returncode == 0, done.stderr
    place.require_nothing_left()
    for number in (1, 2):
        assert f"round {number} of 2: 4 of 4 took part, validation AUC " in done.stdout
    assert str(place.report) in done.stdout
    assert not list(kept.rglob("*.npz"))
    for hospital in BREAST:
        shown = subprocess.run(
            [sys.executable, "-m", "konsil", "ledger", "show", "breast-cancer", "2", "--dir", str(kept / hospital)],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        assert f"{hospital} took part" in shown.stdout

    again = place.run("--rounds", "2", "--keep", str(kept))
    assert again.returncode == 1
    assert "not empty" in again.stderr
    assert "Nothing was started." in again.stderr


@pytest.mark.parametrize("after", ["Keys, certificates", "round 3 of"])
def test_a_demo_that_is_stopped_leaves_nothing_behind(place, after):
    with subprocess.Popen(
        place.command("--rounds", "200"),
        env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        for line in demo.stdout:
            if after in line:
                break
        else:
            pytest.fail(f"it ended before {after!r}")
        assert processes_of(place.temporary)
        demo.send_signal(signal.SIGINT)
        demo.send_signal(signal.SIGINT)  # an impatient one
        _, error = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert "All processes have ended" in error
    place.require_nothing_left()


def test_a_hospital_whose_training_dies_ends_the_demo_with_a_sentence(place):
    with subprocess.Popen(
        place.command("--rounds", "200"),
        env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        assert any("round 2 of" in line for line in demo.stdout)
        os.kill(training_process(demo.pid), signal.SIGKILL)
        _, error = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "ended too early" in error
    place.require_nothing_left()


def training_process(demo: int) -> int:
    """The last of the launcher's children: a hospital's training process."""
    launcher = next(pid for pid in children(demo) if b"konsil.evaluation.launcher" in command(pid))
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        if found := children(launcher):
            return found[-1]
    raise AssertionError("the launcher has no children")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_cannot_work_is_said_before_anything_is_started(place):
    for options, what in (
        (("--dataset", "leukaemia"), "aipal-leukaemia"),
        (("--data", str(place.root)), "aipal-leukaemia"),
        (("--keep", str(place.root)), "not empty"),
    ):
        environment = {name: value for name, value in place.environment().items() if name != "KONSIL_DATA"}
        done = subprocess.run(
            place.command(*options), env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert what in done.stderr
        assert "Nothing was started." in done.stderr
    place.require_nothing_left()
