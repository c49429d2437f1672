"""The example scripts and their studies, as the README and the guides show them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from konsil.node.config import read_study_file

pytestmark = pytest.mark.timeout(400)


def test_four_hospitals_run_the_example_to_its_end(site, examples):
    members = ("berlin", "bonn", "koeln", "lyon")
    said, study = site.example("scikit_learn.py", members, read_study_file(examples / "study.toml"))
    assert study.phase == "finished"
    assert all(lines[-1] == study.ended for lines in said)
    assert all(lines[0].endswith("absent: nobody") for lines in said)
    assert all(set(record.scores) == set(members) for record in study.history)


def test_six_hospitals_fit_gaps_scales_and_a_model_together(site, examples, data):
    members = ("clermont", "cochin", "grenoble", "lyon", "mondor", "nantes")
    folder = data("aipal-leukaemia")
    settings = read_study_file(examples / "tabular.toml")
    said, study = site.example("tabular.py", members, settings, KONSIL_DATA=str(folder))
    assert study.phase == "finished"
    assert len(study.history) == settings.rounds
    assert all(set(record.roster) == set(members) for record in study.history)
    # Three rounds for the preprocessing, in which each weighs alike; then the model is trained and scored.
    assert all(
        {commitment.examples for commitment in record.roster.values()} == {1} for record in study.history[:3]
    )
    assert all(len(lines) == settings.rounds - 3 + 2 for lines in said), said
    assert all(lines[-1] == study.ended for lines in said)
    assert len({lines[-2] for lines in said}) == 1
    last = study.history[-1].scores
    assert set(last) == set(members)
    assert sum(score.metrics["auc"] for score in last.values()) / len(members) > 0.75


def test_the_tables_are_asked_for_before_anything_is_started(examples, tmp_path):
    script = [sys.executable, str(examples / "tabular.py"), "0", "6"]
    ended = subprocess.run(
        script, env=os.environ | {"KONSIL_DATA": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "must name the folder" in ended.stderr
