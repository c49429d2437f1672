"""The merger dies while it gathers the others' updates: the round still completes."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

FOUR = ("berlin", "bonn", "koeln", "lyon")
OPERATOR = "berlin"  # the first in name order keeps the local ledger


@pytest.mark.parametrize("comes_back", [False, True])
def test_the_merger_killed_while_it_pulls_the_updates_is_replaced_and_the_round_completes(lab, comes_back):
    lab.make(*FOUR)
    for name in FOUR:
        lab.network.do("slow", name, bytes_s=4e6)
    lab.study(rounds=6, parts="leader", merge_s=8, silence_s=60 if comes_back else 6)
    lab.train(elements=750_000)  # 3 MB: a merger pulls 9 MB, for 2.3 s

    def led_by_another(study) -> bool:
        current = study.open
        return current is not None and current.phase == "merging" and current.parts[0].leader != OPERATOR

    current = lab.wait(OPERATOR, led_by_another).open
    victim = current.parts[0].leader
    before = lab.network.do("moved", victim, way="in")
    lab.network.do("until_moved", victim, way="in", bytes=before + 1_000_000, timeout_s=20)
    lab.swarm.kill(victim)
    now = lab.on_ledger(OPERATOR).open
    assert now.number == current.number
    assert not now.parts[0].digest, "it was killed before it had published"
    for name in FOUR:
        lab.network.do("slow", name, bytes_s=0)
    if comes_back:
        lab.swarm.start([victim])
    else:
        lab.trainers[victim].kill()
    live = FOUR if comes_back else tuple(name for name in FOUR if name != victim)
    lab.ends(*live)

    history = lab.intact(*live)
    broken = history[current.number - 1]
    if comes_back:  # it may be back soon enough to begin again itself
        assert broken.attempt > 1 or broken.parts[0].leader == victim
        assert set(history[-1].roster) == set(FOUR)
    else:
        assert broken.attempt > 1
        assert broken.parts[0].leader != victim
        assert all(victim in record.absent for record in history[current.number :])
