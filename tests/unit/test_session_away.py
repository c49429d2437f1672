"""A session whose node is away says so while it looks for it."""

from __future__ import annotations

import numpy as np
import pytest

import konsil
from konsil.session.connection import NODE_AWAY


def test_a_session_says_that_its_node_does_not_answer(tmp_path):
    told = []
    with pytest.raises(konsil.NodeUnreachable):
        konsil.join(
            "aml", {"w": np.zeros(1)}, node=tmp_path / "s.sock", timeout_s=0.5, on_waiting=told.append
        )
    assert {word.stage for word in told} == {NODE_AWAY}
