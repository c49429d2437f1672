"""Real swarms for tests: nodes and training scripts as processes, all ended when the test ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from konsil.core.rules import Study, StudySettings
from konsil.evaluation.loopback import LoopbackSwarm

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_S = 300.0
"""For a whole example on a busy machine: frameworks alone take many seconds to be imported four times."""


def data_folder(name: str) -> Path:
    """The folder with the real data sets, one of which is needed; without it skip, but never in CI."""
    folder = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).is_dir():
        problem = f"NOT TESTED: the data set {name} is not at {folder}; set KONSIL_DATA to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    return folder


class Trainer:
    """A training script that runs; its words as they come."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.words: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any] | None:
        """The next word; None once the script has ended. The test's own time limit bounds the wait."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None
        word: dict[str, Any] = json.loads(line)
        self.words.append(word)
        return word

    def until(self, event: str, round_number: int = 0) -> dict[str, Any]:
        """Read until this event (of this round or later)."""
        while (word := self.next()) is not None:
            if word["event"] == event and word.get("round", 0) >= round_number:
                return word
        raise AssertionError(f"ended before {event!r}: {self.words}\n{Path(self.log.name).read_text()}")

    def end(self) -> list[dict[str, Any]]:
        """Read to the end; all words."""
        while self.next() is not None:
            pass
        self.process.wait(30)
        return self.words

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


class Site:
    """A real swarm with training scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.swarms: list[LoopbackSwarm] = []
        self.trainers: list[Trainer] = []

    def swarm(self, *members: str, **options: Any) -> LoopbackSwarm:
        swarm = LoopbackSwarm(self.root, members, **options)
        self.swarms.append(swarm)
        return swarm

    def train(
        self,
        swarm: LoopbackSwarm,
        study: str,
        member: str,
        number: float,
        *options: str,
        script: str = "member.py",
    ) -> Trainer:
        socket = swarm.directory(member) / "session.sock"
        path = Path(__file__).with_name(script)
        command = [sys.executable, str(path), study, str(socket), str(number), *options]
        trainer = Trainer(command, self.root / f"training-{member}-{len(self.trainers)}.log")
        self.trainers.append(trainer)
        return trainer

    def example(
        self, name: str, members: tuple[str, ...], settings: StudySettings, *arguments: str, **env: str
    ) -> tuple[list[list[str]], Study]:
        """Run a script of the examples at every member, each with its own node, until all have ended.

        Args:
            name: the script's file name.
            members: its process gets its place among them, their number, and ``arguments`` as arguments.
            settings: of the study that all agree to.

        Returns:
            What each script printed, in lines, and the study as it stands on the ledger at the end.
        """
        swarm = self.swarm(*members)
        swarm.start()
        swarm.propose(settings)
        scripts = []
        for place, member in enumerate(members):
            log = (self.root / f"{member}.err").open("wb")
            scripts.append(
                subprocess.Popen(
                    [sys.executable, str(EXAMPLES / name), str(place), str(len(members)), *arguments],
                    env=os.environ
                    | {"KONSIL_DIR": str(swarm.directory(member)), "OMP_NUM_THREADS": "1"}
                    | env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
            log.close()
        try:
            said = [script.communicate(timeout=EXAMPLE_S)[0].splitlines() for script in scripts]
        finally:
            for script in scripts:
                script.kill()
                script.wait()
        for member, script in zip(members, scripts, strict=True):
            assert script.returncode == 0, (self.root / f"{member}.err").read_text()[-4000:]
        return said, swarm.control(members[0]).state().studies[settings.name]


@pytest.fixture
def examples() -> Path:
    return EXAMPLES


@pytest.fixture
def data() -> Any:
    """A function from a data set's name to the folder that it is in."""
    return data_folder


@pytest.fixture
def site() -> Iterator[Site]:
    # Unix sockets need a short path, and pytest's own temporary folders are long.
    root = Path(tempfile.mkdtemp(prefix="konsil-"))
    site = Site(root)
    try:
        yield site
    finally:
        for trainer in site.trainers:
            trainer.close()
        for swarm in site.swarms:
            swarm.close()
        shutil.rmtree(root)
