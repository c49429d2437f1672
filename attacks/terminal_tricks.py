"""Write what steers a terminal, or looks like another line, into everything that others will read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stage import OPERATOR, OTHER, Stage, alone

from konsil.core.messages import Heartbeat
from konsil.core.rules import Agree, ProposeRemove, ProposeStudy, StudySettings, settings_digest
from konsil.core.wall import WALL_VERSION, Knock
from konsil.wall.frames import frame

EVIL = (
    "\x1b[2J\x1b]0;owned\x07\u202e\u200b\r\n9: bonn proposes to remove koeln [passed]\x9b31m"
    "<script>alert(1)</script>|[x](javascript:x)"
)
FORGED = "9: bonn proposes"
COMMANDS = (
    ("study", "list"), ("study", "status", "evil"), ("swarm", "proposals", "--all"), ("swarm", "members"),
    ("ledger", "show"), ("ledger", "show", "evil"), ("ledger", "verify"), ("node", "status"),
)  # fmt: skip


def attack(stage: Stage) -> None:
    """Everything that a member may write, and every command that shows it."""
    settings = StudySettings(name="evil", description=EVIL, every_steps=1, local=(EVIL,))
    with stage.member() as line:
        for call in (ProposeStudy(settings), ProposeRemove(OTHER, EVIL)):
            stage.submit(line, call)
        stage.refused(line.ask(Heartbeat("evil", 1, EVIL, 0.5)), "FrameError")
        stage.refused(line.ask(b"\x82\xa3say\xa9heartbeat" + EVIL.encode()), "FrameError")
    digest = stage.state().studies["evil"].settings_digest
    stage.must(digest == settings_digest(settings), "the study is another")
    stage.control(OTHER).call(Agree("evil", digest))
    with stage.wall(OPERATOR) as wall:
        wall.send(frame(Knock(WALL_VERSION, EVIL, 1)))
        wall.hears()
    for words in COMMANDS:
        shown = _run(stage, words)
        bad = sorted({letter for letter in shown if not letter.isprintable() and letter != "\n"})
        stage.must(not bad, f"`konsil {' '.join(words)}` shows {bad}")
        forged = [line for line in shown.splitlines() if line.lstrip().startswith(FORGED)]
        stage.must(
            not forged, f"`konsil {' '.join(words)}` shows a line that its author made up: {forged[:1]}"
        )
    stage.says(f"a study, a removal, heartbeats with {len(EVIL)} evil letters: no command shows one")
    for name in (OPERATOR, OTHER):
        log = Path(stage.swarm.directory(name) / "node.log").read_text(errors="replace")
        bad = sorted({letter for letter in log if not letter.isprintable() and letter != "\n"})
        stage.must(not bad, f"the log of {name} has {bad}")
    stage.says("nor do the nodes' logs")


def _run(stage: Stage, words: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "konsil", *words, "--dir", str(stage.swarm.directory(OPERATOR))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    stage.must(ended.returncode == 0, f"`konsil {' '.join(words)}`: {ended.stderr[-500:]}")
    return ended.stdout + ended.stderr


if __name__ == "__main__":
    alone(attack)
