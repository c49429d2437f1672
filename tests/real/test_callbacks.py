"""Keras, Lightning and Hugging Face train a whole study each, from inside of their own loops, at real nodes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from konsil.core.rules import StudySettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(500)]

MEMBERS = ("bonn", "koeln", "lyon")
SIZES = {"bonn": 22, "koeln": 30, "lyon": 18}
SCRIPT = Path(__file__).with_name("callback_member.py")
UNIT = Path(__file__).parents[1] / "unit"
SCRIPT_S = 400.0


def require(*names):
    """See that frameworks are there; without them skip, but not in CI, where every check must run."""
    missing = [name for name in names if find_spec(name) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing} are missing in CI")
    if missing:
        pytest.skip(f"NOT CHECKED: {missing} are not installed")


def batches(size):
    """The batches of 8 that a hospital trains on, epoch after epoch."""
    return itertools.cycle([8] * (size // 8) + [size % 8])


def run_members(site, swarm, framework, environment):
    scripts = {}
    for place, member in enumerate(MEMBERS):
        command = [
            sys.executable,
            str(SCRIPT),
            framework,
            str(swarm.directory(member) / "session.sock"),
            str(place),
        ]
        with (site.root / f"{member}.err").open("wb") as log:
            scripts[member] = subprocess.Popen(
                command,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
    try:
        said = {member: script.communicate(timeout=SCRIPT_S)[0] for member, script in scripts.items()}
    finally:
        for script in scripts.values():
            script.kill()
            script.wait()
    for member, script in scripts.items():
        assert script.returncode == 0, (site.root / f"{member}.err").read_text()[-4000:]
    return {
        member: {word["study"]: word for word in map(json.loads, text.splitlines())}
        for member, text in said.items()
    }


CUDA = {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
    "KONSIL_TEST_DEVICE": "cuda",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else the first of three JAX processes takes all memory
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("framework", "backend"),
    [("keras", "torch"), ("keras", "jax"), ("lightning", ""), ("huggingface", "")],
)
def test_three_hospitals_train_two_studies_from_inside_of_a_framework(site, framework, backend, device):
    require({"huggingface": "transformers"}.get(framework, framework), backend or "torch")
    if device == "cuda":
        torch = pytest.importorskip("torch", reason="NOT CHECKED: torch is not installed")
        if not torch.cuda.is_available():
            pytest.skip("NOT CHECKED: no CUDA device")
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    common = {"min_members": 3, "rounds": 3, "silence_s": 60, "merge_s": 30}
    swarm.propose(StudySettings(name="epochs", every_epochs=1, **common))
    swarm.propose(StudySettings(name="steps", every_steps=4, **common))
    environment = {"KERAS_BACKEND": backend} if backend else {}
    said = run_members(site, swarm, framework, environment | (CUDA if device == "cuda" else {}))
    studies = swarm.control("bonn").state().studies

    for name, study in studies.items():
        assert study.phase == "finished"
        assert [record.number for record in study.history] == [1, 2, 3]
        assert len({words[name]["digest"] for words in said.values()}) == 1  # one model everywhere
        assert {words[name]["round"] for words in said.values()} == {3}
        assert all(words[name]["arrays"] >= 8 for words in said.values())
    assert said["bonn"]["epochs"]["digest"] != said["bonn"]["steps"]["digest"]

    for member, size in SIZES.items():
        trained = [record.roster[member].examples for record in studies["epochs"].history]
        assert trained == [size] * 3
        stream = batches(size)
        trained = [record.roster[member].examples for record in studies["steps"].history]
        assert trained == [sum(itertools.islice(stream, 4)) for _ in range(3)]

    for place, member in enumerate(MEMBERS):
        losses = said[member]["epochs"]["losses"]
        assert len(losses) == 3  # and so many epochs, of the thousand that were asked for
        scores = [record.scores[member] for record in studies["epochs"].history]
        assert [score.examples for score in scores] == [5 + place] * 3
        assert [score.loss for score in scores] == pytest.approx(losses, rel=1e-6)
        # By steps, only the merge that ended the study was validated before anything else was trained.
        final = studies["steps"].history[-1].scores[member]
        assert final.loss == pytest.approx(said[member]["steps"]["losses"][-1], rel=1e-6)


def test_what_holds_for_keras_on_one_backend_holds_on_jax():
    require("keras", "jax")
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(UNIT / "test_callbacks_keras.py"),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTEST_XDIST_WORKER": ""}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SCRIPT_S,
        cwd=UNIT.parents[1],
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_lightning_callback_is_of_the_package_that_the_script_has_imported(package):
    require(package.partition(".")[0])
    script = (
        f"import warnings; warnings.simplefilter('ignore'); import {package} as package;"
        "from konsil.callbacks.lightning import SwarmCallback as Ours;"
        "trainer = package.Trainer(callbacks=[Ours('a')], logger=False, accelerator='cpu');"
        "print(issubclass(Ours, package.Callback), type(trainer).__module__.split('.')[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout.split() == ["True", package.partition(".")[0]]
