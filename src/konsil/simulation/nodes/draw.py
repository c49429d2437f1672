"""Plans from seeds: what goes wrong among real nodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

from msgspec.structs import replace

from konsil.core.rules import Best, Contribution, Outer, StudySettings
from konsil.simulation.faults import (
    Crash,
    Cut,
    DialsOut,
    DiskFull,
    Finishes,
    Late,
    LedgerHalt,
    Liar,
    Lie,
    Loss,
    Partition,
    Skew,
    TrainingDies,
)
from konsil.simulation.nodes.plan import LIES, STUDY, AnyFault, Plan, SaysGoodbye, SlowLine

NAMES = ("ada", "bea", "cid", "dov", "eva")

MOST_HONEST = 3
"""A roster in which the honest are more than half, with one that is not."""

FORGETS = 1 / 6
"""How often all of a member dies that is about to commit, or has."""

Faults = tuple[AnyFault, ...]


def draw_plan(seed: int) -> Plan:
    """The plan of a seed."""
    lots = random.Random(f"plan {seed}")  # noqa: S311 - reproducible, keeps no secret
    members = NAMES[: lots.choice((3, 4, 4, 5))]
    few = 2 if lots.random() < 1 / 4 else 3
    trains_s = {name: lots.uniform(0.2, 2.0) for name in members}
    settings = _settings(lots, few)
    faults = _faults(lots, members)
    if any(isinstance(fault, Liar) for fault in faults):
        # Of a roster of two nobody can say who lies: a dispute stays undecided until others take part.
        settings = replace(settings, quorum=MOST_HONEST, min_members=MOST_HONEST)
    faults = _spared(faults, len(members) - settings.quorum)
    engine = lots.random() < 1 / 3
    if lots.random() < 1 / 5:
        faults += tuple(map(DialsOut, members[1:3]))
    delay_s, repeated = lots.choice((0.002, 0.02, 0.1)), lots.choice((0.0, 0.0, 0.1))
    bytes_per_s = lots.choice((2e9, 2e8))
    if lots.random() < 1 / 5:
        faults += (SlowLine(lots.choice(members), lots.choice((3.0, 10.0))),)
    plan = Plan(
        seed=seed,
        members=members,
        settings=settings,
        trains_s=trains_s,
        engine=engine,
        delay_s=delay_s,
        repeated=repeated,
        bytes_per_s=bytes_per_s,
        ledger_delay_s=lots.choice((0.005, 0.05, 0.3)),
        lost_calls=lots.choice((0.0, 0.0, 0.05, 0.2)),
        faults=faults,
    )
    return replace(plan, faults=faults + _forgets(lots, members)) if lots.random() < FORGETS else plan


def _settings(lots: random.Random, few: int) -> StudySettings:
    outer = lots.random() < 1 / 6 and few >= 3  # noqa: PLR2004 - what the contract asks of an outer optimiser
    rules = ("mean", "mean", "median", "geometric_median", "mean" if outer else "norm_clipping")
    return StudySettings(
        name=STUDY,
        min_members=few,
        quorum=3 if outer else 2,
        rounds=lots.choice((2, 3, 4)),
        every_steps=1,
        rule=lots.choice(rules),
        weighting=lots.choice(("equal", "examples")),
        parts=lots.choice(("shared", "shared", "leader")),
        audit_fraction=1.0,
        silence_s=5,
        patience_s=30,
        merge_s=3,
        give_up_s=3000,
        outer=Outer(learning_rate=0.1) if outer else None,
        best=Best() if lots.random() < 1 / 4 else None,
    )


def _faults(lots: random.Random, members: tuple[str, ...]) -> Faults:
    kinds: tuple[Callable[[random.Random, tuple[str, ...]], Faults], ...] = (
        _crash,
        _crash,
        _crash,
        _partition,
        _cut,
        _disk,
        _halt,
        _skew,
        _late,
        _script,
        _liar,
        _liar,
        _liar,
    )
    found: list[AnyFault] = []
    for _ in range(lots.choice((0, 1, 2, 2, 3, 4))):
        new = lots.choice(kinds)(lots, members)
        same = [other for other in found if type(other) is type(new[0])]
        if not (same and isinstance(new[0], Liar | Late | Skew)):
            found += new
    return tuple(found)


def _spared(faults: Faults, can_spare: int) -> Faults:
    """As many of these as leave a quorum of those that go on."""
    too_many = [fault for fault in faults if _takes_one_away(fault)][can_spare:]
    return tuple(fault for fault in faults if fault not in too_many)


def _takes_one_away(fault: AnyFault) -> bool:
    """Whether rounds may have to do without a member for good."""
    return isinstance(fault, Liar) or (isinstance(fault, Finishes) and fault.contribution == "inactive")


def _window(lots: random.Random) -> tuple[float, float]:
    at_s = lots.uniform(0.5, 12.0)
    return at_s, at_s + lots.choice((0.5, 2.0, 6.0, 15.0)) * lots.uniform(0.5, 1.5)


def _crash(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, back_s = _window(lots)
    count = lots.choice((1, 1, 2, len(members)))
    loss: Loss = lots.choice(("power", "power", "killed"))
    return tuple(Crash(member, at_s, back_s, loss) for member in sorted(lots.sample(members, count)))


def _partition(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, until_s = _window(lots)
    side = tuple(sorted(lots.sample(members, lots.randint(1, len(members) - 1))))
    return (Partition(side, at_s, until_s, silent=lots.random() < 1 / 2),)


def _cut(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, until_s = _window(lots)
    source, target = lots.sample(members, 2)
    return (Cut(source, target, at_s, until_s, both_ways=lots.random() >= 1 / 2),)


def _disk(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, until_s = _window(lots)
    return (DiskFull(lots.choice(members), at_s, until_s, broken=lots.random() < 1 / 3),)


def _halt(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, until_s = _window(lots)
    count = lots.choice((1, len(members) // 2, len(members)))
    return (LedgerHalt(tuple(sorted(lots.sample(members, count))), at_s, until_s),)


def _skew(lots: random.Random, members: tuple[str, ...]) -> Faults:
    return (Skew(lots.choice(members), lots.choice((-4.0, -1.0, 1.0, 4.0))),)


def _late(lots: random.Random, members: tuple[str, ...]) -> Faults:
    return (Late(lots.choice(members[1:]), lots.uniform(0.5, 15.0)),)


def _forgets(lots: random.Random, members: tuple[str, ...]) -> Faults:
    """Node and training die together, and training makes another update; what was said may be lost."""
    member, at_s = lots.choice(members), lots.uniform(0.5, 8.0)
    back_s = at_s + lots.uniform(0.2, 4.0)
    halt = LedgerHalt((member,), max(0.0, at_s - lots.uniform(0.0, 2.0)), at_s + 0.1)
    again_s = back_s + lots.uniform(0.01, 1.0)
    died = Crash(member, at_s, back_s), TrainingDies(member, at_s + 0.001, again_s)
    return (*died, halt) if lots.random() < 1 / 2 else died


def _script(lots: random.Random, members: tuple[str, ...]) -> Faults:
    at_s, back_s = _window(lots)
    how = lots.choice(("dies", "dies", "goodbye", *get_args(Contribution)))
    member = lots.choice(members)
    if how == "dies":
        return (TrainingDies(member, at_s, back_s),)
    if how == "goodbye":
        return (SaysGoodbye(member, at_s, back_s),)
    return (Finishes(member, 0, how, at_s),)


def _liar(lots: random.Random, members: tuple[str, ...]) -> Faults:
    # Wrong bytes are what most of a node's checks are for.
    wrong: tuple[Lie, ...] = (
        "merges a part wrongly",
        "sends wrong chunks",
        "sends wrong chunks",
        "sends other models",
        "sends other models",
    )
    return (Liar(lots.choice(members[1:]), lots.choice(LIES + wrong)),)
