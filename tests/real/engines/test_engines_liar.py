"""A leader that publishes a wrong merge, under every engine: disputed, judged by the roster, struck."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

LIAR = "lyon"


def test_a_lying_leader_is_struck_and_the_round_merges_again_without_it(kept):
    swarm = kept.swarm()
    swarm.start([name for name in swarm.members if name != LIAR])
    kept.start_script(LIAR, "lying_node.py", "wrong")
    kept.study(rounds=2, silence_s=20, audit_fraction=1.0)
    trainers = kept.train(elements=5_000_000)
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 3 + ["failed"], ends
    assert len({end["digest"] for end in ends[:3]}) == 1
    assert ends[0]["value"] == pytest.approx(4.0)  # two rounds of the mean of 1, 2 and 3
    assert f"{LIAR} was struck from study 'aml'" in ends[3]["what"]
    study = kept.alike().studies["aml"]
    first = study.history[0]
    assert first.struck == (LIAR,)
    assert {dispute.leader: dispute.outcome for dispute in first.disputes}[LIAR] == "wrong"
    assert all(set(record.roster) == set(kept.trainers) - {LIAR} for record in study.history)
