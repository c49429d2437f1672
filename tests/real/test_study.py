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


RULES = {
    "mean": 7.5,
    "median": 7.5,
    "trimmed_mean": 7.5,
    "geometric_median": 7.5,
    "nnm_trimmed_mean": 7.5,  # each round steps of 1 to 4, with their nearest 2, 2, 3 and 3: 2.5 without the outer
    "norm_clipping": 6.0,  # the median step is 2.5: 1, 2, 2.5 and 2.5
}


@pytest.mark.parametrize("rule", RULES)
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
        assert merged[-1]["value"] == pytest.approx(RULES[rule], abs=1e-3)
    state = swarm.control("lyon").state()
    assert state.studies["aml"].phase == "finished"
    assert all(len(record.accepts) >= 3 for record in state.studies["aml"].history)


@pytest.mark.parametrize(("rule", "expected"), [("mean", 1 + 0.006 * 999), ("norm_clipping", 1.0)])
def test_norm_clipping_stops_a_site_with_0_6_percent_of_the_data_that_moves_the_mean_sevenfold(
    site, rule, expected
):
    swarm = site.swarm(*MEMBERS[:3])
    swarm.start()
    swarm.propose(settings(rule=rule, min_members=3, rounds=1, weighting="examples", audit_fraction=1.0))
    steps = {"berlin": ("1", "497"), "bonn": ("1", "497"), "koeln": ("1000", "6")}
    trainers = [
        site.train(swarm, "aml", name, float(step), "--examples", examples)
        for name, (step, examples) in steps.items()
    ]
    ends = [trainer.end()[-1] for trainer in trainers]
    assert [end["event"] for end in ends] == ["ended"] * 3
    assert ends[0]["value"] == pytest.approx(expected, rel=1e-6)


def test_members_whose_training_changes_nothing_still_come_to_the_end(site):
    swarm = site.swarm("bonn", "lyon")
    swarm.start()
    swarm.propose(settings(min_members=2))
    trainers = [site.train(swarm, "aml", name, 0.0) for name in ("bonn", "lyon")]
    for trainer in trainers:
        words = trainer.end()
        assert [word["round"] for word in words if word["event"] == "merged"] == [1, 2, 3]
        assert words[-1]["event"] == "ended"
