"""A merge rule that the members brought themselves: one file, one digest, real nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from konsil.core.rules import Agree, StudySettings, settings_digest
from konsil.core.wall import AskPropose
from konsil.errors import ConfigError

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

MEMBERS = ("berlin", "bonn", "lyon")

LARGEST = '''"""In each coordinate what went farthest up."""

import numpy as np

from konsil.core.merge import Rule, take_options


def rule(options):
    taken = take_options("largest", options, {"lift": 0})

    def largest(values, weights, out):
        np.copyto(out, values[0])
        for row in values[1:]:
            np.maximum(out, row, out=out)
        np.add(out, taken["lift"], out=out)

    return Rule("largest", taken, largest, members=2)
'''


def command(swarm, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    made = [sys.executable, "-m", "konsil", *words, "--dir", str(swarm.directory(name))]
    return subprocess.run(made, capture_output=True, text=True, timeout=120, check=False)


def add(swarm, name: str, text: str) -> str:
    """Put a rule into a member's node as its IT does; the rule's digest."""
    folder: Path = swarm.root / f"mail-to-{name}"
    folder.mkdir(exist_ok=True)
    file = folder / "largest.py"
    file.write_text(text)
    done = command(swarm, name, "rule", "add", str(file), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rule_digest"]


def test_members_with_the_same_file_merge_by_it_and_one_with_another_is_told(site):
    swarm = site.swarm(*MEMBERS)
    digest = add(swarm, "berlin", LARGEST)
    assert add(swarm, "bonn", LARGEST) == digest
    other = add(swarm, "lyon", LARGEST.replace("np.maximum", "np.minimum"))
    assert other != digest
    swarm.start()
    settings = StudySettings(
        name="aml",
        min_members=2,
        quorum=2,
        rounds=3,
        every_steps=1,
        rule="largest",
        rule_options={"lift": 0.5},
        rule_digest=digest,
        weighting="equal",
        merge_s=10,
        audit_fraction=1.0,
    )
    with pytest.raises(ConfigError, match=f"{digest}.*this node has only {other}"):
        swarm.control("lyon").ask(AskPropose(settings))
    swarm.control("berlin").ask(AskPropose(settings))
    for name in ("bonn", "lyon"):
        swarm.wait(name, lambda state: "aml" in state.studies)
    agreed = Agree("aml", settings_digest(settings))
    swarm.control("bonn").call(agreed)
    with pytest.raises(ConfigError, match=f"{digest}.*this node has only {other}"):
        swarm.control("lyon").call(agreed)
    refused = command(swarm, "lyon", "study", "agree", "aml", "--yes")
    assert refused.returncode == 1
    for part in (digest, other, "konsil rule add FILE"):
        assert part in refused.stderr

    trainers = [site.train(swarm, "aml", name, number) for name, number in (("berlin", 1), ("bonn", 2))]
    ends = [trainer.end()[-1] for trainer in trainers]
    assert [end["event"] for end in ends] == ["ended"] * 2
    assert len({end["digest"] for end in ends}) == 1
    assert ends[0]["value"] == 7.5  # three rounds of the larger step, 2, and the lift of 0.5
    study = swarm.control("lyon").state().studies["aml"]
    assert study.phase == "finished"
    assert set(study.participants) == {"berlin", "bonn"}

    assert add(swarm, "lyon", LARGEST) == digest  # and with the file it could have taken part
    listed = json.loads(command(swarm, "lyon", "rule", "list", "--json").stdout)
    assert {each["rule_digest"] for each in listed} == {digest, other}
