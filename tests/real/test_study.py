"""Whole studies with real processes: nodes, training scripts, sockets, TLS, the ledger."""

from __future__ import annotations

import pytest

from konsil.core.rules import StudySettings

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


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean", "geometric_median"])
def test_four_members_train_a_study_to_the_end(site, rule):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rule=rule))
    trainers = [site.train(swarm, "aml", name, number) for number, name in enumerate(MEMBERS, start=1)]
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4
    assert len({end["digest"] for end in ends}) == 1
    for words in (trainer.words for trainer in trainers):
        merged = [word for word in words if word["event"] == "merged"]
        assert [word["round"] for word in merged] == [1, 2, 3]
        assert all(set(word["members"]) == set(MEMBERS) and not word["absent"] for word in merged)
        assert merged[-1]["value"] == pytest.approx(7.5, abs=1e-3)
    state = swarm.control("lyon").state()
    assert state.studies["aml"].phase == "finished"
    assert all(len(record.accepts) >= 3 for record in state.studies["aml"].history)


def test_members_whose_training_changes_nothing_still_come_to_the_end(site):
    swarm = site.swarm("bonn", "lyon")
    swarm.start()
    swarm.propose(settings(min_members=2))
    trainers = [site.train(swarm, "aml", name, 0.0) for name in ("bonn", "lyon")]
    for trainer in trainers:
        words = trainer.end()
        assert [word["round"] for word in words if word["event"] == "merged"] == [1, 2, 3]
        assert words[-1]["event"] == "ended"
