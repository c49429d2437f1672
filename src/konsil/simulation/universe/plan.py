"""What a universe of the core holds: values, drawn from a seed or written down as JSON."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from konsil.core.merge import rule_names
from konsil.simulation.faults import (
    NODES_ONLY,
    Fault,
    Finishes,
    Liar,
    Lie,
    Shared,
    Skew,
    check_faults,
    last_end_s,
)
from konsil.simulation.plans import LONG_S, MOST_MEMBERS, can_be, decode

MOST_HOURS = 1_000
"""More shows nothing new, and takes long."""

MOST_DELAY_S = 5.0
"""Where messages or news take longer still, who is there is not heard of in time."""

_ELSEWHERE: tuple[Lie, ...] = ("publishes what it began with",)
LIES: tuple[Lie, ...] = tuple(lie for lie in get_args(Lie) if lie not in _ELSEWHERE)
"""Lies of this world."""

MERGES_WRONGLY: tuple[Lie, ...] = ("merges a part wrongly", "merges wrongly and slips away")


class Slow(Fault, frozen=True):
    """A member trains so many times longer than the others."""

    member: str
    times: float


AnyFault = Shared | Slow

ONCE: tuple[type[Fault], ...] = (Liar, Skew, Slow)
"""Of these a member has one."""


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every message meets. ``delay_s``: the longest on the way; ``loss``, ``again``: the chances that it
    is lost, or comes twice; ``lag_s``: the longest until a member hears of an entry on the ledger.
    """

    delay_s: float = 0.05
    loss: float = 0.0
    again: float = 0.0
    lag_s: float = 0.1


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="world", tag="core"):
    """A universe before anything has happened.

    ``seed``: draws delays, losses and what is random at members. ``members``: how many, from "a" on.
    ``chunks``: of the model. ``audit``: the share of others' chunks that
    members recompute. ``running``: whether it begins in round 1 with everybody there, or with a study
    that was proposed. ``hours``: the study ends after them; 0 for by its rounds alone.
    """

    seed: int
    members: int = 3
    rounds: int = 1
    quorum: int = 2
    chunks: int = 3
    rule: str = "mean"
    parts: Literal["shared", "leader"] = "shared"
    audit: float = 1.0
    running: bool = True
    hours: float = 0.0
    weather: Weather = Weather()
    faults: tuple[AnyFault, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The members, in name order."""
        return tuple("abcdefghij"[: self.members])

    @property
    def liars(self) -> dict[str, Lie]:
        """Who lies, and how."""
        return {fault.member: fault.lie for fault in self.faults if isinstance(fault, Liar)}

    @property
    def honest(self) -> tuple[str, ...]:
        """Who does not lie."""
        liars = self.liars
        return tuple(name for name in self.names if name not in liars)

    @property
    def healed_s(self) -> float:
        """When the last fault that passes has passed."""
        return last_end_s(self.faults)


def decode_plan(data: bytes) -> Plan:
    """A plan from a file that somebody may have edited.

    Raises:
        ConfigError: it is no plan, or one of a universe that cannot be.
    """
    plan = decode(data, "core", Plan)
    check_plan(plan)
    return plan


def check_plan(plan: Plan) -> None:
    """See that a universe can be as a plan says.

    Raises:
        ConfigError: says what cannot be.
    """
    for field, least, most in (("members", 1, MOST_MEMBERS), ("chunks", 1, 64), ("rounds", 1, 1_000_000)):
        can_be(least <= getattr(plan, field) <= most, f"`{field}` must be from {least} to {most}")
    can_be(1 <= plan.quorum <= plan.members, "`quorum` must be from 1 to the number of members")
    can_be(plan.rule in rule_names(), f"`rule` must be one of {', '.join(rule_names())}")
    can_be(0 <= plan.audit <= 1, "`audit` must be from 0 to 1")
    can_be(0 <= plan.hours <= MOST_HOURS, f"`hours` must be from 0 to {MOST_HOURS}")
    weather = plan.weather
    can_be(0 <= weather.loss <= 1 and 0 <= weather.again <= 1, "`loss` and `again` must be from 0 to 1")
    slow = max(weather.delay_s, weather.lag_s) <= MOST_DELAY_S and min(weather.delay_s, weather.lag_s) >= 0
    can_be(slow, f"a delay is from 0 s to {MOST_DELAY_S:g} s")
    check_faults(plan.faults, plan.names, LIES, max(LONG_S, plan.hours * 3600), ONCE)
    for fault in plan.faults:
        for field, known in NODES_ONLY.items():
            can_be(getattr(fault, field, known) == known, f"`{field}` is for the world of nodes")
        if isinstance(fault, Finishes):
            can_be(fault.rounds > 0 and not fault.at_s, "who finishes does so after a round or more")
            can_be(fault.rounds <= plan.rounds, f"who finishes does so within the {plan.rounds} rounds")
