"""Put a first model on the ledger that is none, and serve it: too large, too long, too many groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import lying
from stage import ATTACKER, OPERATOR, OTHER, Stage, alone, took

from konsil.core.digest import MAX_GROUPS
from konsil.core.parameters import Schema
from konsil.core.rules import Agree, Initialise, ProposeStudy, StudySettings

SCHEMAS: dict[str, Schema] = {
    "short": lying.TWO_CHUNKS,
    "terabyte": lying.TERABYTE,
}
SAYS = {
    "short": "fewer chunks than its parameters have",
    "long": "500,000 chunks for 16 bytes",
    "terabyte": "a terabyte of zeros, with the right digest of each chunk",
    "groups": f"{MAX_GROUPS} groups for one chunk",
    "other": "another schema than the ledger's",
    "huge": "a manifest of 16 MiB and a byte",
    "false": "a manifest that says that it has 2^32 groups",
    "nan": "a NaN",
}
MOST_BYTES = 160 * 1024 * 1024
WAIT_S = 20.0


def attack(stage: Stage) -> None:
    """A member may write any digest on the ledger; its own node says that it has what is behind it."""
    manifests = lying.manifests()
    before = stage.memory_bytes(OTHER)
    with stage.member(OPERATOR) as line:
        for name in SAYS:
            schema, manifest = SCHEMAS.get(name, lying.SMALL), manifests[name]
            settings = StudySettings(name=name, every_steps=1, members=(OTHER, ATTACKER))
            stage.must(took(stage.submit(line, ProposeStudy(settings))), f"{name} was not taken")
            first = Initialise(name, schema.digest, manifest.digest, schema.data_bytes)
            stage.must(took(stage.submit(line, first)), f"{name} was not taken")
    log = Path(stage.swarm.directory(ATTACKER)) / "lying.log"
    with log.open("wb") as into:
        liar = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, str(Path(__file__).with_name("lying.py")), str(stage.swarm.directory(ATTACKER))],
            stdin=subprocess.DEVNULL,
            stdout=into,
            stderr=into,
            env=os.environ | {"NOTIFY_SOCKET": ""},
        )
    try:
        _is_connected(stage, log)
        state = stage.swarm.wait(OTHER, lambda state: all(state.studies.get(n) for n in SAYS))
        for name in SAYS:
            stage.control(OTHER).call(Agree(name, state.studies[name].settings_digest))
        _is_refused(stage, log)
        stage.serves_others(attacker_runs=True)
    finally:
        liar.terminate()
        liar.wait(20)
    held = {path.parent.name for path in stage.swarm.directory(OTHER).glob("merges/*/*.safetensors")}
    stage.must(not held & SAYS.keys(), f"{OTHER} has kept {held & SAYS.keys()}")
    grown = stage.memory_bytes(OTHER) - before
    stage.must(grown < MOST_BYTES, f"the node has grown by {grown >> 20} MiB")
    stage.says(f"{OTHER} has kept none of them, and has grown by {max(0, grown) >> 20} MiB")


def _is_connected(stage: Stage, log: Path) -> None:
    until_s = time.monotonic() + WAIT_S
    while not any(link.connected for link in stage.control(OTHER).node().peers if link.member == ATTACKER):
        stage.must(time.monotonic() < until_s, f"the liar does not connect: {log.read_text()[-2000:]}")
        time.sleep(0.1)  # as below


def _is_refused(stage: Stage, log: Path) -> None:
    """Wait until the node says of each that it cannot have it, and why."""
    until_s = time.monotonic() + WAIT_S
    while True:
        told = {study.study: study.problem for study in stage.control(OTHER).node().studies}
        open_ones = [name for name in SAYS if not told.get(name) or "no connection" in told[name].lower()]
        if not open_ones:
            break
        stage.must(
            time.monotonic() < until_s, f"no problem with {open_ones}: {told}\n{log.read_text()[-2000:]}"
        )
        time.sleep(0.2)  # the command line is not told when a node meets a problem
    for name, what in SAYS.items():
        stage.says(f"{what}: {told[name][:150]}")


if __name__ == "__main__":
    alone(attack)
