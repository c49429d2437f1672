"""The PyTorch examples and their studies, with real images at every member of a real swarm."""

from __future__ import annotations

import re

import pytest

from konsil.core.rules import mean_score
from konsil.node.config import read_study_file

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


def final_mean(study, metric):
    """The mean of a score of the last round, weighted as in the merge."""
    return mean_score(study.history[-1], metric)


@pytest.mark.parametrize("name", ["image.py", "slides.py"])
def test_an_example_fits_on_a_page_and_needs_few_lines_of_konsil(examples, name):
    text = (examples / name).read_text()
    assert len(text.splitlines()) < 60
    code = text.partition("import torch\n")[2]
    called = re.findall(r"konsil\.join|swarm\.(?:step|epoch|score)|swarm\.finished|import konsil", code)
    assert len(called) <= 5


def test_four_hospitals_learn_from_x_rays(site, examples, data):
    folder = data("pneumoniamnist")
    members = ("berlin", "bonn", "koeln", "lyon")
    settings = read_study_file(examples / "image.toml")
    said, study = site.example("image.py", members, settings, KONSIL_DATA=str(folder))
    assert study.phase == "finished"
    assert all(lines[-1] == study.ended for lines in said)
    assert all(len(lines) == settings.rounds + 1 for lines in said)
    sizes = [record.examples for record in study.history[0].roster.values()]
    assert max(sizes) > 1.5 * min(sizes), "the hospitals' sizes differ"
    held_out = [int(lines[0].split()[-4]) for lines in said]
    assert sum(sizes) + sum(held_out) == 4708, "every image is at one hospital"
    assert final_mean(study, "auc") > 0.95


def test_three_sites_learn_from_slides_of_patients(site, examples, data):
    folder = data("tcga-crc-resnet18")
    settings = read_study_file(examples / "slides.toml")
    said, study = site.example("slides.py", settings.members, settings, KONSIL_DATA=str(folder))
    assert study.phase == "finished"
    assert all(lines[-1] == study.ended for lines in said)
    assert [lines[0].split()[-2] for lines in said] == ["10", "10", "7"]
    assert study.history[0].weights == settings.given
    assert final_mean(study, "auc") > 0.7
