"""What a universe of real nodes holds: values, drawn from a seed or written down as JSON."""

from __future__ import annotations

import msgspec

from konsil.core.rules import StudySettings, check_study_settings
from konsil.core.rules.refusing import SLUG
from konsil.errors import ConfigError
from konsil.simulation.faults import (
    DialsOut,
    Fault,
    Finishes,
    Liar,
    Lie,
    Shared,
    check_faults,
    last_end_s,
)
from konsil.simulation.plans import LONG_S, MOST_MEMBERS, can_be, decode

STUDY = "aml"

LIES: tuple[Lie, ...] = (
    "merges a part wrongly",
    "publishes what it began with",
    "sends wrong chunks",
    "sends other models",
    "gives its update to nobody",
    "leads nothing",
    "reports honest members",
    "disputes right chunks",
    "says old calls again",
    "commits twice",
    "reads early",
)
"""Lies of this world."""

LATEST_S = 3_600.0
"""What goes wrong has done so by then: this world looks at itself several times a second."""


class SaysGoodbye(Fault, frozen=True):
    """A training process leaves at its next word, and comes back; never, with ``back_s`` 0."""

    member: str
    at_s: float
    back_s: float = 0.0


class SlowLine(Fault, frozen=True):
    """Everything to and from a member takes so many times longer."""

    member: str
    times: float


AnyFault = Shared | SaysGoodbye | SlowLine


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="world", tag="nodes"):
    """A universe before it runs.

    ``seed``: draws delays, losses and what is random at members. ``trains_s``: how long a member trains a
    round. ``engine``: whether the local engine keeps the ledger, or a contract that all share.
    ``delay_s``, ``bytes_per_s``, ``repeated``: of the lines; ``repeated``: the share of requests that come
    twice. ``ledger_delay_s``, ``lost_calls``: of the shared contract.
    """

    seed: int
    members: tuple[str, ...]
    settings: StudySettings
    trains_s: dict[str, float]
    engine: bool = False
    delay_s: float = 0.01
    repeated: float = 0.0
    bytes_per_s: float = 2e9
    ledger_delay_s: float = 0.02
    lost_calls: float = 0.0
    faults: tuple[AnyFault, ...] = ()

    @property
    def healed_s(self) -> float:
        """From then on nothing goes wrong any more."""
        return last_end_s(self.faults)

    @property
    def liars(self) -> frozenset[str]:
        """Members that do not keep to the protocol."""
        return frozenset(fault.member for fault in self.faults if isinstance(fault, Liar))

    @property
    def dial_only(self) -> frozenset[str]:
        """Members that nobody can dial."""
        return frozenset(fault.member for fault in self.faults if isinstance(fault, DialsOut))

    @property
    def slow(self) -> dict[str, float]:
        """How many times slower the lines of members are."""
        return {fault.member: fault.times for fault in self.faults if isinstance(fault, SlowLine)}


def decode_plan(data: bytes) -> Plan:
    """A plan from a file that somebody may have edited.

    Raises:
        ConfigError: it is no plan, or one of a universe that cannot be.
    """
    plan = decode(data, "nodes", Plan)
    check_plan(plan)
    return plan


def check_plan(plan: Plan) -> None:
    """See that a universe can be as a plan says.

    Raises:
        ConfigError: says what cannot be.
    """
    members = plan.members
    can_be(1 <= len(members) <= MOST_MEMBERS, f"there are from 1 to {MOST_MEMBERS} members")
    can_be(len(set(members)) == len(members), "each member has a name of its own")
    can_be(all(map(SLUG.fullmatch, members)), "members have lower-case names")
    can_be(set(plan.trains_s) == set(members), "`trains_s` says it of every member, and of nobody else")
    can_be(all(0 < takes_s <= LONG_S for takes_s in plan.trains_s.values()), "training takes up to a day")
    can_be(plan.settings.name == STUDY, f"the study's name is {STUDY!r}")
    can_be(not plan.settings.rule_digest, "rules of the members' own are not there")
    can_be(plan.settings.every_steps == 1, "`every_steps` is 1: `trains_s` says how long a round takes")
    try:
        check_study_settings(plan.settings, members)
    except ConfigError as error:
        can_be(False, error.what)
    can_be(0 <= plan.repeated <= 1 and 0 <= plan.lost_calls <= 1, "`repeated`, `lost_calls` are from 0 to 1")
    can_be(0 < plan.delay_s <= LONG_S and 0 < plan.ledger_delay_s <= LONG_S, "a delay is up to a day")
    can_be(0 < plan.bytes_per_s < float("inf"), "`bytes_per_s` is above 0")
    check_faults(plan.faults, members, LIES)
    can_be(plan.healed_s <= LATEST_S, f"the last fault is over at {LATEST_S:g} s")
    for fault in plan.faults:
        if isinstance(fault, Finishes):
            can_be(fault.rounds == 0, "who finishes does so at a time: `rounds` is 0, `at_s` says when")
