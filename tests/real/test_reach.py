"""Members that cannot be reached, and members that cannot reach each other."""

from __future__ import annotations

import pytest

from konsil.core.rules import StudySettings

pytestmark = pytest.mark.timeout(120)


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {"name": "aml", "min_members": 3, "rounds": 3, "every_steps": 1, "merge_s": 10}
    return StudySettings(**(known | changes))


def test_two_members_that_only_dial_out_learn_with_each_other_through_the_third(site):
    members = ("hub", "left", "right")
    swarm = site.swarm(*members, dial_only=("left", "right"))
    swarm.start()
    swarm.propose(settings())
    trainers = [
        site.train(swarm, "aml", name, number, "--elements", "3000000")
        for number, name in enumerate(members, start=1)
    ]
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1
    left = {peer.member: peer for peer in swarm.control("left").node().peers}
    assert left["hub"].connected
    assert not left["right"].connected
    history = swarm.control("hub").state().studies["aml"].history
    assert all(set(record.roster) == set(members) and record.attempt == 1 for record in history)


def test_a_member_that_comes_after_the_start_gets_the_model_from_any_peer(site):
    members = ("berlin", "bonn", "koeln")
    swarm = site.swarm(*members)
    swarm.start()
    swarm.propose(settings(min_members=2, rounds=12))
    first = [
        site.train(swarm, "aml", name, number, "--pause", "0.5")
        for number, name in enumerate(members[:2], start=1)
    ]
    first[0].until("merged", 2)
    late = site.train(swarm, "aml", "koeln", 3.0, "--pause", "0.5")
    ends = [trainer.end()[-1] for trainer in (*first, late)]

    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1
    assert late.words[0]["round"] > 2
    history = swarm.control("koeln").state().studies["aml"].history
    assert history[0].absent == {"koeln": "not entered"}
    assert "koeln" in history[-1].roster


def test_a_slow_member_is_waited_for_and_takes_part(site):
    members = ("berlin", "bonn", "koeln")
    swarm = site.swarm(*members)
    swarm.start()
    swarm.propose(settings(rounds=2, silence_s=2))
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "6" if name == "koeln" else "0")
        for number, name in enumerate(members, start=1)
    ]
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 3
    history = swarm.control("bonn").state().studies["aml"].history
    assert all(set(record.roster) == set(members) for record in history)
