"""The example script and its study, as the README and the guides show them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from konsil.node.config import read_study_file

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(120)


def test_four_hospitals_run_the_example_to_its_end(site):
    members = ("berlin", "bonn", "koeln", "lyon")
    swarm = site.swarm(*members)
    swarm.start()
    swarm.propose(read_study_file(EXAMPLES / "study.toml"))
    scripts = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLES / "tabular.py"), str(place), str(len(members))],
            env=os.environ | {"KONSIL_DIR": str(swarm.directory(name))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for place, name in enumerate(members)
    ]
    try:
        said = [script.communicate(timeout=100)[0].splitlines() for script in scripts]
    finally:
        for script in scripts:
            script.kill()
            script.wait()
    study = swarm.control("lyon").state().studies["tumours"]

    assert [script.returncode for script in scripts] == [0] * 4
    assert study.phase == "finished"
    assert all(lines[-1] == study.ended for lines in said)
    assert all(lines[0].endswith("absent: nobody") for lines in said)
    assert all(set(record.scores) == set(members) for record in study.history)
