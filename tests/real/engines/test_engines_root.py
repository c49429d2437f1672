"""A member's root changes under each engine, with everything that goes over its connections."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from konsil.core.rules import StudySettings
from konsil.identity.authority import Authority
from konsil.identity.verify import bundle_digest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

MEMBERS = ("bonn", "koeln", "lyon")


def settings():
    return StudySettings(
        name="aml",
        members=MEMBERS,
        min_members=3,
        quorum=3,
        rounds=40,
        every_steps=1,
        weighting="equal",
        silence_s=20,
        merge_s=20,
    )


def test_a_root_changes_while_the_members_keep_the_ledger_together(cometbft, site):
    swarm = cometbft.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings())
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.2") for number, name in enumerate(MEMBERS)
    ]
    keys = swarm.directory("lyon") / "keys"
    first = Authority.load(keys).bundle
    reached = trainers[0].until("merged", 3)["round"]
    for step in ("prepare", "activate", "retire"):
        command = [
            sys.executable,
            "-m",
            "konsil",
            "node",
            "root",
            step,
            "--dir",
            str(swarm.directory("lyon")),
        ]
        until_s = time.monotonic() + 60
        while (
            done := subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        ).returncode:
            assert "Try again in a minute" in done.stderr, done.stderr
            assert time.monotonic() < until_s
        now = bundle_digest(Authority.load(keys).bundle)
        for name in swarm.members:
            swarm.wait(name, lambda state, now=now: state.members["lyon"].record.bundle == now)
        reached = trainers[0].until("merged", reached + 3)["round"]
    assert first not in Authority.load(keys).bundle
    for trainer in trainers:
        assert trainer.end()[-1]["event"] == "ended"
    history = swarm.control("bonn").state().studies["aml"].history
    assert all(set(r.roster) == set(MEMBERS) and r.attempt == 1 and not r.absent for r in history)
    took_s = [record.accepted_s - record.opened_s for record in history]
    assert max(took_s) <= 10, took_s
