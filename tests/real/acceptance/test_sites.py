"""Sites that come late, crash, or sit behind a firewall."""

from __future__ import annotations

import time

import pytest

from konsil.core.rules import Agree

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

THREE = ("berlin", "bonn", "koeln")


def test_a_site_whose_daemon_and_script_start_last_joins_by_itself_and_the_waiting_study_begins(lab):
    """Nobody does anything for it: the others' nodes and scripts wait, and say for whom."""
    lab.make(*THREE, start=False)
    lab.swarm.start()
    lab.study(rounds=3)
    assert lab.swarm.stop("koeln") == 0
    lab.train("berlin", "bonn")
    for name in ("berlin", "bonn"):
        lab.wait(
            name, lambda study: study.participants["bonn"].present and study.participants["berlin"].present
        )
    said = lab.konsil("berlin", "study", "status", "aml")
    assert "Study 'aml' is proposed" in said
    assert "agreed: berlin, bonn, koeln; training is ready at: berlin, bonn" in said
    assert "round 1 opens when 3 members are ready" in said
    lab.swarm.start(["koeln"])
    lab.train("koeln")
    lab.ends()
    history = lab.intact()
    assert all(set(record.roster) == set(THREE) for record in history)


def test_a_site_that_was_never_there_before_joins_a_running_study_by_itself(lab):
    lab.make(*THREE, start=False)
    lab.swarm.start(["berlin", "bonn"])
    lab.swarm.members = ("berlin", "bonn")
    lab.study(rounds=15, min_members=2)
    lab.swarm.members = THREE
    lab.train("berlin", "bonn", pause=0.4)
    lab.trainers["berlin"].until("merged", 3)

    lab.swarm.start(["koeln"])
    study = lab.wait("koeln", lambda study: len(study.history) >= 3)
    lab.swarm.control("koeln").call(Agree("aml", study.settings_digest))
    lab.train("koeln", pause=0.4)
    assert lab.trainers["koeln"].until("joined")["round"] > 3
    lab.ends()
    # In rounds before it had agreed it was no participant, and nobody had to say why it was not there.
    lab.settings = lab.settings.__class__(name="aml", members=("berlin", "bonn"))
    history = lab.intact()
    assert "koeln" not in history[0].roster
    assert set(history[-1].roster) == set(THREE)


def test_training_and_node_killed_together_lose_the_open_rounds_steps_and_nothing_more(lab):
    every, rounds = 5, 6
    lab.make(*THREE)
    lab.study(rounds=rounds, every_steps=every)
    lab.train(pause=0.1)
    lab.trainers["koeln"].until("merged", 2)
    lab.wait("koeln", lambda study: study.open is not None and study.open.number == 3)
    time.sleep(0.25)  # in the middle of round 3's steps
    lab.trainers["koeln"].kill()
    lab.swarm.kill("koeln")
    before = [word for word in lab.trainers["koeln"].words if word["event"] == "merged"]
    lab.swarm.start(["koeln"])
    lab.train("koeln", pause=0.1)
    assert lab.trainers["koeln"].until("joined")["round"] == before[-1]["round"] + 1
    lab.ends()
    after = [word for word in lab.trainers["koeln"].words if word["event"] == "merged"]
    assert [word["round"] for word in before + after] == list(range(1, rounds + 1))
    assert all(word["steps"] == every for word in before + after), "each round was trained once, and whole"
    history = lab.intact(merged=each_step_counts(every))
    assert all(set(record.roster) == set(THREE) for record in history)


def each_step_counts(steps: int):
    numbers = {"berlin": 1.0, "bonn": 2.0, "koeln": 4.0}

    def merged(record, base: float) -> float:
        return base + steps * sum(numbers[name] for name in record.roster) / len(record.roster)

    return merged


@pytest.mark.parametrize("known_to_all", [True, False])
def test_sites_whose_firewalls_let_nobody_in_take_part_by_dialling_out(lab, known_to_all):
    """With addresses on their cards that nothing answers at, or with none; no certificate is made by hand."""
    blocked = ("koeln", "bonn")
    lab.make(*THREE, start=False, dial_only=() if known_to_all else blocked)
    for name in blocked:
        lab.network.do("wall", name)
    lab.swarm.start()
    lab.study(rounds=2)
    lab.train(elements=500_000)
    lab.ends()
    history = lab.intact()
    assert all(set(record.roster) == set(THREE) and record.attempt == 1 for record in history)
    through = {(by, to) for by, to in lab.network.do("dialled") if to == "berlin"}
    assert {by for by, _ in through} == set(blocked)
    links = {peer.member: peer for peer in lab.swarm.control("koeln").node().peers}
    assert links["berlin"].connected
    assert not links["bonn"].connected
