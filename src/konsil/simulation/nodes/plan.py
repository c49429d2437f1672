"""What goes wrong in a universe: frozen values, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Literal

from msgspec.structs import replace

from konsil.core.rules import Best, Outer, StudySettings
from konsil.simulation.nodes.disk import Loss

STUDY = "aml"
MOST_HONEST = 3
"""A roster in which the honest are more than half, with one that is not."""

FORGETS = 1 / 6
"""How often all of a member dies that is about to commit, or has."""

NAMES = ("ada", "bea", "cid", "dov", "eva")


@dataclass(frozen=True)
class Crash:
    """These members' nodes end all at once, and start again. ``loss``: what their disks lose."""

    at_s: float
    members: tuple[str, ...]
    loss: Loss
    back_s: float


@dataclass(frozen=True)
class Partition:
    """One side reaches the other no more. ``silent``: nobody is told; requests hang."""

    at_s: float
    until_s: float
    side: tuple[str, ...]
    silent: bool


@dataclass(frozen=True)
class Cut:
    """The line of two members breaks or, ``one_way``, swallows what the first says to the second."""

    at_s: float
    until_s: float
    sender: str
    receiver: str
    one_way: bool


@dataclass(frozen=True)
class DiskFull:
    """A member's disk takes nothing more. ``broken``: it fails instead of being full."""

    at_s: float
    until_s: float
    member: str
    broken: bool


@dataclass(frozen=True)
class LedgerHalt:
    """These members reach the ledger no more."""

    at_s: float
    until_s: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class Skew:
    """A member's clock is ahead of the ledger's, or behind."""

    member: str
    ahead_s: float


@dataclass(frozen=True)
class Late:
    """A member's node starts so late."""

    member: str
    at_s: float


Lie = Literal[
    "wrong part", "stale part", "wrong chunks", "wrong manifests", "withheld update", "silent leader",
    "false reports", "needless dispute", "replayed calls", "another commit", "curious",
]  # fmt: skip


@dataclass(frozen=True)
class Liar:
    """A member whose node does not keep to the protocol."""

    member: str
    lie: Lie


How = Literal["dies", "goodbye", "snapshot", "active", "inactive"]


@dataclass(frozen=True)
class Script:
    """A member's training process ends: it dies, says goodbye, or has finished; ``back_s``: 0 for never."""

    at_s: float
    member: str
    how: How
    back_s: float


Fault = Crash | Partition | Cut | DiskFull | LedgerHalt | Skew | Late | Liar | Script


@dataclass(frozen=True)
class Plan:
    """A universe before it runs.

    ``trains_s``: how long a member trains a round. ``dial_only``: members that nobody can dial.
    ``engine``: whether the local engine keeps the ledger, or a contract that all share.
    """

    seed: int
    members: tuple[str, ...]
    settings: StudySettings
    trains_s: dict[str, float]
    engine: bool = False
    dial_only: tuple[str, ...] = ()
    delay_s: float = 0.01
    repeated: float = 0.0
    bytes_per_s: float = 2e9
    slow: dict[str, float] = field(default_factory=dict)
    ledger_delay_s: float = 0.02
    lost_calls: float = 0.0
    faults: tuple[Fault, ...] = ()

    @property
    def quiet_s(self) -> float:
        """From then on nothing goes wrong any more."""
        ends = (getattr(fault, name, 0.0) for fault in self.faults for name in ("until_s", "back_s", "at_s"))
        return max(ends, default=0.0)

    @property
    def liars(self) -> frozenset[str]:
        """Members that do not keep to the protocol."""
        return frozenset(fault.member for fault in self.faults if isinstance(fault, Liar))


def draw(seed: int) -> Plan:
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
    plan = Plan(
        seed=seed,
        members=members,
        settings=settings,
        trains_s=trains_s,
        engine=lots.random() < 1 / 3,
        dial_only=members[1:3] if lots.random() < 1 / 5 else (),
        delay_s=lots.choice((0.002, 0.02, 0.1)),
        repeated=lots.choice((0.0, 0.0, 0.1)),
        bytes_per_s=lots.choice((2e9, 2e8)),
        slow={lots.choice(members): lots.choice((3.0, 10.0))} if lots.random() < 1 / 5 else {},
        ledger_delay_s=lots.choice((0.005, 0.05, 0.3)),
        lost_calls=lots.choice((0.0, 0.0, 0.05, 0.2)),
        faults=faults,
    )
    return replaced(plan, faults=faults + _forgets(lots, members)) if lots.random() < FORGETS else plan


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


