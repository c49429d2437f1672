"""How long an audit of a long history takes: show, export, verify; seconds, MB, peak memory.

Run: python benchmarks/audit.py [--calls 100000] [--members 4] [--rounds 200] [--keep FOLDER]

The history is made without nodes, as fast as calls can be signed: studies of so many rounds one after
another, each round with a commit, a part, an acceptance and a score of every member.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Accept,
    Agree,
    Call,
    Commit,
    Enter,
    Entry,
    Finish,
    Genesis,
    Initialise,
    ProposeStudy,
    Publish,
    Score,
    State,
    StudySettings,
    entry_digest,
    genesis_digest,
    initial_state,
    settings_digest,
)
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.history import put_on, sign_call
from konsil.ledger.journal import Journal
from konsil.node.config import Config, MemberTable, NodeTable
from konsil.node.genesis import found, keep_card, read_card_file, write_genesis
from konsil.node.setup import make_directory, write_own_card

ROUND_S = 600
"""Ledger time that a round takes."""

BATCH = 2048
"""Entries written at once."""


class History:
    """Members' directories under a folder, and calls that go on one after another."""

    def __init__(self, root: Path, members: int) -> None:
        configs = [
            Config(
                root / f"m{number:02d}",
                MemberTable(f"m{number:02d}"),
                node=NodeTable(listen="127.0.0.1:7400" if number == 0 else "", proxy="none"),
            )
            for number in range(members)
        ]
        for config in configs:
            make_directory(config)
            write_own_card(config)
        cards = [read_card_file(config.card_file) for config in configs]
        self.genesis: Genesis = found("bench", cards)
        for card in cards:
            keep_card(card, configs[0].cards_dir)
        write_genesis(self.genesis, configs[0].genesis_file)
        self.config = configs[0]
        self.keys = {config.name: LedgerKey.load(config.ledger_key_file) for config in configs}
        self.state: State = initial_state(self.genesis)
        self.head = genesis_digest(self.genesis)
        self.now_s = self.genesis.created_s

    def entry(self, caller: str, call: Call) -> Entry:
        """A call of a member, put on."""
        sequence = self.state.members[caller].sequence + 1
        signed = sign_call(self.state.genesis, self.keys[caller], caller, sequence, call)
        entry, self.state = put_on(self.state, self.head, signed, self.now_s, verify)
        self.head = entry_digest(entry)
        return entry

    def calls(self, rounds: int) -> Iterator[Entry]:
        """One study of so many rounds after another, without end."""
        for number in range(1_000_000):
            yield from self._study(f"s{number}", rounds)

    def _study(self, name: str, rounds: int) -> Iterator[Entry]:
        first, *others = self.keys
        settings = StudySettings(name, min_members=len(self.keys), every_steps=100, rounds=rounds)
        yield self.entry(first, ProposeStudy(settings))
        for other in others:
            yield self.entry(other, Agree(name, settings_digest(settings)))
        yield self.entry(first, Initialise(name, digest("schema"), digest(name), 100_000_000))
        for each in self.keys:
            yield self.entry(each, Enter(name))
        for number in range(1, rounds + 1):
            self.now_s += ROUND_S
            yield from self._round(name, number)
        for each in self.keys:
            yield self.entry(each, Finish(name))

    def _round(self, name: str, number: int) -> Iterator[Entry]:
        base = self.state.studies[name].accepted
        for each in self.keys:
            yield self.entry(each, Commit(name, number, base, digest(each, number), 1000))
        opened = self.state.studies[name].open
        assert opened is not None
        for at, part in enumerate(opened.parts):
            yield self.entry(part.leader, Publish(name, number, opened.attempt, at, digest(at, number)))
        opened = self.state.studies[name].open
        assert opened is not None
        for each in self.keys:
            yield self.entry(each, Accept(name, number, opened.attempt, opened.digest))
        for at, each in enumerate(self.keys):
            yield self.entry(each, Score(name, number, 200, 1 / (number + at), {"auc": 0.75 + at / 100}))


def digest(*words: object) -> str:
    return bytes_digest(repr(words).encode(), "benchmark")


def fill(history: History, calls: int, rounds: int) -> None:
    waiting: list[Entry] = []
    with Journal(history.config.ledger_file, genesis_digest(history.genesis)) as journal:
        for entry in history.calls(rounds):
            waiting.append(entry)
            if len(waiting) == BATCH or entry.height == calls:
                journal.append(waiting)
                waiting.clear()
            if entry.height == calls:
                return


def measured(root: Path, *words: str) -> None:
    """Run a command; its wall time and its peak memory, which the kernel keeps for each child."""
    command = [sys.executable, "-m", "konsil", *words]
    with (root / "out").open("wb") as out:
        started_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - started_s
        process.returncode = os.waitstatus_to_exitcode(status)
    said = (root / "out").stat().st_size
    print(
        f"{' '.join(words[:2]):16s} {' '.join(words[4:])[:40]:40s} status {process.returncode}, "
        f"{took_s:7.1f} s, {usage.ru_utime + usage.ru_stime:7.1f} CPU s, "
        f"peak {usage.ru_maxrss / 1e3:5.0f} MB, output {said / 1e6:.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200, help="of each study")
    parser.add_argument("--keep", type=Path, help="make the history there and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = options.keep or Path(made)
        root.mkdir(exist_ok=True)
        started_s = time.perf_counter()
        history = History(root, options.members)
        fill(history, options.calls, options.rounds)
        ledger = history.config.ledger_file
        made_s = time.perf_counter() - started_s
        studies = len(history.state.studies)
        print(
            f"{options.calls} calls of {options.members} members in {studies} studies, made in "
            f"{made_s:.0f} s; ledger.db {ledger.stat().st_size / 1e6:.0f} MB"
        )
        here = ("--dir", str(history.config.directory))
        bundle = root / "history.konsil-audit"
        measured(root, "ledger", "show", *here)
        measured(root, "ledger", "show", *here, "--json")
        measured(root, "ledger", "show", *here, "--last", "20")
        measured(root, "ledger", "show", *here, "s1", "7")
        measured(root, "ledger", "verify", *here)
        measured(root, "audit", "export", *here, str(bundle))
        print(f"the bundle: {bundle.stat().st_size / 1e6:.1f} MB")
        measured(root, "audit", "verify", str(bundle))


if __name__ == "__main__":
    main()
