"""The smallest universe that breaks the same law: what is left in it is what matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from konsil.simulation.universe.plan import Plan, Weather
from konsil.simulation.universe.world import Outcome, run_universe

Run = Callable[[Plan], Outcome]


def minimise(plan: Plan, run: Run = run_universe) -> Plan:
    """Take away from a plan what its violation does not need.

    Args:
        plan: a universe in which a law is broken.
        run: how to run one.

    Returns:
        A plan from which nothing more can be taken alone; the plan itself if no law is broken in it.
    """
    law = run(plan).law
    if not law:
        return plan
    found = True
    while found:
        found = False
        for smaller in _smaller(plan):
            if run(smaller).law == law:
                plan, found = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less."""
    for place in range(len(plan.faults)):
        yield replace(plan, faults=plan.faults[:place] + plan.faults[place + 1 :])
    if plan.rounds > 1:
        yield replace(plan, rounds=1)
        yield replace(plan, rounds=plan.rounds - 1)
    if plan.weather != Weather():
        yield replace(plan, weather=Weather())
        yield replace(plan, weather=replace(plan.weather, loss=0.0, again=0.0))
    if not plan.running:
        yield replace(plan, running=True)
    if plan.rule != "mean":
        yield replace(plan, rule="mean")
    if plan.parts != "shared":
        yield replace(plan, parts="shared")
    if plan.chunks > 1:
        yield replace(plan, chunks=1)
        yield replace(plan, chunks=plan.chunks - 1)
    if plan.members > 3 and not _names(plan, plan.names[-1]):  # noqa: PLR2004 - two cannot outvote a third
        yield replace(plan, members=plan.members - 1, quorum=(plan.members - 1) // 2 + 1)


def _names(plan: Plan, member: str) -> bool:
    """Whether a fault is about a member."""
    for fault in plan.faults:
        values = [getattr(fault, field) for field in fault.__struct_fields__]
        if member in values or any(member in value for value in values if isinstance(value, tuple)):
            return True
    return False
