"""Swarms on one machine keep out of each other's way."""

from __future__ import annotations

import sys

import pytest

from konsil.evaluation import loopback


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has socket names that are gone with their process"
)
def test_a_port_that_one_swarm_has_chosen_is_chosen_by_no_other_until_it_is_given_up(monkeypatch):
    monkeypatch.setattr(loopback, "_PORTS", range(31000, 31250))
    held = []
    chosen = {loopback.free_port(held) for _ in range(100)}
    assert len(chosen) == len(held) == 100
    assert not {loopback.free_port() for _ in range(100)} & chosen
    for holder in held:
        holder.close()
    assert {loopback.free_port() for _ in range(200)} & chosen
