"""Nodes whose clocks are minutes apart, while a study runs."""

from __future__ import annotations

from collections import Counter

import pytest

from konsil.core.rules import Alive
from konsil.ledger.verify import read_calls
from konsil.node.config import read_config
from konsil.node.genesis import read_genesis

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

THREE = ("berlin", "bonn", "koeln")


def alive_calls(lab, name: str = "berlin") -> Counter[str]:
    """How often each member has put on the ledger that it still trains."""
    config = read_config(lab.swarm.directory(name))
    calls = read_calls(read_genesis(config.genesis_file), config.ledger_file)
    return Counter(signed.caller for _, signed in calls if isinstance(signed.call, Alive))


@pytest.mark.parametrize("behind", ["bonn", "berlin"])
def test_a_study_goes_on_where_clocks_are_minutes_apart_and_deadlines_are_those_of_the_ledger(
    lab, environment, wrong_clock, behind
):
    """Who is late by its own clock still says in time that it trains, and who is early does not say it always."""
    ahead = "koeln"
    lab.make(*THREE, start=False)
    for name in THREE:
        shift_s = -100 if name == behind else 100 if name == ahead else 0
        with environment(**wrong_clock(shift_s)):
            lab.swarm.start([name])
    lab.study(rounds=1, silence_s=3)
    quick = next(name for name in THREE if name not in {behind, ahead})
    lab.train(quick)
    lab.train(behind, pause=6)
    lab.train(ahead, pause=5)
    lab.ends()
    history = lab.intact()
    said = alive_calls(lab)
    assert all(set(record.roster) == set(THREE) and record.attempt == 1 for record in history), said
    assert max(said.values()) <= 20, f"6 s of training at a silence of 3 s: about one a second: {said}"
