"""The same universes by compiled code: more of them in the same time, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import QUICK

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).with_name("found")
COMPARED = 300
MORE = 1_000_000
"""From this seed on: others than those of the sources."""

HOW_THEY_END = """
import sys
from pathlib import Path
from konsil.core import digest
from konsil.core.round import machine
from konsil.simulation.universe import decode_plan, draw_plan, run_universe, world
print(*(Path(module.__file__).suffix for module in (digest, machine, world)))
for path in sorted(Path(sys.argv[2]).glob("*.json")):
    print(run_universe(decode_plan(path.read_bytes()), print))
for seed in range(int(sys.argv[1])):
    print(run_universe(draw_plan(seed), print if seed < 20 else None))
"""


def run(*args: str, path: Path | None = None, timeout_s: float = 300.0) -> str:
    env = dict(os.environ) if path is None else {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *args],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(1200)
def test_compiled_code_tells_the_same_stories_and_more_of_them(tmp_path, universes):
    if universes <= QUICK:
        pytest.skip("compiling takes a minute: scripts/test --all does it")
    folder = tmp_path / "compiled"
    run("scripts/compile.py", str(folder), timeout_s=600)
    compiled, *stories = run("-c", HOW_THEY_END, str(COMPARED), str(FOUND), path=folder).splitlines()
    sources, *same = run("-c", HOW_THEY_END, str(COMPARED), str(FOUND)).splitlines()
    assert (compiled, sources) == (".so .so .so", ".py .py .py")
    assert stories == same
    assert len(stories) > COMPARED + 1000
    many = ("-m", "konsil", "simulate", "--seed", str(MORE), "--universes", str(2 * universes), "--json")
    told = json.loads(run(*many, path=folder, timeout_s=600))
    assert told["universes"] == 2 * universes
    assert not told["broken"]
