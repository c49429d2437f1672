"""The examples with Keras, Lightning and Hugging Face, on real patients, at three real nodes each."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from konsil.core.rules import StudySettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

MEMBERS = ("bonn", "koeln", "lyon")


@pytest.mark.parametrize(
    ("script", "framework", "study", "folder", "rounds"),
    [
        ("keras_fit.py", "keras", "leukaemia", "aipal-leukaemia", 12),
        ("lightning_fit.py", "lightning", "xrays", "pneumoniamnist", 5),
        ("huggingface_trainer.py", "transformers", "leukaemia", "aipal-leukaemia", 5),
    ],
)
def test_three_hospitals_learn_from_real_patients_in_their_frameworks_loop(
    site, data, script, framework, study, folder, rounds
):
    missing = [name for name in ("torch", framework) if find_spec(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing} are missing in CI")
    if missing:
        pytest.skip(f"NOT TESTED: {missing} are not installed")
    settings = StudySettings(
        name=study, min_members=3, rounds=rounds, every_epochs=1, silence_s=60, merge_s=30
    )
    said, ended = site.example(
        script,
        MEMBERS,
        settings,
        KONSIL_DATA=str(data(folder)),
        KERAS_BACKEND="torch",
        CUDA_VISIBLE_DEVICES="",
    )
    assert ended.phase == "finished"
    assert [set(record.roster) for record in ended.history] == [set(MEMBERS)] * rounds
    assert [set(record.scores) for record in ended.history] == [set(MEMBERS)] * rounds
    first, last = (
        sum(score.loss * score.examples for score in record.scores.values())
        for record in (ended.history[0], ended.history[-1])
    )
    assert last < first  # together they have learnt something about patients that nobody trained on
    assert all(lines for lines in said)
