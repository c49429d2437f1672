"""What goes wrong in a universe, in either world: values that stand in plans.

The world of the core and that of real nodes share what means the same in both. Fields that only the world of
nodes knows are optional; what only one world knows at all stands beside its plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal, TypeVar

import msgspec

from konsil.core.rules import Contribution
from konsil.simulation.plans import LONG_S, can_be

Lie = Literal[
    "merges a part wrongly",
    "merges wrongly and slips away",
    "sends wrong chunks",
    "sends other models",
    "reads early",
    "commits twice",
    "takes its update back",
    "leads nothing",
    "leads at the last moment",
    "gives its update to nobody",
    "gives its parts to nobody",
    "lets others hang",
    "says old calls again",
    "reports honest members",
    "disputes right chunks",
    "finds the opposite",
    "accepts what it does not hold",
    "commits what is no number",
    "says that it is alive for ever",
    "ticks and flaps",
    "names another Gram matrix",
    "publishes what it began with",
]
"""What a liar does, again and again; in everything else it is honest. Each world knows some: its ``LIES``."""

Loss = Literal["killed", "power"]
"""Of a process that is killed the system still writes everything; without power only what was fsynced is
sure."""

MOST_TIMES = 20
"""Who is slower is rightly not waited for: in the world of the core it trains for up to 100 s then, of the
120 s of a study's patience."""

NODES_ONLY = {"loss": "power", "silent": False, "both_ways": False, "broken": False}
"""Fields that the world of the core does not know, and what they are there."""


F = TypeVar("F", bound="Fault")


class Fault(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """Something that goes wrong. Times are seconds since the universe began."""


class Crash(Fault, frozen=True):
    """A node dies and comes back, knowing what is on its disk; never, with ``back_s`` 0.

    ``loss``: what its disk loses. In the world of the core that is what is being written.
    """

    member: str
    at_s: float
    back_s: float = 0.0
    loss: Loss = "power"


class TrainingDies(Fault, frozen=True):
    """A training process dies, and its update with it; it comes back and trains anew, or never (0)."""

    member: str
    at_s: float
    back_s: float = 0.0


class Finishes(Fault, frozen=True):
    """A training process has enough after so many ``rounds``; or, with 0, after the one that is open at
    ``at_s``, which only the world of nodes knows.
    """

    member: str
    rounds: int
    contribution: Contribution
    at_s: float = 0.0


class Late(Fault, frozen=True):
    """A member comes late: its training does, and in the world of nodes its node too."""

    member: str
    at_s: float


class Skew(Fault, frozen=True):
    """A node's clock is so much ahead of the ledger's."""

    member: str
    ahead_s: float


class DialsOut(Fault, frozen=True):
    """A member that nobody can dial: two such members reach each other through a third."""

    member: str


class Partition(Fault, frozen=True):
    """These members reach only each other until it heals; in the world of the core, nor the ledger.

    ``silent``: nobody is told; requests hang.
    """

    members: tuple[str, ...]
    at_s: float
    until_s: float
    silent: bool = False


class Cut(Fault, frozen=True):
    """What one member asks of another is lost, until it heals. ``both_ways``: their line breaks instead."""

    source: str
    target: str
    at_s: float
    until_s: float
    both_ways: bool = False


class DiskFull(Fault, frozen=True):
    """A node's disk takes nothing more, until there is room. ``broken``: it fails instead of being full."""

    member: str
    at_s: float
    until_s: float
    broken: bool = False


class LedgerHalt(Fault, frozen=True):
    """The ledger neither takes calls from these members nor tells them news; without names, from all."""

    members: tuple[str, ...]
    at_s: float
    until_s: float


class Liar(Fault, frozen=True):
    """A member that breaks the protocol all along."""

    member: str
    lie: Lie


Shared = (
    Crash | TrainingDies | Finishes | Late | Skew | DialsOut | Partition | Cut | DiskFull | LedgerHalt | Liar
)


def last_end_s(faults: Iterable[Fault]) -> float:
    """When the last fault that passes has passed."""
    moments = (getattr(fault, name, 0.0) for fault in faults for name in ("at_s", "back_s", "until_s"))
    return max(moments, default=0.0)


def of_member(fault: Fault) -> frozenset[str]:
    """The members that a fault names."""
    values = _values(fault)
    named = {values[field] for field in ("member", "source", "target") if field in values}
    return frozenset(named | set(values.get("members", ())))


def once_each(faults: Iterable[F], kinds: tuple[type[Fault], ...]) -> tuple[F, ...]:
    """These without what a later one of the same kind and member takes the place of.

    Args:
        faults: in their order.
        kinds: of which a member has one.
    """
    found = tuple(faults)
    last = {(type(fault), of_member(fault)): place for place, fault in enumerate(found)}
    return tuple(
        fault
        for place, fault in enumerate(found)
        if not isinstance(fault, kinds) or last[type(fault), of_member(fault)] == place
    )


def check_faults(
    faults: Collection[Fault],
    members: Collection[str],
    lies: Collection[Lie],
    latest_s: float,
    once: tuple[type[Fault], ...],
) -> None:
    """See that these things can go wrong.

    Args:
        faults: of a plan.
        members: who is there.
        lies: that the plan's world knows.
        latest_s: when all that passes has passed.
        once: of which a member has one.

    Raises:
        ConfigError: says what cannot be.
    """
    for fault in faults:
        _check_fault(fault, members, lies)
    for kind in once:
        of_kind = [fault for fault in faults if isinstance(fault, kind)]
        alone = len(once_each(of_kind, once)) == len(of_kind)
        can_be(alone, f"a member has one `{kind.__name__}`: a second one would take its place")
    can_be(last_end_s(faults) <= latest_s, f"the last fault is over at {latest_s:g} s")


def _check_fault(fault: Fault, members: Collection[str], lies: Collection[Lie]) -> None:
    values = _values(fault)
    strangers, there = sorted(of_member(fault) - set(members)), ", ".join(members)
    can_be(not strangers, f"a fault names {', '.join(map(repr, strangers))}, and the members are {there}")
    named = values.get("members", ())
    can_be(len(set(named)) == len(named), "a fault names a member once")
    apart = not isinstance(fault, Partition) or 0 < len(named) < len(members)
    can_be(apart, "a partition is between some members and the others: it names one, and not all")
    can_be(not isinstance(fault, Cut) or fault.source != fault.target, "a cut is between two members")
    at_s = values.get("at_s", 0.0)
    can_be(0 <= at_s < float("inf"), "a fault begins at 0 s or later")
    end_s = values.get("until_s", values.get("back_s") or at_s)
    can_be(at_s <= end_s < float("inf"), f"a fault ends at {end_s:g} s, before it begins at {at_s:g} s")
    can_be(0 < values.get("times", 1.0) <= MOST_TIMES, f"what is slow takes up to {MOST_TIMES} times as long")
    can_be(abs(values.get("ahead_s", 0.0)) <= LONG_S, "a clock is wrong by a day at most")
    lie = values.get("lie")
    can_be(lie is None or lie in lies, f"no liar of this world {lie}; one can do this: {'; '.join(lies)}")


def _values(fault: Fault) -> dict[str, Any]:
    return {field: getattr(fault, field) for field in fault.__struct_fields__}
