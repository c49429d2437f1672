"""The claim of the project on real hospitals, without network: together beats alone and nears one place."""

import os
from pathlib import Path

import pytest

from konsil.evaluation import experiment
from konsil.evaluation.compare import compare
from konsil.evaluation.datasets import load

pytestmark = pytest.mark.real


def test_six_hospitals_together_beat_each_alone_and_come_near_to_all_data_in_one_place():
    folder = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "aipal-leukaemia").is_dir():
        problem = f"NOT TESTED: the leukaemia data are not at {folder}; set KONSIL_DATA to their folder"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    c = compare(experiment.run(load("leukaemia", folder, seed=0), seed=0))
    assert c.swarm.value > c.local.value + 0.02
    assert c.swarm_minus_local.low > 0
    assert c.swarm.value > c.local_at_home.value
    assert c.swarm_minus_central.value > -0.02
