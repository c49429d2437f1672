"""A universe run to its end, and how that was."""

from __future__ import annotations

from collections.abc import Callable

from konsil.simulation import laws
from konsil.simulation.laws import Law, Violation
from konsil.simulation.universe.plan import Plan
from konsil.simulation.universe.world import World


class Outcome(laws.Outcome[Plan], frozen=True):
    """``longest_s``: what a round took at most once all that passes had passed."""

    longest_s: float


def run_universe(plan: Plan, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run a universe to its end."""
    world = World(plan, tell)
    law: Law = ""
    what = ""
    try:
        world.run()
    except Violation as raised:
        violation = raised
        law, what = violation.law, violation.what
        world.story(lambda: f"Broken law '{violation.law}': {violation.what}")
    rounds, calls = len(world.ledger.study.history), world.watch.calls
    took_s, longest_s = round(world.agenda.now_s, 3), round(world.longest_s, 3)
    world.end()
    return Outcome(plan, law, what, rounds, calls, took_s, longest_s)
