"""A member whose node publishes wrong merges and accuses the honest, among real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from konsil.core.rules import StudySettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]

MEMBERS = ("berlin", "bonn", "koeln", "lyon")
LIAR = "lyon"


def start_lying(swarm, name: str, lie: str) -> None:
    directory = swarm.directory(name)
    with (directory / "node.log").open("ab") as log:
        swarm._processes[name] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("lying_node.py")), str(directory), lie],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"NOTIFY_SOCKET": str(swarm.root / "ready.sock")},
        )
    swarm.wait_ready({name})


def test_a_lying_leader_is_struck_and_the_round_merges_again_without_it(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start(MEMBERS[:3])
    start_lying(swarm, LIAR, "wrong")
    swarm.propose(
        StudySettings(
            name="aml",
            min_members=4,
            quorum=2,
            rounds=3,
            every_steps=1,
            weighting="equal",
            silence_s=20,
            merge_s=10,
            audit_fraction=1.0,
        )
    )
    trainers = [
        site.train(swarm, "aml", name, number, "--elements", "6000000")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends[:3]] == ["ended"] * 3
    assert len({end["digest"] for end in ends[:3]}) == 1
    assert ends[0]["value"] == pytest.approx(6.0)  # three rounds of the mean of 1, 2 and 3
    assert ends[3]["event"] == "failed"
    assert "lyon was struck from study 'aml'" in ends[3]["what"]

    study = swarm.control("koeln").state().studies["aml"]
    assert [name for name, who in study.participants.items() if who.struck] == [LIAR]
    first = study.history[0]
    assert first.struck == (LIAR,)
    assert first.attempt > 1
    assert {dispute.leader: dispute.outcome for dispute in first.disputes}[LIAR] == "wrong"
    assert all(set(record.roster) == set(MEMBERS[:3]) for record in study.history)

    shown = command(swarm, "koeln", "ledger", "show", "aml", "1")
    assert "lyon" in shown
    assert "struck" in shown or "wrong" in shown
    swarm.close()
    for name in MEMBERS:
        command(swarm, name, "ledger", "verify")


@pytest.mark.parametrize(("lie", "merge_s"), [("withheld", 10), ("hanging", 2)])
def test_a_leader_that_keeps_back_what_would_prove_its_lie_is_left_out(site, lie, merge_s):
    swarm = site.swarm(*MEMBERS)
    swarm.start(MEMBERS[:3])
    start_lying(swarm, LIAR, lie)
    swarm.propose(
        StudySettings(
            name="aml",
            min_members=4,
            quorum=2,
            rounds=1,
            every_steps=1,
            weighting="equal",
            silence_s=4,
            merge_s=merge_s,
            audit_fraction=1.0,
        )
    )
    trainers = [
        site.train(swarm, "aml", name, number, "--elements", "4000000")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    ends = [trainer.end()[-1] for trainer in trainers[:3]]

    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1
    study = swarm.control("koeln").state().studies["aml"]
    assert not any(who.struck for name, who in study.participants.items() if name != LIAR)
    assert all(set(MEMBERS[:3]) <= set(record.roster) for record in study.history)
    assert study.history[0].absent == {LIAR: "unreachable"}
    assert trainers[0].words[1]["value"] == pytest.approx(2.0)  # the mean of 1, 2 and 3


def command(swarm, name: str, *words: str) -> str:
    made = [sys.executable, "-m", "konsil", *words, "--dir", str(swarm.directory(name))]
    ended = subprocess.run(made, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
