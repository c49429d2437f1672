"""Nodes and engines that die, under every engine: what was accepted stays, and no call counts twice."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


def operator(kept) -> str:
    """The one whose node the ledger cannot do without; "" where there is none."""
    return kept.swarm_of_test.genesis.operator


def test_a_node_killed_in_a_round_comes_back_and_the_study_ends_with_all_four(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study(rounds=6)
    trainers = kept.train(pause=0.3)
    trainers[2].until("merged", 2)
    kept.kill("koeln")
    swarm.start(["koeln"])
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4, ends
    assert len({end["digest"] for end in ends}) == 1
    history = kept.alike().studies["aml"].history
    assert len(history) == 6
    assert set(history[-1].roster) == set(kept.trainers)


def test_the_leader_of_a_part_killed_while_it_merges_is_left_out_and_the_study_goes_on(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study(parts="leader", rounds=4, silence_s=3, merge_s=4)
    trainers = dict(zip(kept.trainers, kept.train(elements=4_000_000), strict=True))

    def merged_by_one_who_may_die(state) -> bool:
        current = state.studies["aml"].open
        return (
            current is not None and current.phase == "merging" and current.parts[0].leader != operator(kept)
        )

    state = swarm.wait(kept.trainers[0], merged_by_one_who_may_die)
    victim = state.studies["aml"].open.parts[0].leader
    kept.kill(victim)
    trainers[victim].kill()
    others = [name for name in kept.trainers if name != victim]
    ends = [trainers[name].end()[-1] for name in others]

    assert [end["event"] for end in ends] == ["ended"] * 3, ends
    assert len({end["digest"] for end in ends}) == 1
    history = kept.alike(*(name for name in swarm.members if name != victim)).studies["aml"].history
    assert len(history) == 4
    without = [record for record in history if victim not in record.roster]
    assert without
    assert all(record.absent[victim] for record in without)


def test_all_nodes_killed_at_once_go_on_with_all_that_was_accepted(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study(rounds=6)
    trainers = kept.train(pause=0.3)
    trainers[2].until("merged", 2)
    for name in swarm.members:
        kept.kill(name)
    swarm.start()
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4, ends
    assert len({end["digest"] for end in ends}) == 1
    assert len(kept.alike().studies["aml"].history) == 6
