"""Names that are paths: of studies, members, rules and digests, wherever a name comes from others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace
from stage import OPERATOR, RUNNING, Stage, alone
from stolen_card import make_signed, own_card

from konsil.core.messages import Bytes, GetCard, GetChunk, GetManifest, Request
from konsil.core.rules import Agree, ProposeAdmit, ProposeRemove, ProposeStudy, StudySettings
from konsil.core.wall import WALL_VERSION, AskAdmit, AskModel, AskPropose, Failed, Knock, ToNode
from konsil.identity.card import encode_card, member_record
from konsil.wall.frames import frame

NAMES = (
    "..", ".", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\x00b", "aml\n", "AML", "\u00e4ml",
    "\uff41ml", "a\u0301", "\u202elma", "\u200b", " aml", "-rf", "con", "a" * 64, "",
    "%2e%2e", "~", "$HOME", "*",
)  # fmt: skip
FINE = {"con"}
"""On the systems that Konsil runs on this is a name like any other."""

FINE_RULES = {"con", "a" * 64}
"""And a rule may be called so; the second has the form of a digest, too."""


def attack(stage: Stage) -> None:
    """Nothing outside of a node's folders is read or written, and what is in them has the names it should."""
    before = {name: _files(stage, name) for name in RUNNING}
    with stage.member() as line:
        for name in NAMES:
            if name in FINE:
                continue
            study = ProposeStudy(StudySettings(name=name, every_steps=1))
            stage.refused(stage.submit(line, study), "bad_settings")
            if name not in FINE_RULES:
                rule = replace(study.settings, name="paths", rule=name, rule_digest="1" * 64)
                stage.refused(stage.submit(line, ProposeStudy(rule)), "bad_settings")
                digest = replace(study.settings, name="paths", rule="mine", rule_digest=name)
                stage.refused(stage.submit(line, ProposeStudy(digest)), "bad_settings")
            record = replace(member_record(own_card(stage)), name=name, ledger_key="7" * 64)
            stage.refused(stage.submit(line, ProposeAdmit(record)), "bad_member")
            stage.refused(stage.submit(line, Agree(name, "1" * 64)), "unknown_study")
            stage.refused(stage.submit(line, ProposeRemove(name)), "unknown_member")
        stage.says(
            f"{len(NAMES) - len(FINE)} names as a study's, a rule's, a member's, on the ledger: refused"
        )
        asked: list[Request] = []
        for path in _paths():
            asked += [
                GetCard(path),
                GetManifest("aml", path),
                GetManifest(path, "1" * 64),
                GetChunk(path, path, 0),
            ]
        for request, answer in zip(asked, line.ask_all(asked), strict=True):
            stage.must(not isinstance(answer, Bytes), f"{request} was answered")
        stage.says("paths to the node's keys as digests and studies: it has no such thing")
    for socket_name, words in (("session.sock", _knocks()), ("control.sock", _asks(stage))):
        for word in words:
            with stage.wall(OPERATOR, socket_name) as wall:
                wall.send(frame(word))
                answer = wall.hears()
                stage.must(isinstance(answer, Failed), f"{socket_name}: {word} was answered {answer}")
        stage.says(f"the same at {socket_name}: refused")
    for name in RUNNING:
        new = _files(stage, name) - before[name]
        stage.must(not new, f"{name} has made {new}")
    stage.says("no file was made anywhere")


def _files(stage: Stage, name: str) -> set[Path]:
    return {
        path for path in stage.swarm.directory(name).rglob("*") if not path.name.endswith(("-wal", "-shm"))
    }


def _paths() -> Iterator[str]:
    yield from NAMES
    yield from (
        "../keys/ledger.pem",
        "../keys/ledger",
        "../node.toml",
        "keys/authority.pem",
        "../../etc/passwd\x00",
    )


def _knocks() -> Iterator[ToNode]:
    for path in _paths():
        yield Knock(WALL_VERSION, path, 1)


def _asks(stage: Stage) -> Iterator[ToNode]:
    for path in _paths():
        yield AskModel(path)
        if path not in FINE:
            yield AskPropose(StudySettings(name=path, every_steps=1))
        yield AskPropose(StudySettings(name="paths", every_steps=1, rule=path, rule_digest="1" * 64))
        yield AskAdmit(
            encode_card(make_signed(stage, replace(own_card(stage), name=path))) if path not in FINE else b""
        )


if __name__ == "__main__":
    alone(attack)
