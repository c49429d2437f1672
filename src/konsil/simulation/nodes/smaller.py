"""Plans with one thing less, for the minimiser."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from konsil.core.rules import StudySettings
from konsil.simulation.faults import of_member
from konsil.simulation.minimise import possible, without_one
from konsil.simulation.nodes.plan import Plan, check_plan

_CALM = {"delay_s": 0.01, "bytes_per_s": 2e9, "ledger_delay_s": 0.02, "repeated": 0.0, "lost_calls": 0.0}
_FEW = 3
"""Two cannot outvote a third."""

_TRAINS_S = 1.0


def smaller(plan: Plan) -> Iterator[Plan]:
    """What a plan is with one thing less, as far as it can be so."""
    return possible(_less(plan), check_plan)


def _less(plan: Plan) -> Iterator[Plan]:
    for faults in without_one(plan.faults):
        yield replace(plan, faults=faults)
    for settings in _simpler(plan.settings):
        yield replace(plan, settings=settings)
    calmer = [field for field, calm in _CALM.items() if getattr(plan, field) != calm]
    if len(calmer) > 1:
        yield replace(plan, **_CALM)
    for field in calmer:
        yield replace(plan, **{field: _CALM[field]})
    if plan.engine:
        yield replace(plan, engine=False)
    alike = dict.fromkeys(plan.members, _TRAINS_S)
    if plan.trains_s != alike:
        yield replace(plan, trains_s=alike)
    yield from _with_one_member_less(plan)


def _simpler(settings: StudySettings) -> Iterator[StudySettings]:
    if settings.rounds > 1:
        yield replace(settings, rounds=1)
        yield replace(settings, rounds=settings.rounds - 1)
    if settings.outer is not None:
        yield replace(settings, outer=None)
    if settings.best is not None:
        yield replace(settings, best=None)
    if settings.rule != "mean":
        yield replace(settings, rule="mean", rule_options={})
    if settings.parts != "shared":
        yield replace(settings, parts="shared")
    if settings.weighting != "equal":
        yield replace(settings, weighting="equal", given={}, cap_percent=0)


def _with_one_member_less(plan: Plan) -> Iterator[Plan]:
    *others, last = plan.members
    settings = plan.settings
    if len(others) < max(_FEW, settings.min_members, settings.quorum):
        return
    if any(last in of_member(fault) for fault in plan.faults):
        return
    trains_s = {name: plan.trains_s[name] for name in others}
    yield replace(plan, members=tuple(others), trains_s=trains_s)
