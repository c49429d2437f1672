"""How a study's end reaches the training scripts."""

from __future__ import annotations

import pytest

from konsil.core.rules import StudySettings

pytestmark = pytest.mark.timeout(120)


def test_a_study_that_fails_before_its_first_merge_says_so_to_the_script_that_waits(site):
    swarm = site.swarm("berlin", "bonn")
    swarm.start()
    limits = {"silence_s": 2, "patience_s": 2, "give_up_s": 1}
    swarm.propose(StudySettings(name="aml", min_members=2, quorum=2, every_steps=1, **limits))
    waiting = site.train(swarm, "aml", "berlin", 1.0)
    gone = site.train(swarm, "aml", "bonn", 2.0, "--pause", "60")
    gone.until("joined")
    waiting.until("joined")
    gone.kill()
    end = waiting.end()[-1]

    assert end["event"] == "failed"
    assert end["kind"] == "StudyError"
    assert "lacked its quorum of 2 commits. Committed: berlin. Missing: bonn" in end["what"]
