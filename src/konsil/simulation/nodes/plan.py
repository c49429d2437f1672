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
    Skew,
    check_faults,
    last_end_s,
)
from konsil.simulation.plans import MOST_MEMBERS, can_be, decode

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


BOUND_S = 900.0
"""So long after the last fault a study must have come to its end: attempts that failed in a row have made its
own deadlines long."""

MOST_ROUNDS = 6
MOST_TRAINING_S = BOUND_S / 3
MOST_MESSAGE_S = 1.0
MOST_LEDGER_S = 0.5
LEAST_BYTES_PER_S = 1e7
MOST_SETTING_S = 60
"""A study with all of these and no fault ends well within the bound, and more shows nothing new."""


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

ONCE: tuple[type[Fault], ...] = (Liar, Skew, SlowLine)
"""Of these a member has one."""


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
    can_be(plan.settings.name == STUDY, f"the study's name is {STUDY!r}")
    can_be(not plan.settings.rule_digest, "rules of the members' own are not there")
    can_be(plan.settings.every_steps == 1, "`every_steps` is 1: `trains_s` says how long a round takes")
    try:
        check_study_settings(plan.settings, members)
    except ConfigError as error:
        can_be(False, error.what)
    can_be(0 <= plan.repeated <= 1 and 0 <= plan.lost_calls <= 1, "`repeated`, `lost_calls` are from 0 to 1")
    check_faults(plan.faults, members, LIES, LATEST_S, ONCE)
    _check_times(plan)
    for fault in plan.faults:
        if isinstance(fault, Finishes):
            can_be(fault.rounds == 0, "who finishes does so at a time: `rounds` is 0, `at_s` says when")


def _check_times(plan: Plan) -> None:
    """See that what is slow leaves a study time to end within its bound."""
    settings = plan.settings
    can_be(settings.rounds <= MOST_ROUNDS, f"there are up to {MOST_ROUNDS} rounds")
    can_be(min(plan.trains_s.values()) > 0, "training takes more than 0 s")
    training_s = max(plan.trains_s.values()) * settings.rounds
    can_be(
        training_s <= MOST_TRAINING_S, f"training takes up to {MOST_TRAINING_S:g} s in all rounds together"
    )
    for name in ("silence_s", "patience_s", "merge_s"):
        can_be(getattr(settings, name) <= MOST_SETTING_S, f"`{name}` is up to {MOST_SETTING_S} s")
    can_be(plan.delay_s > 0 and plan.ledger_delay_s > 0, "a delay is above 0 s")
    message_s = plan.delay_s * max([1.0, *plan.slow.values()])
    can_be(message_s <= MOST_MESSAGE_S, f"a delay is up to {MOST_MESSAGE_S:g} s, on a slow line too")
    can_be(plan.ledger_delay_s <= MOST_LEDGER_S, f"a delay of the ledger is up to {MOST_LEDGER_S:g} s")
    enough = LEAST_BYTES_PER_S <= plan.bytes_per_s < float("inf")
    can_be(enough, f"`bytes_per_s` is {LEAST_BYTES_PER_S:.0f} or more")
