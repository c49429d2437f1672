"""The ledger's time under every engine: what it is after a silence, and where clocks are minutes apart."""

from __future__ import annotations

import time

import pytest

from konsil.core.rules import Alive

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

SILENCE_S = 6
"""Nobody calls for so long: three times as long as the ledger's time may be behind."""


def test_after_a_silence_calls_carry_the_present_time_and_no_deadline_has_passed_by_itself(kept):
    swarm = kept.swarm()
    swarm.start()
    kept.study(rounds=2, silence_s=3)
    trainers = kept.train(*kept.trainers[:3])
    for trainer in trainers:
        trainer.until("joined")
    kept.alike()
    time.sleep(SILENCE_S)
    before_s = time.time()
    trainers += kept.train(kept.trainers[3])
    ends = [trainer.end()[-1] for trainer in trainers]
    after_s = time.time()

    assert [end["event"] for end in ends] == ["ended"] * 4, ends
    history = kept.alike().studies["aml"].history
    assert [(set(record.roster), record.attempt) for record in history] == [(set(kept.trainers), 1)] * 2
    assert before_s - 1 <= history[0].opened_s <= after_s

    time.sleep(SILENCE_S)
    before_s = time.time()
    kept.announce("koeln", 1)
    entry, _ = kept.calls("koeln")[-1]
    assert before_s - 1 <= entry.time_s <= time.time()


@pytest.mark.parametrize("behind", ["bonn", "berlin"])
def test_a_study_goes_on_where_nodes_clocks_are_minutes_apart(kept, wrong_clock, behind):
    """Each of the two dies once: a node that has just started knows the ledger's time by no news yet."""
    ahead = "koeln"
    swarm = kept.swarm()

    def start(name: str) -> None:
        shift_s = -kept.clock_behind_s if name == behind else 100 if name == ahead else 0
        swarm.environment = wrong_clock(shift_s) if shift_s else {}
        swarm.start([name])

    for name in swarm.members:
        start(name)
    kept.study(rounds=3, silence_s=8)
    trainers = kept.train(pause=1.5)
    trainers[0].until("merged", 1)
    for name in (ahead, behind):
        kept.kill(name)
        start(name)
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4, ends
    assert len({end["digest"] for end in ends}) == 1
    history = kept.alike().studies["aml"].history
    assert [set(record.roster) for record in history] == [set(kept.trainers)] * 3
    said = [signed.caller for _, signed in kept.calls("lyon") if isinstance(signed.call, Alive)]
    assert len(said) <= 20, f"4.5 s of training at a silence of 8 s: {said}"
    entries = [entry.time_s for entry, _ in kept.calls("lyon")]
    assert max(entries) - min(entries) < 60, "the ledger's time is nobody's wrong clock"


def test_a_member_whose_clock_is_too_far_behind_says_so_and_follows_as_its_clock_allows(
    cometbft, wrong_clock
):
    kept = cometbft
    swarm = kept.swarm()
    swarm.start([name for name in swarm.members if name != "bonn"])
    swarm.environment = wrong_clock(-66)  # of which CometBFT takes no notice for 60
    swarm.start(["bonn"])
    for number in range(3):
        kept.announce("koeln", number)
    assert "clock is more than a minute behind" in kept.until_problem("bonn")
    kept.alike(*(name for name in swarm.members if name != "bonn"))
    kept.alike()
    swarm.stop("bonn")
    swarm.environment = {}
    swarm.start(["bonn"])
    kept.announce("bonn", 4)
    kept.alike()
    assert not [each for each in swarm.control("bonn").node().problems if "clock" in each]
