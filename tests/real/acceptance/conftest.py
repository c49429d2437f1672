"""A swarm whose lines a test can break, and what must be whole after every test, whatever broke."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from konsil.cli import main
from konsil.core.rules import RoundRecord, Study, StudySettings
from konsil.evaluation.loopback import LoopbackSwarm
from konsil.node.config import read_config

NUMBERS = {"berlin": 1.0, "bonn": 2.0, "koeln": 4.0, "lyon": 8.0, "metz": 16.0}
"""What each member's training adds to every parameter: each roster has another sum, so a missed merge shows."""

SETTLED_S = 60.0


def record_mean(record: RoundRecord, base: float) -> float:
    """What a round's merge adds by the rule `mean`, from who was in it alone."""
    total = sum(record.weights.values())
    return base + sum(NUMBERS[name] * weight for name, weight in record.weights.items()) / total


class Network:
    """The test's side of `network.py`: every line between the nodes, to be cut, slowed down and healed."""

    def __init__(self, root: Path, members: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("network.py")), str(root), *members],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addresses: dict[str, str] = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the network ended"
        return json.loads(line)

    def do(self, what: str, member: str = "", **words: Any) -> Any:
        """Say a word of `network.Network.do`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "member": member, **words}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert "late" not in answer, f"{what} {member} {words}: not in time"
        return answer["done"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


class Lab:
    """One swarm, its network, one study, and its training scripts."""

    swarm: LoopbackSwarm
    network: Network
    settings: StudySettings

    def __init__(self, site: Any) -> None:
        self.site = site
        self.trainers: dict[str, Any] = {}

    # --- making --------------------------------------------------------------------------------

    def make(self, *members: str, start: bool = True, dial_only: Sequence[str] = ()) -> LoopbackSwarm:
        """A swarm whose nodes reach each other through the network."""
        self.network = Network(self.site.root, members)
        self.swarm = self.site.swarm(*members, advertise=self.network.addresses, dial_only=dial_only)
        listening = {name: read_config(self.swarm.directory(name)).node.listen for name in members}
        targets = {name: (*listen.split(":"),) for name, listen in listening.items() if listen}
        self.network.do("aim", targets={name: (host, int(port)) for name, (host, port) in targets.items()})
        if start:
            self.swarm.start()
        return self.swarm

    def start_changed(self, name: str, how: str, word: str) -> None:
        """Start `changed_node.py` in place of a member's node."""
        directory = self.swarm.directory(name)
        with (directory / "node.log").open("ab") as log:
            self.swarm._processes[name] = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("changed_node.py")), str(directory), how, word],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"NOTIFY_SOCKET": str(self.swarm.root / "ready.sock")},
            )
        self.swarm.wait_ready({name})

    def study(self, **changes: object) -> None:
        """Propose a study and have all agree."""
        known: dict[str, object] = {
            "name": "aml",
            "min_members": len(self.swarm.members),
            "quorum": 2,
            "rounds": 4,
            "every_steps": 1,
            "weighting": "equal",
            "silence_s": 60,
            "merge_s": 10,
            "audit_fraction": 0.5,
        }
        self.settings = StudySettings(**(known | changes))
        self.swarm.propose(self.settings)

    def train(self, *members: str, numbers: dict[str, float] | None = None, **options: object) -> None:
        """Start the training script of these members, of all by default; ``pause=0.5`` is ``--pause 0.5``."""
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        for name in members or self.swarm.members:
            number = numbers.get(name, NUMBERS[name]) if numbers else NUMBERS[name]
            self.trainers[name] = self.site.train(self.swarm, self.settings.name, name, number, *words)

    # --- looking -------------------------------------------------------------------------------

    def konsil(self, name: str, *words: str, status: int = 0) -> str:
        """What a person at a member reads."""
        result = CliRunner().invoke(main, [*words, "--dir", str(self.swarm.directory(name))])
        assert result.exit_code == status, result.output
        return re.sub(r"[ \t]+", " ", result.output)

    def typed(self, name: str, *words: str, timeout_s: float = 40.0) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own, as a person types it, within a deadline."""
        command = [sys.executable, "-m", "konsil", *words, "--dir", str(self.swarm.directory(name))]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)

    def on_ledger(self, name: str = "") -> Study:
        """The study as a member's ledger has it now."""
        return self.swarm.control(name or self.swarm.members[0]).state().studies[self.settings.name]

    def wait(self, name: str, reached: Callable[[Study], Any], timeout_s: float = 60.0) -> Study:
        """Wait until the study at a member is as wanted."""

        def seen(state: Any) -> bool:
            return study in state.studies and bool(reached(state.studies[study]))

        study = self.settings.name
        return self.swarm.wait(name, seen, timeout_s).studies[study]

    @staticmethod
    def until(reached: Callable[[], Any], show: object = "", timeout_s: float = 30.0) -> None:
        """Wait for what no event tells: what a node says of itself."""
        until_s = time.monotonic() + timeout_s
        while not reached():
            assert time.monotonic() < until_s, show
            time.sleep(0.1)

    def ends(self, *members: str) -> list[dict[str, Any]]:
        """The last words of these members' scripts, of all by default: all have ended, with one digest."""
        ends = [self.trainers[name].end()[-1] for name in members or self.trainers]
        assert [end["event"] for end in ends] == ["ended"] * len(ends), ends
        assert len({end["digest"] for end in ends}) == 1, ends
        return ends

    def log(self, name: str) -> str:
        """A node's log without its colours."""
        text = (self.swarm.directory(name) / "node.log").read_text(errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    # --- what must be whole --------------------------------------------------------------------

    def intact(
        self,
        *members: str,
        merged: Callable[[RoundRecord, float], float] = record_mean,
        phase: str = "finished",
    ) -> tuple[RoundRecord, ...]:
        """See that a study that is over is the same, right and told truly at all members that live.

        Args:
            members: those whose nodes run; all by default.
            merged: what a round's merge gives from its record and the value before it.
            phase: how the study has ended.

        Returns:
            The study's rounds.
        """
        names = members or self.swarm.members
        for name in names:
            self.wait(name, lambda study: study.phase == phase, SETTLED_S)
        height = max(self.swarm.control(name).state().height for name in names)
        studies = [
            self.swarm.wait(name, lambda state: state.height >= height).studies[self.settings.name]
            for name in names
        ]
        history = studies[0].history
        assert history, "no round was accepted"
        assert all(
            [(each.number, each.digest, each.accepts) for each in study.history]
            == [(each.number, each.digest, each.accepts) for each in history]
            for study in studies
        )
        value = 0.0
        for record in history:
            value = merged(record, value)
        told = {name: self._told(name, history, value) for name in names}
        assert {digest for digest, _ in told.values()} == {studies[0].accepted}
        assert len({verified for _, verified in told.values()}) == 1, "members hold other histories"
        self._scripts_were_told_the_truth(history)
        return history

    def _told(self, name: str, history: tuple[RoundRecord, ...], value: float) -> tuple[str, str]:
        """What one member's own commands say: the model's digest, and what verifying the ledger gives."""
        out = self.swarm.directory(name) / "final.safetensors"
        study = self.settings.name
        said = json.loads(self.konsil(name, "study", "model", study, "--out", str(out), "--now", "--json"))
        arrays = load_file(out)
        for array in arrays.values():
            assert array.min() == array.max() == pytest.approx(value, rel=1e-5)
        checked = json.loads(self.konsil(name, "study", "check", str(out), "--json"))
        assert (checked["digest"], checked["ledger"]) == (said["digest"], True)
        shown = self.konsil(name, "ledger", "show", study).split("\nRound 1, accepted")[-1]
        for record in history:
            agreed = set(record.roster) | set(record.absent) | set(record.struck)
            assert agreed >= set(self.settings.members or self.swarm.members), record
            assert not set(record.roster) & set(record.absent)
            assert len(record.accepts) * 2 > len(record.roster)
            part = shown.split(f"\nRound {record.number + 1}, accepted")[0].split(
                f"\nRound {record.number},"
            )[-1]
            for member in record.roster:
                assert f" {member} took part: " in part
            for member, why in record.absent.items():
                assert why
                assert f" {member} did not take part: {why}" in part
        log = self.log(name)
        assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:4000]
        assert "internal error" not in log
        return said["digest"], self.konsil(name, "ledger", "verify", "--json")

    def _scripts_were_told_the_truth(self, history: tuple[RoundRecord, ...]) -> None:
        """Every merge that a script loaded is the ledger's, and so is who was in it."""
        for trainer in self.trainers.values():
            for word in trainer.words:
                if word["event"] == "merged":
                    record = history[word["round"] - 1]
                    assert word["digest"] == record.digest
                    assert set(word["members"]) == set(record.roster)
                    assert word["absent"] == record.absent

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self.network.close()


@pytest.fixture
def lab(site: Any) -> Iterator[Lab]:
    lab = Lab(site)
    try:
        yield lab
    finally:
        for trainer in site.trainers:
            trainer.close()
        if hasattr(lab, "swarm"):
            lab.swarm.close()
        lab.close()


@pytest.fixture
def environment(lab: Lab) -> Callable[..., Any]:
    """A context in which nodes are started with more in their environment."""

    @contextlib.contextmanager
    def changed(**more: str) -> Iterator[None]:
        before, lab.swarm.environment = lab.swarm.environment, lab.swarm.environment | more
        try:
            yield
        finally:
            lab.swarm.environment = before

    return changed
