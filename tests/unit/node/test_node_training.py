"""What a node says to training processes, one visitor each."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pytest

from konsil.core.parameters import Schema
from konsil.core.round import Attached, Detached, FinishWanted
from konsil.core.rules import Participant, StudySettings
from konsil.core.wall import WALL_VERSION, Failed, Join, Knock, Terms, Update
from konsil.node.start import Start
from konsil.node.training import Training

HEADER = Schema.of({"w": np.zeros(3, np.float32)}).header


async def until(bell, reached):
    """Wait until this is so; every word said rings the bell."""
    async with asyncio.timeout(5):
        while not reached():
            bell.clear()
            await bell.wait()


class Visitor:
    """A training process that says what it is given to say, and hears."""

    def __init__(self, bell) -> None:
        self.bell = bell
        self.words = asyncio.Queue()
        self.fd = None
        self.heard = []

    def say(self, *words):
        for word in words:
            self.words.put_nowait((word, self.fd))

    async def receive(self):
        word, fd = await self.words.get()
        if word is None:
            raise ConnectionResetError("gone")
        return word, fd

    async def send(self, word, _fd=None):
        self.heard.append(word)
        self.bell.set()


class Ledger:
    """A ledger that moves when told to."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(height=0, genesis="e" * 64)
        self.moved = asyncio.Event()

    async def changed(self, _after, _timeout_s):
        await self.moved.wait()
        self.moved.clear()


class Runner:
    """A study that has not begun, for the member 'lyon'."""

    def __init__(self) -> None:
        self.name = "aml"
        self.bell = asyncio.Event()
        self.site = SimpleNamespace(ledger=Ledger())
        self.trainee = None
        self.merging = SimpleNamespace(schema=None, require_room=lambda _: None)
        self.state = SimpleNamespace(waiting=True)
        self.study = SimpleNamespace(
            settings=StudySettings(name="aml", every_steps=1),
            initial="i" * 64,
            proposer="nice",
            schema="",
            history=(),
            open=None,
            participants={},
            phase="running",
        )
        self.told = []
        self.last_words = self
        self.start = Start("aml")
        self.start.is_over.set()

    def require_participant(self):
        pass

    async def forget(self):
        pass

    async def finish(self, contribution):
        self.post(FinishWanted(contribution))

    def post(self, event):
        self.told.append(event)
        self.bell.set()


@pytest.fixture
async def runner():
    return Runner()


def serve(runner, visitor):
    return asyncio.create_task(Training("lyon", lambda: {"aml": runner}).serve(visitor))


async def test_of_two_training_processes_that_join_at_once_one_is_refused(runner):
    visitors = [Visitor(runner.bell), Visitor(runner.bell)]
    serving = [serve(runner, visitor) for visitor in visitors]
    for visitor in visitors:
        visitor.say(Knock(WALL_VERSION, "aml", 1), Join(HEADER))
    await until(
        runner.bell, lambda: any(isinstance(word, Failed) for visitor in visitors for word in visitor.heard)
    )
    for visitor in visitors:
        visitor.say(None)
    await asyncio.gather(*serving, return_exceptions=True)
    heard = sorted([[type(word) for word in visitor.heard] for visitor in visitors], key=len)
    assert heard == [[Terms], [Terms, Failed]]
    assert runner.told == [Attached(""), Detached(goodbye=False)]


async def test_a_member_that_has_finished_learns_that_its_training_counts_no_more(runner):
    runner.study.participants = {"lyon": Participant(finished="inactive")}
    visitor = Visitor(runner.bell)
    serving = serve(runner, visitor)
    visitor.say(Knock(WALL_VERSION, "aml", 1), Join(HEADER))
    await until(runner.bell, lambda: runner.told)
    visitor.fd = os.open("/dev/null", os.O_RDONLY)
    visitor.say(Update(1, "i" * 64, 10))
    await until(runner.bell, lambda: len(visitor.heard) > 1)
    assert isinstance(visitor.heard[-1], Failed)
    assert "has finished study 'aml' already" in visitor.heard[-1].what
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(visitor.fd)
    visitor.say(None)
    await asyncio.wait({serving})
    assert runner.told == [Attached(""), Detached(goodbye=False)]
