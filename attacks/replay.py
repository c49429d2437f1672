"""Say again what was said before: the same call twice, another's call, a call of another swarm."""

from __future__ import annotations

import contextlib
import sqlite3

import msgspec
from stage import OPERATOR, Stage, alone, took

from konsil.core.messages import LedgerSubmit
from konsil.core.rules import Announce, decode_signed
from konsil.node.config import read_config
from konsil.transport.timings import MAX_IN_FLIGHT

AT_ONCE = MAX_IN_FLIGHT // 2


def attack(stage: Stage) -> None:
    """Every call on the ledger is there for everybody to take."""
    before = Announce(("127.0.0.1:6001",))
    after = Announce(("127.0.0.1:6002",))
    with stage.member() as line:
        first = stage.signed(before)
        stage.must(took(line.ask(LedgerSubmit(first))), "an honest call was not taken")
        stage.must(took(stage.submit(line, after)), "an honest call was not taken")
        stage.refused(line.ask(LedgerSubmit(first)), "replayed")
        stage.says("its own call of before: replayed")

        with contextlib.closing(
            sqlite3.connect(read_config(stage.swarm.directory(OPERATOR)).ledger_file)
        ) as history:
            calls = [signed for (signed,) in history.execute("SELECT signed FROM entries ORDER BY height")]
        for start in range(0, len(calls), AT_ONCE):  # attacks before this one may have left many
            for answer in line.ask_all([LedgerSubmit(signed) for signed in calls[start : start + AT_ONCE]]):
                stage.refused(answer, "replayed")
        callers = {decode_signed(signed).caller for signed in calls}
        stage.says(f"all {len(calls)} calls on the ledger again, of {', '.join(sorted(callers))}: replayed")

        stage.refused(line.ask(LedgerSubmit(stage.signed(before, swarm="0" * 64))), "other_swarm")
        stage.says("a call that was signed for another swarm: other_swarm")
        moved = msgspec.json.encode(
            msgspec.structs.replace(decode_signed(stage.signed(before, swarm="0" * 64)), swarm=stage.genesis),
            order="deterministic",
        )
        stage.refused(line.ask(LedgerSubmit(moved)), "bad_signature")
        stage.says("the same, moved to this swarm: bad_signature")

        last = stage.state().members[stage.own.name].sequence
        stage.refused(line.ask(LedgerSubmit(stage.signed(before, sequence=last + 2))), "sequence_gap")
        stage.refused(line.ask(LedgerSubmit(stage.signed(before, sequence=-1))), "replayed", "bad_signature")
        stage.says("a number that is not the next: refused")

        signed = stage.signed(before)
        for what, other in (
            ("spaces added", signed.replace(b'","', b'", "', 1)),
            ("a key twice", signed[:-1] + b',"sequence":1}'),
            ("bytes after it", signed + b" "),
        ):
            stage.refused(line.ask(LedgerSubmit(other)), "FrameError")
            stage.says(f"the next call, written in another way ({what}): not in its one form")
    stage.must(
        stage.state().members[stage.own.name].record.addresses == after.addresses, "an old address is back"
    )


if __name__ == "__main__":
    alone(attack)
