"""The ledger's time as a node can tell it, with whatever clock its machine has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from konsil.core.rules import Tick
from konsil.node.site import Site


class Ledger:
    """Puts calls on record by its own time, which goes on while they are under way."""

    def __init__(self, now_s: float, under_way_s: float = 0.0) -> None:
        self.true_s, self.under_way_s = now_s, under_way_s
        self.state = SimpleNamespace(now_s=int(now_s))

    async def submit(self, _call) -> int:
        self.true_s += self.under_way_s
        self.state.now_s = int(self.true_s)
        return 1


def site(ledger: Ledger, ahead_s: float) -> Site:
    return Site("b", ledger, None, None, None, clock=lambda: ledger.true_s + ahead_s)


@pytest.mark.parametrize("under_way_s", [0.0, 0.3, 7.0])
@pytest.mark.parametrize("at_s", [1000.0, 1000.5, 1000.999])
async def test_a_clock_that_is_right_is_left_alone(at_s, under_way_s):
    ledger = Ledger(at_s, under_way_s)
    member = site(ledger, 0.0)
    assert member.ledger_s() == at_s
    await member.submit(Tick("aml"))
    assert member.ledger_s() == ledger.true_s


async def test_a_clock_that_is_behind_is_moved_by_whatever_stands_on_the_ledger():
    ledger = Ledger(1000.9)
    member = site(ledger, -100.0)
    assert 0 <= ledger.true_s - member.ledger_s() < 1
    ledger.true_s += 60
    assert 0 <= ledger.true_s - member.ledger_s() < 1  # and goes on from there without any news


async def test_a_clock_that_is_ahead_is_moved_by_the_members_own_calls():
    ledger = Ledger(1000.9, under_way_s=0.2)
    member = site(ledger, 100.0)
    await member.submit(Tick("aml"))
    assert -1.2 < ledger.true_s - member.ledger_s() < 1
    ledger.true_s += 60
    assert -1.2 < ledger.true_s - member.ledger_s() < 1


async def test_a_clock_that_is_set_right_is_right_again():
    ledger, ahead = Ledger(1000.5), [100.0]
    member = Site("b", ledger, None, None, None, clock=lambda: ledger.true_s + ahead[0])
    await member.submit(Tick("aml"))
    ahead[0] = 0.0
    ledger.true_s += 10
    await member.submit(Tick("aml"))
    assert abs(member.ledger_s() - ledger.true_s) <= 1
