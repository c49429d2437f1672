"""A real study's history is verified where nothing of its swarm is left but one file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from konsil.core.rules import StudySettings, genesis_digest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

MEMBERS = ("berlin", "bonn", "lyon")
PAGE = Path(__file__).parents[2] / "docs" / "audit-bundle.md"


def konsil(*words: str, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a process that knows of no member's directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KONSIL")}
    done = subprocess.run(
        [sys.executable, "-m", "konsil", *words],
        cwd=cwd,
        env=environment | {"HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_a_third_party_verifies_a_study_when_its_swarm_is_gone(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(StudySettings("aml", min_members=2, quorum=2, rounds=3, every_steps=1, silence_s=10))
    outside = site.root / "outside"
    outside.mkdir()
    trainers = [
        site.train(
            swarm,
            "aml",
            name,
            number,
            *("--losses", "0.9,0.5,0.4", "--save", str(outside / f"{name}.safetensors")),
            script="scoring.py",
        )
        for number, name in enumerate(("berlin", "bonn"), 1)
    ]
    for trainer in trainers:
        trainer.end()
    state = swarm.wait("lyon", lambda state: _is_settled(state.studies["aml"]))
    height = state.height
    for name in MEMBERS:
        swarm.wait(name, lambda state: state.height >= height)
    bundles = []
    for name in MEMBERS:
        swarm.stop(name)
        bundles.append(outside / f"{name}.konsil-audit")
        konsil("audit", "export", str(bundles[-1]), "--dir", str(swarm.directory(name)), cwd=site.root)
    assert len({path.read_bytes() for path in bundles}) == 1
    for name in MEMBERS:
        shutil.rmtree(swarm.directory(name))

    file, model = bundles[0].name, "berlin.safetensors"
    genesis = genesis_digest(swarm.genesis)
    told = json.loads(
        konsil("audit", "verify", file, "--genesis", genesis, "--model", model, "--json", cwd=outside).stdout
    )
    study = state.studies["aml"]
    assert (told["height"], told["genesis"], told["cards"], told["lacking"]) == (height, genesis, 3, [])
    assert told["genesis_named"] is True
    assert [each["digest"] for each in told["studies"]["aml"]["history"]] == [
        record.digest for record in study.history
    ]
    assert told["model"] | {"file": "", "why": ""} == {
        "file": "", "why": "", "study": "aml", "round": 3, "digest": study.accepted, "final": True, "ledger": True,
    }  # fmt: skip
    text = konsil("audit", "verify", file, "--model", model, cwd=outside).stdout
    assert "berlin: took part in 3, with 50.0% of these merges" in text
    assert "lyon: took part in 0" in text
    assert "rounds 1 to 3, accepted" in text
    assert "loss, 6 scores: mean 0.9 after round 1, 0.4 after round 3 (berlin 0.4, bonn 0.4)" in text
    assert f"{model} is the merge of round 3 of study 'aml', its final model." in text

    _page_agrees(outside, file, told)
    data = bytearray((outside / file).read_bytes())
    data[len(data) // 2] ^= 1
    (outside / file).write_bytes(data)
    assert "does not hold at line" in konsil("audit", "verify", file, cwd=outside, expect=1).stderr


def _is_settled(study) -> bool:
    return study.phase == "finished" and all(len(record.scores) == 2 for record in study.history)


def _page_agrees(outside: Path, file: str, told: dict) -> None:
    """The verifier of the page, which knows nothing of Konsil, finds the same head in a real history."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, file],
        cwd=outside,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"head    {told['head']}\n{told['height']} calls, all signed and linked" in done.stdout
