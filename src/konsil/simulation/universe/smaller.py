"""Plans with one thing less, for the minimiser."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from konsil.simulation.faults import of_member
from konsil.simulation.minimise import possible, without_one
from konsil.simulation.universe.plan import Plan, Weather, check_plan


def smaller(plan: Plan) -> Iterator[Plan]:
    """What a plan is with one thing less, as far as it can be so."""
    return possible(_less(plan), check_plan)


def _less(plan: Plan) -> Iterator[Plan]:
    for faults in without_one(plan.faults):
        yield replace(plan, faults=faults)
    if plan.rounds > 1:
        yield replace(plan, rounds=1)
        yield replace(plan, rounds=plan.rounds - 1)
    if plan.weather != Weather():
        yield replace(plan, weather=Weather())
    if plan.weather.loss or plan.weather.again:
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
    named = any(plan.names[-1] in of_member(fault) for fault in plan.faults)
    if plan.members > 3 and not named:  # noqa: PLR2004 - two cannot outvote a third
        yield replace(plan, members=plan.members - 1, quorum=(plan.members - 1) // 2 + 1)
