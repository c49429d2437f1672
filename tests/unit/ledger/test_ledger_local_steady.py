"""An operator's stamps go on evenly, whatever is done to the machine's clock."""

from __future__ import annotations

import time

import pytest

from konsil.ledger.local.steady import SteadyClock


class Machine:
    def __init__(self) -> None:
        self.wall_s, self.up_s = 1_000_000.0, 50.0

    def passes(self, seconds):
        self.wall_s += seconds
        self.up_s += seconds


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_moves_no_stamp(jump_s):
    machine = Machine()
    clock = SteadyClock(lambda: machine.wall_s, lambda: machine.up_s)
    assert clock() == 1_000_000.0
    machine.passes(10)
    machine.wall_s += jump_s
    assert clock() == 1_000_010.0


def test_it_starts_with_the_machines_own_time():
    assert abs(SteadyClock()() - time.time()) < 1.0
