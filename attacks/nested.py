"""Boxes in boxes in boxes, wherever something is decoded: JSON, MessagePack, TOML."""

from __future__ import annotations

import subprocess
import sys

from stage import OPERATOR, Stage, alone

from konsil.core.messages import LedgerSubmit
from konsil.core.wall import AskAdmit, Failed
from konsil.wall.frames import frame

DEPTH = 60_000


def attack(stage: Stage) -> None:
    """A reader that calls itself for each box would end the process, or raise what nobody expects."""
    packed = b"\x91" * DEPTH + b"\xc0"
    text = b"[" * DEPTH + b"]" * DEPTH
    with stage.member() as line:
        for message in (packed, b"\x82\xa3say\xadledger_submit\xa6signed" + packed, b"\x81" + packed):
            stage.refused(line.ask(message), "FrameError")
        stage.says(f"a peer's message of {DEPTH} arrays in one another: refused")
        half = b"[" * (DEPTH // 2)
        for signed in (half, b'{"swarm":' + half, b'{"call":{"call":"score","metrics":{"a":' + half):
            stage.refused(line.ask(LedgerSubmit(signed)), "FrameError")
        stage.says(f"a signed call of {DEPTH // 2} lists in one another: refused")
    for name in ("session.sock", "control.sock"):
        with stage.wall(OPERATOR, name) as wall:
            wall.send(len(packed).to_bytes(4, "big") + packed)
            word = wall.hears()
            stage.must(isinstance(word, Failed) and word.kind == "FrameError", f"{name}: {word}")
    stage.says("the same as a word at the node's sockets: refused")
    with stage.wall(OPERATOR, "control.sock") as wall:
        wall.send(frame(AskAdmit(text[:64_000])))
        word = wall.hears()
        stage.must(isinstance(word, Failed) and word.kind == "IdentityError", f"a card: {word}")
    stage.says("the same as a card: refused")
    _files(stage, text)


def _files(stage: Stage, text: bytes) -> None:
    folder = stage.swarm.root / "nested"
    folder.mkdir(exist_ok=True)
    directory = str(stage.swarm.directory(OPERATOR))
    header = text[:60_000]
    for name, data, words in (
        ("study.toml", b"rounds = " + text, ("study", "propose")),
        ("card.json", text, ("swarm", "propose", "admit")),
        ("model.safetensors", len(header).to_bytes(8, "little") + header, ("study", "check")),
    ):
        (folder / name).write_bytes(data)
        command = [sys.executable, "-m", "konsil", *words, str(folder / name), "--dir", directory]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        stage.must(
            ended.returncode == 1 and "Traceback" not in ended.stderr, f"{name}: {ended.stderr[-500:]}"
        )
        stage.says(f"`konsil {' '.join(words)} {name}`: {ended.stderr.split(':', 1)[0]}")


if __name__ == "__main__":
    alone(attack)
