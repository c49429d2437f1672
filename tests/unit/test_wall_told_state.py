"""The ledger's state over the wall: however long its history is, it comes, and leaves no descriptor behind."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from konsil.core.rules import StudySettings, encode_state, state_digest
from konsil.core.rules.state import Commitment, RoundRecord, State, Study, SwarmSettings
from konsil.core.wall import AskState, ToldState
from konsil.errors import FrameError
from konsil.node.control import Control
from konsil.wall import told_state as subject
from konsil.wall.frames import frame
from konsil.wall.told_state import IN_WORD_BYTES, read_state, told_state


def accepted(number):
    names = [f"hospital-{place:02}" for place in range(32)]
    roster = {name: Commitment(digest="c" * 64, examples=100, at_s=7) for name in names}
    return RoundRecord(number, 1, "b" * 64, "d" * 64, roster, dict.fromkeys(names, 1), (), {}, 0, 1, 2)


def state_of(rounds):
    settings = StudySettings(name="aml", every_steps=1)
    history = tuple(accepted(number) for number in range(1, rounds + 1))
    study = Study(settings, "e" * 64, "hospital-00", 0, phase="running", history=history)
    return State("g" * 64, "local", "hospital-00", SwarmSettings(), {}, studies={"aml": study}, height=rounds)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(("rounds", "in_word"), [(0, True), (20, True), (400, False)])
def test_a_state_comes_as_it_is_however_long_it_is(rounds, in_word):
    state = state_of(rounds)
    encoded = encode_state(state)
    assert (len(encoded) <= IN_WORD_BYTES) is in_word
    before = descriptors()
    told, memory = told_state(rounds, "d", encoded)
    assert (memory is None) is in_word
    assert len(frame(told)) < IN_WORD_BYTES + 1000, "no history makes the word longer than words may be"
    fd = None
    if memory is not None:
        with memory:
            fd = os.dup(memory.fd)
    assert read_state(told, fd) == state
    assert descriptors() == before


def test_a_descriptor_that_could_still_be_changed_is_not_read():
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
    os.write(fd, encode_state(state_of(1)))
    with pytest.raises(FrameError, match="can still be changed"):
        read_state(ToldState(1, "d", b""), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


class Visitor:
    """A command that asks for the state twice and keeps what it is sent."""

    def __init__(self) -> None:
        self.asks = [AskState(), AskState()]
        self.states = []

    async def receive(self):
        if not self.asks:
            raise ConnectionResetError("gone")
        return self.asks.pop(), None

    async def send(self, word, fd=None):
        self.states.append(read_state(word, None if fd is None else os.dup(fd)))


@pytest.mark.parametrize("in_word_bytes", [0, IN_WORD_BYTES])
async def test_a_node_tells_its_state_and_keeps_no_descriptor(monkeypatch, in_word_bytes):
    monkeypatch.setattr(subject, "IN_WORD_BYTES", in_word_bytes)
    state = state_of(3)
    before = descriptors()
    visitor = Visitor()
    with pytest.raises(ConnectionResetError):
        await Control(SimpleNamespace(ledger=SimpleNamespace(state=state))).serve(visitor)
    assert [state_digest(each) for each in visitor.states] == [state_digest(state)] * 2
    assert descriptors() == before
