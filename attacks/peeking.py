"""Read what is others': a study's model without taking part, an update before the roster is fixed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from stage import ATTACKER, OPERATOR, OTHER, Raw, Stage, alone, took

from konsil.core.digest import bytes_digest
from konsil.core.messages import Bytes, GetChunk, GetManifest
from konsil.core.parameters import Schema
from konsil.core.rules import Agree, Commit, Enter, Initialise, ProposeStudy, StudySettings
from konsil.core.wall import AskModel, AskPropose, Failed
from konsil.wall.frames import frame
from konsil.wall.layout import seal_arrays

ARRAYS = {"w": np.full(8, 0.5, np.float32)}
SCRIPT = """
import sys, numpy as np, konsil
model = {"w": np.full(8, 0.5, np.float32)}
with konsil.join("both", model, node=sys.argv[1]) as swarm:
    model["w"] += 1
    swarm.step(examples=1)
"""


def attack(stage: Stage) -> None:
    """The attacker is a member; what it may read, it may read as a participant and no other way."""
    digest = _proposed(stage, "private", (OPERATOR, OTHER))
    with stage.member(OTHER) as line, stage.member(OPERATOR) as relay:
        _without_part(stage, line, relay, digest)
    _before_the_roster(stage)


def _proposed(stage: Stage, name: str, members: tuple[str, ...]) -> str:
    settings = StudySettings(
        name=name, members=members, every_steps=1, quorum=2, silence_s=60, weighting="equal"
    )
    with seal_arrays(Schema.of(ARRAYS), ARRAYS) as memory:
        stage.control(OTHER).ask(AskPropose(settings), memory.fd)
    state = stage.swarm.wait(OPERATOR, lambda state: name in state.studies and state.studies[name].initial)
    return state.studies[name].initial


def _without_part(stage: Stage, line: Raw, relay: Raw, digest: str) -> None:
    stage.refused(
        stage.submit(relay, Agree("private", stage.state().studies["private"].settings_digest)), "not_invited"
    )
    mine = StudySettings(name="mine", every_steps=1)
    stage.submit(relay, ProposeStudy(mine))
    study = stage.state().studies["private"]
    stage.must(
        took(stage.submit(relay, Initialise("mine", study.schema, digest, study.data_bytes))),
        "it is not its own",
    )
    asks = {
        "its digest is known, from the ledger": GetManifest("private", digest),
        "a chunk of it": GetChunk("private", digest, 0),
        "as the first model of a study of the attacker's": GetManifest("mine", digest),
        "a chunk, as that": GetChunk("mine", digest, 0),
    }
    for what, answer in zip(asks, line.ask_all(list(asks.values())), strict=True):
        stage.refused(answer, "not_here")
        stage.says(f"{what}: not_here")
    relayed = {
        "through another member": GetManifest("private", digest, holder=OTHER, relay=True),
        "the same, as the first model of its own study": GetChunk("mine", digest, 0, OTHER, relay=True),
        "through a member, from one that is none": GetManifest("mine", digest, holder="mallory", relay=True),
    }
    for what, answer in zip(relayed, relay.ask_all(list(relayed.values())), strict=True):
        stage.must(not isinstance(answer, Bytes), f"{what}: it was read")
        stage.says(f"{what}: refused")
    with stage.wall(OPERATOR, "session.sock") as wall:
        wall.send(frame(AskModel("private")))
        stage.must(isinstance(wall.hears(), Failed), "a training process reads what is the command line's")


def _before_the_roster(stage: Stage) -> None:
    digest = _proposed(stage, "both", (OTHER, ATTACKER))
    script = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", SCRIPT, str(stage.swarm.directory(OTHER) / "session.sock")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with stage.member(OPERATOR) as ledger, stage.member(OTHER) as line:
            settings = stage.state().studies["both"].settings_digest
            for call in (Agree("both", settings), Enter("both")):
                stage.must(took(stage.submit(ledger, call)), f"{call} was not taken")
            stage.must(
                isinstance(line.ask(GetManifest("both", digest)), Bytes),
                "a participant does not read the model",
            )
            stage.says("as a participant of another study it reads that one's model")
            state = stage.swarm.wait(
                OTHER, lambda state: (now := state.studies["both"].open) is not None and OTHER in now.commits
            )
            update = state.studies["both"].open.commits[OTHER].digest  # type: ignore[union-attr]
            for answer in line.ask_all([GetManifest("both", update), GetChunk("both", update, 0)]):
                stage.refused(answer, "not_here")
            stage.says("the other's update, while its own could still be fitted to it: not_here")
            own = Commit("both", 1, digest, bytes_digest(b"made up", "attack"), 1)
            stage.must(took(stage.submit(ledger, own)), "a commit was not taken")
            stage.swarm.wait(OTHER, lambda state: state.studies["both"].open.phase == "merging")  # type: ignore[union-attr]
            stage.must(
                isinstance(line.ask(GetManifest("both", update)), Bytes), "the roster cannot read an update"
            )
            second = Commit("both", 1, digest, bytes_digest(b"fitted", "attack"), 1)
            stage.refused(stage.submit(ledger, second), "second_commit")
            stage.says(
                "with its own on the ledger it reads the other's, and cannot change its own: second_commit"
            )
    finally:
        script.kill()
        script.wait()


if __name__ == "__main__":
    alone(attack)
