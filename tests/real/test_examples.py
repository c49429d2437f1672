"""The example script and its study, as the README and the guides show them."""

from __future__ import annotations

import pytest

from konsil.node.config import read_study_file

pytestmark = pytest.mark.timeout(400)


def test_four_hospitals_run_the_example_to_its_end(site, examples):
    members = ("berlin", "bonn", "koeln", "lyon")
    said, study = site.example("tabular.py", members, read_study_file(examples / "study.toml"))
    assert study.phase == "finished"
    assert all(lines[-1] == study.ended for lines in said)
    assert all(lines[0].endswith("absent: nobody") for lines in said)
    assert all(set(record.scores) == set(members) for record in study.history)
