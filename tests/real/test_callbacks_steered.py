"""FedProx from inside of Lightning and of Hugging Face's Trainer, by one training and by two in one session."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import termios
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from konsil.core.rules import StudySettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

MEMBERS = ("bonn", "lyon")
SCRIPT = Path(__file__).with_name("steered_member.py")
SCRIPT_S = 300.0
PROX, STEPS, ROUNDS = 2.0, 4, 3
RATE, GRADIENTS = 0.1, (1.0, 3.0)
"""As the members' script has them."""


class Screen:
    """A terminal that is some process's standard error; ``written`` is complete once that has ended."""

    def __init__(self):
        self._end, self.shown_to = pty.openpty()
        termios.tcsetwinsize(self.shown_to, (24, 80))
        self.written = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):  # so a terminal says that nobody writes to it any more
            while piece := os.read(self._end, 4096):
                self.written += piece

    def close(self):
        os.close(self.shown_to)
        self._thread.join(10)
        os.close(self._end)


def run_members(swarm, framework):
    """What each member's script said of each study, and what it wrote to its terminal."""
    screens = [Screen() for _ in MEMBERS]
    scripts = [
        subprocess.Popen(
            [
                sys.executable,
                str(SCRIPT),
                framework,
                str(swarm.directory(member) / "session.sock"),
                str(place),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=screen.shown_to,
            text=True,
        )
        for place, (member, screen) in enumerate(zip(MEMBERS, screens, strict=True))
    ]
    try:
        said = [script.communicate(timeout=SCRIPT_S)[0] for script in scripts]
    finally:
        for script in scripts:
            script.kill()
            script.wait()
        for screen in screens:
            screen.close()
    shown = [screen.written.decode() for screen in screens]
    assert [script.returncode for script in scripts] == [0, 0], shown
    words = [[json.loads(line) for line in text.splitlines() if line.startswith('{"study"')] for text in said]
    return [{word["study"]: word for word in each} for each in words], shown


@pytest.mark.parametrize("framework", ["lightning", "huggingface"])
def test_fedprox_holds_each_training_of_a_framework_to_the_merge(site, framework):
    package = {"huggingface": "transformers"}.get(framework, framework)
    if find_spec(package) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{package} is missing in CI")
        pytest.skip(f"NOT CHECKED: {package} is not installed")
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    for name in ("once", "twice"):
        swarm.propose(
            StudySettings(
                name=name,
                every_steps=STEPS,
                prox=PROX,
                rounds=ROUNDS,
                min_members=2,
                silence_s=60,
                merge_s=30,
            )
        )
    said, shown = run_members(swarm, framework)
    # Each step adds -RATE * (g + PROX * d) to the way d from the last merge: a geometric series in a round.
    way = -sum(GRADIENTS) / len(GRADIENTS) * (1 - (1 - RATE * PROX) ** STEPS) / PROX
    for words in said:
        assert words["once"]["w"] == pytest.approx([ROUNDS * way] * 2, rel=1e-5)
        assert words["twice"]["w"] == pytest.approx([ROUNDS * way] * 2, rel=1e-5)
        assert (words["once"]["optimizers"], words["twice"]["optimizers"]) == (1, 2)
        assert (words["once"]["hooks"], words["twice"]["hooks"]) == (0, 0)
    for screen in shown:
        assert "training [" not in screen, "the framework has its own bar"
        rounds = [line.rpartition("\x1b[K")[2] for line in screen.splitlines() if "konsil: " in line]
        assert [line[:20] for line in rounds] == [f"konsil: round {number} of 3" for number in (1, 2, 3)] * 2
        assert not any("%|" in line for line in rounds)
        assert ("%|" in screen) == (framework == "huggingface")
