"""Every script in `attacks/` against real nodes, one after the other: each is stopped, and the others are served."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(170)]

ATTACKS = Path(__file__).parents[2] / "attacks"
SCRIPTS = sorted(path.stem for path in ATTACKS.glob("*.py") if path.stem not in {"run", "stage", "lying"})
HALVES = SCRIPTS[::2], SCRIPTS[1::2]


@pytest.mark.parametrize("names", HALVES, ids=lambda names: f"{names[0]} and {len(names) - 1} others")
def test_the_attacks_are_stopped_and_the_others_are_served(names):
    command = [sys.executable, str(ATTACKS / "run.py"), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            said, _ = running.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            running.terminate()  # it ends its nodes by itself
            raise
    assert running.returncode == 0, said[-6000:]
    assert f"{len(names)} attacks were stopped, 0 were not" in said
    assert said.count("the others are served") >= len(names)


def test_every_attack_is_in_the_table():
    table = (ATTACKS / "README.md").read_text()
    assert [name for name in SCRIPTS if f"[`{name}.py`]({name}.py)" not in table] == []
    assert len(SCRIPTS) >= 16
