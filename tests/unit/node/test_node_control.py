"""What the command line's door does with a model that comes with a proposal."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.parameters import Schema
from konsil.core.rules import Proposal, ProposeStudySettings, StudySettings, Vote
from konsil.core.wall import AskCall, AskPropose, Failed
from konsil.errors import Refused
from konsil.node.control import Control
from konsil.node.rules import Rules
from konsil.wall.layout import seal_arrays
from konsil.wall.memory import seal_pieces

SETTINGS = StudySettings(name="aml", every_steps=1)
WEIGHTS = {"w": np.ones(3, np.float32)}


class Refusing:
    """A ledger that refuses."""

    state = SimpleNamespace(studies={}, proposals=())

    async def submit(self, _call):
        raise Refused("name_taken", "There is or was a study 'aml' already.")


class Visitor:
    """A command that asks once and hears the answer."""

    def __init__(self, word, fd) -> None:
        self.asks = [(word, fd)]
        self.heard = []

    async def receive(self):
        if not self.asks:
            raise ConnectionResetError("gone")
        return self.asks.pop()

    async def send(self, word, _fd=None):
        self.heard.append(word)


@pytest.mark.parametrize(("yes", "says"), [(True, "this node has none"), (False, "already")])
async def test_nobody_votes_for_a_rule_that_its_node_does_not_have(yes, says, tmp_path):
    own = replace(SETTINGS, rule="own", rule_digest="ab" * 32)
    ledger = Refusing()
    ledger.state = SimpleNamespace(
        studies={}, proposals=(Proposal(4, "a", ProposeStudySettings(own), 0, {}),)
    )
    visitor = Visitor(AskCall(Vote(4, yes)), None)
    with pytest.raises(ConnectionResetError):
        await Control(SimpleNamespace(ledger=ledger, rules=Rules(tmp_path))).serve(visitor)
    assert says in visitor.heard[0].what


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([b"no model"], "cannot be used"),
        ([(1 << 62).to_bytes(8, "little"), b"{}"], "cannot be used"),
        (None, "already"),
    ],
)
async def test_a_model_whose_study_is_refused_is_given_back(pieces, says):
    made = seal_pieces(pieces) if pieces else seal_arrays(Schema.of(WEIGHTS), WEIGHTS)
    node = SimpleNamespace(ledger=Refusing(), rules=Rules(), site=SimpleNamespace(max_model_bytes=10**6))
    with made as memory:
        fd = os.dup(memory.fd)
        visitor = Visitor(AskPropose(SETTINGS), fd)
        with pytest.raises(ConnectionResetError):
            await Control(node).serve(visitor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    (answer,) = visitor.heard
    assert isinstance(answer, Failed)
    assert says in answer.what
