"""When to merge, on real nodes: by minutes a slow hospital weighs less; an adaptive interval follows the ledger."""

from __future__ import annotations

import pytest

from konsil.core.rules import Adaptive, StudySettings

pytestmark = pytest.mark.timeout(120)


def test_by_minutes_a_slow_hospital_trains_fewer_steps_and_weighs_less(site):
    swarm = site.swarm("fast", "middle", "slow")
    swarm.start()
    swarm.propose(StudySettings(name="aml", min_members=3, rounds=2, every_minutes=0.04))
    pauses = {"fast": "0.02", "middle": "0.02", "slow": "0.6"}
    scripts = [
        site.train(swarm, "aml", name, 1.0, "--pause", pause, "--examples", "10")
        for name, pause in pauses.items()
    ]
    for script in scripts:
        assert script.end()[-1]["event"] == "ended"
    for record in swarm.control("slow").state().studies["aml"].history:
        assert set(record.roster) == set(pauses)
        assert record.weights == {name: record.roster[name].examples for name in pauses}
        assert 3 * record.weights["slow"] < record.weights["fast"]
        assert (
            record.merging_s - record.opened_s <= 15
        )  # nobody waited for as many steps as the fast one made


def test_no_hospital_counts_more_than_its_cap(site):
    swarm = site.swarm("berlin", "bonn", "ulm")
    swarm.start()
    swarm.propose(
        StudySettings(name="aml", min_members=3, rounds=1, every_steps=1, weighting="capped", cap_percent=40)
    )
    counts = {"berlin": 10_000, "bonn": 30, "ulm": 20}
    scripts = {
        name: site.train(swarm, "aml", name, number, "--examples", str(counts[name]))
        for number, name in enumerate(counts, 1)
    }
    words = {name: script.end() for name, script in scripts.items()}
    weights = swarm.control("ulm").state().studies["aml"].history[0].weights
    total = sum(weights.values())
    assert weights["berlin"] * 100 == 40 * total
    assert weights["bonn"] * 2 == weights["ulm"] * 3
    expected = sum(number * weights[name] for number, name in enumerate(counts, 1)) / total
    assert all(said[-1]["value"] == expected for said in words.values())


def test_all_members_train_longer_while_the_loss_on_the_ledger_falls(site):
    names = ("berlin", "bonn", "ulm")
    swarm = site.swarm(*names)
    swarm.start()
    settings = StudySettings(
        name="aml", min_members=3, rounds=7, every_steps=2, adaptive=Adaptive(min_delta=0.01, most=4)
    )
    swarm.propose(settings)
    # Only one of them scores; the interval is alike at all, since it follows from the ledger.
    scorer = site.train(swarm, "aml", "bonn", 1.0, "--losses", "1.0,0.8,0.6,0.4,0.7,0.9", "--pause", "0.2")
    others = [site.train(swarm, "aml", name, 1.0, "--pause", "0.2") for name in ("berlin", "ulm")]
    steps = [
        [word["steps"] for word in script.end() if word["event"] == "merged"] for script in (scorer, *others)
    ]
    history = swarm.control("ulm").state().studies["aml"].history
    assert [record.interval for record in history] == [1, 1, 1, 2, 4, 4, 2]
    assert steps == [[2 * record.interval for record in history]] * 3
