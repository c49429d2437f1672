"""The built-in authority of a running node gets another root, by the command line, while a study runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from konsil.core.rules import StudySettings
from konsil.identity.authority import Authority
from konsil.identity.verify import bundle_digest

pytestmark = [pytest.mark.real]

SETTINGS = StudySettings(
    name="aml", min_members=2, quorum=2, rounds=60, every_steps=1, weighting="equal", silence_s=10, merge_s=10
)


def konsil(swarm, name, *words):
    command = [sys.executable, "-m", "konsil", *words, "--json", "--dir", str(swarm.directory(name))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("member", ["bonn", "lyon"])  # bonn's node serves the ledger
def test_the_built_in_root_changes_while_a_study_runs(site, member):
    swarm = site.swarm("bonn", "lyon")
    swarm.start()
    swarm.propose(SETTINGS)
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.2") for number, name in enumerate(swarm.members)
    ]
    other = "lyon" if member == "bonn" else "bonn"
    first = Authority.load(swarm.directory(member) / "keys").bundle
    reached = trainers[0].until("merged", 3)["round"]
    for step in ("prepare", "activate", "retire"):
        until_s = time.monotonic() + 30
        while (done := konsil(swarm, member, "node", "root", step)).returncode:
            assert "Try again in a minute" in done.stderr, done.stderr
            assert time.monotonic() < until_s
        assert json.loads(done.stdout)["step"] == step
        bundle = Authority.load(swarm.directory(member) / "keys").bundle
        swarm.wait(other, lambda state, now=bundle: state.members[member].record.bundle == bundle_digest(now))
        reached = trainers[0].until("merged", reached + 3)["round"]
    assert first not in bundle
    for trainer in trainers:
        assert trainer.end()[-1]["event"] == "ended"
    history = swarm.control(other).state().studies["aml"].history
    assert len(history) == 60
    assert all(set(r.roster) == {"bonn", "lyon"} and r.attempt == 1 and not r.absent for r in history)
    assert max(r.accepted_s - r.opened_s for r in history) <= 5
    swarm.require_running()
    refused = konsil(swarm, member, "node", "root", "retire")
    assert refused.returncode == 1
    assert "konsil node root prepare" in refused.stderr
