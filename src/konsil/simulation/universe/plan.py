"""What a universe holds and what goes wrong in it: values, drawn from a seed or written down as JSON."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from konsil.core.merge import rule_names
from konsil.core.rules import Contribution
from konsil.errors import ConfigError

Lie = Literal[
    "merges a part wrongly",
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
]
"""What a liar does, again and again; in everything else it is honest."""

MOST_MEMBERS, MOST_HOURS, MOST_TIMES = 10, 1_000, 1_000
LONG_S = 86_400.0
"""More than any of these shows nothing new, and takes long."""

LIES: tuple[Lie, ...] = get_args(Lie)


class Fault(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Something that goes wrong. Times are seconds since the universe began."""


class Crash(Fault, frozen=True):
    """A node dies and comes back, knowing what is on its disk; never, with ``back_s`` 0."""

    member: str
    at_s: float
    back_s: float = 0.0


class TrainingDies(Fault, frozen=True):
    """A training process dies, and its update with it; it comes back and trains anew, or never (0)."""

    member: str
    at_s: float
    back_s: float = 0.0


class Finishes(Fault, frozen=True):
    """A training process has enough after so many rounds."""

    member: str
    rounds: int
    contribution: Contribution


class Late(Fault, frozen=True):
    """A member's training comes late."""

    member: str
    at_s: float


class Slow(Fault, frozen=True):
    """A member trains so many times longer than the others."""

    member: str
    times: float


class Skew(Fault, frozen=True):
    """A node's clock is so much ahead of the ledger's."""

    member: str
    ahead_s: float


class DialsOut(Fault, frozen=True):
    """A member that nobody can dial: two such members reach each other through a third."""

    member: str


class Partition(Fault, frozen=True):
    """These members reach only each other, and not the ledger, until it heals."""

    members: tuple[str, ...]
    at_s: float
    until_s: float


class Cut(Fault, frozen=True):
    """What one member asks of another is lost, one way, until it heals."""

    source: str
    target: str
    at_s: float
    until_s: float


class DiskFull(Fault, frozen=True):
    """A node's disk takes nothing more, until there is room."""

    member: str
    at_s: float
    until_s: float


class LedgerHalt(Fault, frozen=True):
    """The ledger neither takes calls from these members nor tells them news; without names, from all."""

    members: tuple[str, ...]
    at_s: float
    until_s: float


class Liar(Fault, frozen=True):
    """A member that breaks the protocol all along."""

    member: str
    lie: Lie


AnyFault = (
    Crash | TrainingDies | Finishes | Late | Slow | Skew | DialsOut | Partition | Cut | DiskFull
    | LedgerHalt | Liar
)  # fmt: skip


class Weather(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every message meets. ``delay_s``: the longest on the way; ``loss``, ``again``: the chances that it
    is lost, or comes twice; ``lag_s``: the longest until a member hears of an entry on the ledger.
    """

    delay_s: float = 0.05
    loss: float = 0.0
    again: float = 0.0
    lag_s: float = 0.1


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        ends = [0.0]
        for fault in self.faults:
            match fault:
                case Crash(at_s=at_s, back_s=back_s) | TrainingDies(at_s=at_s, back_s=back_s):
                    ends.append(max(at_s, back_s))
                case Late(at_s=at_s):
                    ends.append(at_s)
                case Partition(until_s=until_s) | Cut(until_s=until_s):
                    ends.append(until_s)
                case DiskFull(until_s=until_s) | LedgerHalt(until_s=until_s):
                    ends.append(until_s)
                case _:
                    pass
        return max(ends)


def encode_plan(plan: Plan) -> str:
    """A plan as JSON, for a regression test or a bug report."""
    return msgspec.json.encode(plan).decode()


def decode_plan(data: bytes) -> Plan:
    """The reverse of ``encode_plan``, from a file that somebody may have edited.

    Raises:
        ConfigError: it is no plan, or one of a universe that cannot be.
    """
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"This is no plan of a universe: {error}.",
            safe="Nothing was run.",
            do="`konsil simulate --seed N --plan` prints one.",
        ) from error
    check_plan(plan)
    return plan


def check_plan(plan: Plan) -> None:
    """See that a universe can be as a plan says.

    Raises:
        ConfigError: says what cannot be.
    """
    for field, least, most in (("members", 1, MOST_MEMBERS), ("chunks", 1, 64), ("rounds", 1, 1_000_000)):
        _can_be(least <= getattr(plan, field) <= most, f"`{field}` must be from {least} to {most}")
    _can_be(1 <= plan.quorum <= plan.members, "`quorum` must be from 1 to the number of members")
    _can_be(plan.rule in rule_names(), f"`rule` must be one of {', '.join(rule_names())}")
    _can_be(0 <= plan.audit <= 1, "`audit` must be from 0 to 1")
    _can_be(0 <= plan.hours <= MOST_HOURS, f"`hours` must be from 0 to {MOST_HOURS}")
    weather = plan.weather
    _can_be(0 <= weather.loss <= 1 and 0 <= weather.again <= 1, "`loss` and `again` must be from 0 to 1")
    _can_be(0 <= weather.delay_s <= LONG_S and 0 <= weather.lag_s <= LONG_S, "a delay is from 0 s to a day")
    for fault in plan.faults:
        _check_fault(fault, plan)


def _check_fault(fault: AnyFault, plan: Plan) -> None:
    values = {field: getattr(fault, field) for field in fault.__struct_fields__}
    named = {values[field] for field in ("member", "source", "target") if field in values}
    strangers = sorted((named | set(values.get("members", ()))) - set(plan.names))
    there = ", ".join(plan.names)
    _can_be(not strangers, f"a fault names {', '.join(map(repr, strangers))}, and the members are {there}")
    _can_be(len(named) > 1 or not isinstance(fault, Cut), "a cut is between two members")
    at_s = values.get("at_s", 0.0)
    _can_be(0 <= at_s < float("inf"), "a fault begins at 0 s or later")
    end_s = values.get("until_s", values.get("back_s") or at_s)
    _can_be(at_s <= end_s < float("inf"), f"a fault ends at {end_s:g} s, before it begins at {at_s:g} s")
    _can_be(0 < values.get("times", 1.0) <= MOST_TIMES, f"who is slow takes up to {MOST_TIMES} times as long")
    _can_be(abs(values.get("ahead_s", 0.0)) <= LONG_S, "a clock is wrong by a day at most")


def _can_be(held: bool, what: str) -> None:
    if not held:
        raise ConfigError(
            f"A universe of this plan cannot be: {what}.",
            safe="Nothing was run.",
            do="Correct the plan; `konsil simulate --seed N --plan` prints one that can.",
        )
