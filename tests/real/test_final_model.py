"""Every member ends with the same final model, and can prove it, on real nodes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.numpy

from konsil.core.rules import Best, StudySettings

pytestmark = pytest.mark.timeout(300)

MEMBERS = ("berlin", "bonn", "lyon")


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": 3,
        "rounds": 4,
        "every_steps": 1,
        "weighting": "equal",
        "silence_s": 30,
        "merge_s": 20,
        "best": Best("loss", "min"),
    }
    return StudySettings(**(known | changes))


def konsil(*words: str, directory, expect: int = 0) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "konsil", *words, "--dir", str(directory), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return json.loads(done.stderr if expect else done.stdout)


def test_all_end_with_the_same_best_model_which_is_not_the_last_one(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    given = {"berlin": 100, "bonn": 1, "lyon": 1}
    swarm.propose(settings(weighting="given", members=MEMBERS, given=given))
    # Unweighted, round 3 would be best; by the merge's weights it is round 2.
    losses = {"berlin": "0.9,0.1,0.8,0.7", "bonn": "0.9,0.9,0.1,0.7", "lyon": "0.9,0.9,0.1,0.7"}
    trainers = {
        name: site.train(
            swarm,
            "aml",
            name,
            number,
            *("--losses", losses[name], "--examples", "1000" if name == "berlin" else "10"),
            *("--save", str(site.root / f"{name}.safetensors")),
            script="scoring.py",
        )
        for number, name in enumerate(MEMBERS, 1)
    }
    words = {name: trainer.end() for name, trainer in trainers.items()}
    study = swarm.control("lyon").state().studies["aml"]
    assert study.phase == "finished", study.ended
    assert study.best == 2
    best = study.history[1].digest
    assert best != study.accepted

    values = set()
    for name in MEMBERS:
        (saved,) = [word for word in words[name] if word["event"] == "saved"]
        assert (saved["round"], saved["digest"], saved["final"]) == (2, best, True)
        assert "lowest mean 'loss'" in saved["why"]
        path = site.root / f"{name}.safetensors"
        values.add(safetensors.numpy.load_file(path)["weights"].tobytes())
        checked = konsil("study", "check", str(path), directory=swarm.directory(name))
        assert (checked["digest"], checked["ledger"], checked["final"]) == (best, True, True)
        assert best in path.with_suffix(".card.md").read_text()
        rounds = [word for word in words[name] if word["event"] == "round"]
        assert [word["round"] for word in rounds] == [1, 2, 3, 4]
        assert rounds[1]["figures"]["konsil/own_loss"] == float(losses[name].split(",")[1])
        assert rounds[1]["figures"]["konsil/members"] == 3
    assert len(values) == 1
    assert all(set(record.scores) == set(MEMBERS) for record in study.history)

    matrix = konsil("study", "scores", "aml", "--metric", "loss", directory=swarm.directory("bonn"))
    assert matrix["best"] == 2
    assert matrix["scores"]["loss"][1]["values"] == {"berlin": 0.1, "bonn": 0.9, "lyon": 0.9}
    last = site.root / "last.safetensors"
    told = konsil(
        *("study", "model", "aml", "--round", "last", "--out", str(last)), directory=swarm.directory("bonn")
    )
    assert (told["round"], told["digest"], told["final"]) == (4, study.accepted, False)

    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    wrong = konsil("study", "check", str(last), directory=swarm.directory("bonn"), expect=1)
    assert wrong["error"]["kind"] == "DigestMismatch"


def test_a_member_that_was_away_gets_the_best_model_from_its_peers(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(min_members=2, quorum=2, rounds=5, silence_s=10))
    trainers = [
        site.train(
            swarm,
            "aml",
            name,
            number,
            "--losses",
            "0.9,0.1,0.8,0.7,0.6",
            "--pause",
            "0.3",
            script="scoring.py",
        )
        for number, name in enumerate(("berlin", "bonn"), 1)
    ]
    swarm.kill("lyon")  # the one that never trained, before there was any merge
    for trainer in trainers:
        trainer.end()
    swarm.start(["lyon"])
    state = swarm.wait("lyon", lambda state: state.studies["aml"].phase == "finished")
    study = state.studies["aml"]
    best = study.history[study.best - 1].digest
    assert study.best == 2
    out = site.root / "lyon.safetensors"
    told = konsil("study", "model", "aml", "--out", str(out), directory=swarm.directory("lyon"))
    assert (told["round"], told["digest"], told["final"]) == (2, best, True)
    assert konsil("study", "check", str(out), directory=swarm.directory("lyon"))["ledger"] is True
    # It is on lyon's own disk now: the others are not needed any more.
    assert (swarm.directory("lyon") / "merges" / "aml" / f"{best}.safetensors").exists()