def _faults(lots: random.Random, members: tuple[str, ...]) -> tuple[Fault, ...]:
    kinds = (
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
    found: list[Fault] = []
    for _ in range(lots.choice((0, 1, 2, 2, 3, 4))):
        fault = lots.choice(kinds)(lots, members)
        same = [other for other in found if type(other) is type(fault)]
        if not (same and isinstance(fault, Liar | Late | Skew)):
            found.append(fault)
    return tuple(found)


def _spared(faults: tuple[Fault, ...], can_spare: int) -> tuple[Fault, ...]:
    """As many of these as leave a quorum of those that go on."""
    too_many = [fault for fault in faults if _takes_one_away(fault)][can_spare:]
    return tuple(fault for fault in faults if fault not in too_many)


def _takes_one_away(fault: Fault) -> bool:
    """Whether rounds may have to do without a member for good: a last update goes with its node's memory."""
    return isinstance(fault, Liar) or (isinstance(fault, Script) and fault.how in {"inactive", "snapshot"})


def _window(lots: random.Random) -> tuple[float, float]:
    at_s = lots.uniform(0.5, 12.0)
    return at_s, at_s + lots.choice((0.5, 2.0, 6.0, 15.0)) * lots.uniform(0.5, 1.5)


def _crash(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, back_s = _window(lots)
    count = lots.choice((1, 1, 2, len(members)))
    loss: Loss = lots.choice(("power", "power", "killed"))
    return Crash(at_s, tuple(sorted(lots.sample(members, count))), loss, back_s)


def _partition(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, until_s = _window(lots)
    side = tuple(sorted(lots.sample(members, lots.randint(1, len(members) - 1))))
    return Partition(at_s, until_s, side, silent=lots.random() < 1 / 2)


def _cut(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, until_s = _window(lots)
    sender, receiver = lots.sample(members, 2)
    return Cut(at_s, until_s, sender, receiver, one_way=lots.random() < 1 / 2)


def _disk(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, until_s = _window(lots)
    return DiskFull(at_s, until_s, lots.choice(members), broken=lots.random() < 1 / 3)


def _halt(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, until_s = _window(lots)
    count = lots.choice((1, len(members) // 2, len(members)))
    return LedgerHalt(at_s, until_s, tuple(sorted(lots.sample(members, count))))


def _skew(lots: random.Random, members: tuple[str, ...]) -> Fault:
    return Skew(lots.choice(members), lots.choice((-4.0, -1.0, 1.0, 4.0)))


def _late(lots: random.Random, members: tuple[str, ...]) -> Fault:
    return Late(lots.choice(members[1:]), lots.uniform(0.5, 15.0))


def _forgets(lots: random.Random, members: tuple[str, ...]) -> tuple[Fault, ...]:
    """Node and training die together, and training makes another update; what was said may be lost."""
    member, at_s = lots.choice(members), lots.uniform(0.5, 8.0)
    back_s = at_s + lots.uniform(0.2, 4.0)
    halt = LedgerHalt(max(0.0, at_s - lots.uniform(0.0, 2.0)), at_s + 0.1, (member,))
    again_s = back_s + lots.uniform(0.01, 1.0)
    died = Crash(at_s, (member,), "power", back_s), Script(at_s + 0.001, member, "dies", again_s)
    return (*died, halt) if lots.random() < 1 / 2 else died


def _script(lots: random.Random, members: tuple[str, ...]) -> Fault:
    at_s, back_s = _window(lots)
    hows: tuple[How, ...] = ("dies", "dies", "goodbye", "snapshot", "active", "inactive")
    how = lots.choice(hows)
    is_last = how in {"snapshot", "active", "inactive"}
    return Script(at_s, lots.choice(members), how, 0.0 if is_last else back_s)


def _liar(lots: random.Random, members: tuple[str, ...]) -> Fault:
    lies: tuple[Lie, ...] = Lie.__args__  # type: ignore[attr-defined]
    # Wrong bytes are what most of a node's checks are for.
    wrong: tuple[Lie, ...] = (
        "wrong part",
        "wrong chunks",
        "wrong chunks",
        "wrong manifests",
        "wrong manifests",
    )
    return Liar(lots.choice(members[1:]), lots.choice(lies + wrong))
