"""A whole study under every engine: the same commands, the same rules, the same digests."""

from __future__ import annotations

import pytest

from konsil.core.rules import StudySettings, state_digest

MEMBERS = ("berlin", "bonn", "koeln", "lyon")


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": 4,
        "rounds": 3,
        "every_steps": 1,
        "weighting": "equal",
        "silence_s": 10,
        "merge_s": 10,
        "audit_fraction": 0.5,
    }
    return StudySettings(**(known | changes))


def test_four_members_train_a_study_to_the_end(kept):
    swarm = kept.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings())
    trainers = [kept.site.train(swarm, "aml", name, number) for number, name in enumerate(MEMBERS, start=1)]
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert len({end["digest"] for end in ends}) == 1
    assert trainers[0].words[-1]["value"] == pytest.approx(7.5, abs=1e-3)
    height = max(swarm.control(name).state().height for name in MEMBERS)
    states = [swarm.wait(name, lambda state: state.height >= height) for name in MEMBERS]
    assert len({state_digest(state) for state in states}) == 1
    assert states[0].studies["aml"].phase == "finished"
