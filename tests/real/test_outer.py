"""An outer optimiser with real processes: every member ends with the model that the paper's formulas give."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from konsil.cli import main
from konsil.core.rules import Outer, StudySettings

MEMBERS = ("berlin", "bonn", "koeln", "lyon")
NUMBERS = dict(zip(MEMBERS, (1.0, 2.0, 3.0, 4.0), strict=True))

pytestmark = pytest.mark.timeout(300)


def settings(outer: Outer, **changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": 3,
        "quorum": 3,
        "rounds": 8,
        "every_steps": 1,
        "weighting": "equal",
        "silence_s": 60,
        "merge_s": 30,
        "audit_fraction": 0.5,
        "outer": outer,
    }
    return StudySettings(**(known | changes))


def computed(outer: Outer, history, kind):
    """One element of the study's model, from who was in which round alone (Reddi et al., algorithm 2)."""
    moments = np.float64 if kind is np.float64 else np.float32
    x, m, v = kind(0), moments(0), moments(outer.tau**2)
    for record in history:
        updates = [np.float64(kind(x + kind(NUMBERS[name]))) for name in sorted(record.roster)]
        delta = np.float64(kind(sum(updates) / len(updates))) - np.float64(x)
        m64 = outer.beta1 * np.float64(m) + (1 - outer.beta1) * delta
        v64, square = np.float64(v), delta**2
        if outer.method == "adam":
            v64 = outer.beta2 * v64 + (1 - outer.beta2) * square
        else:
            v64 = v64 - (1 - outer.beta2) * square * np.sign(v64 - square)
        x = kind(np.float64(x) + outer.learning_rate * m64 / (np.sqrt(v64) + outer.tau))
        m, v = moments(m64), moments(v64)
    return x


def models(swarm, names=MEMBERS):
    """What `konsil study model` writes at each member: one digest, one set of values."""
    digests, found = set(), []
    for name in names:
        out = swarm.directory(name) / "aml.safetensors"
        command = ["study", "model", "aml", "--out", str(out), "--dir", str(swarm.directory(name)), "--json"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        digests.add(json.loads(result.output)["digest"])
        found.append(load_file(out))
    assert len(digests) == 1
    return found


@pytest.mark.parametrize("method", ["adam", "yogi"])
def test_a_killed_node_and_a_late_member_end_with_the_model_of_all_others(site, method):
    outer = Outer(method, learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.01)
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(outer))
    size = ("--pause", "0.7", "--elements", "1500000")  # two chunks, and five of the state
    trainers = [site.train(swarm, "aml", name, NUMBERS[name], *size) for name in MEMBERS[:3]]
    trainers[2].until("merged", 2)
    swarm.kill("koeln")
    late = site.train(swarm, "aml", "lyon", NUMBERS["lyon"], *size)
    swarm.start(["koeln"])
    ends = [trainer.end()[-1] for trainer in (*trainers, late)]

    assert [end["event"] for end in ends] == ["ended"] * 4
    history = (
        swarm.wait("koeln", lambda state: state.studies["aml"].phase == "finished").studies["aml"].history
    )
    assert len(history) == 8
    assert "lyon" not in history[0].roster
    assert set(history[-1].roster) == set(MEMBERS)
    for record in history:
        assert len({commitment.start for commitment in record.roster.values()}) == 1
    expected = {"weights": computed(outer, history, np.float32), "bias": computed(outer, history, np.float64)}
    for arrays in models(swarm):
        for name, value in expected.items():
            assert set(arrays[name]) == {value}
    assert {end["value"] for end in ends} == {expected["bias"]}
    assert not any(swarm.control(name).node().problems for name in MEMBERS)


def test_when_every_node_is_killed_at_once_the_study_goes_on_where_it_was(site):
    outer = Outer("adam", learning_rate=0.5, tau=0.01)
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(outer, min_members=4, rounds=6))
    trainers = [site.train(swarm, "aml", name, NUMBERS[name], "--pause", "0.5") for name in MEMBERS]
    trainers[0].until("merged", 2)
    for name in MEMBERS:
        swarm.kill(name)
    swarm.start()
    ends = [trainer.end()[-1] for trainer in trainers]

    assert [end["event"] for end in ends] == ["ended"] * 4
    history = (
        swarm.wait("lyon", lambda state: state.studies["aml"].phase == "finished").studies["aml"].history
    )
    assert len(history) == 6
    for arrays in models(swarm):
        assert set(arrays["bias"]) == {computed(outer, history, np.float64)}
