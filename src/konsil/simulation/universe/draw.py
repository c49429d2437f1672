"""Plans from seeds: most universes are small, since bugs that need much are found by what needs little."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

from msgspec.structs import replace

from konsil.core.rules import Contribution
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
    Partition,
    Skew,
    TrainingDies,
    once_each,
)
from konsil.simulation.universe.plan import LIES, MERGES_WRONGLY, ONCE, AnyFault, Plan, Slow, Weather

_SIZES = (2,) * 2 + (3,) * 14 + (4,) * 3 + (5,)
_ROUNDS = (1,) * 16 + (2,) * 3 + (3,)
_CHUNKS = (1, 2, 3, 3, 4)
_AUDITS = (0.0, 0.3, 1.0)
_CALM = Weather(lag_s=0.2)
_WEATHERS = (
    _CALM,
    _CALM,
    _CALM,
    Weather(delay_s=0.5, lag_s=1.0),
    Weather(loss=0.05),
    Weather(delay_s=1.0, loss=0.15, again=0.1, lag_s=2.0),
)
_HORIZON_S = 30.0
"""Faults begin in about the time of a round and a half: later, small universes are over."""

_LONGEST_S = 60.0
"""... and last up to three times the silence after which a member is given up, so that some do not last so
long and others do."""

_OTHER_QUORUM = 0.15

_MORE_FAULTS = 0.45
_SAME_MEMBER = 0.3
"""Two faults at one member find more than two at two."""

_FEW_BESIDE_A_LIAR = 0.5
"""How often an honest member is away when a liar begins: where the honest are just a majority of the members
but not of a roster, a protocol is at its weakest."""

_IN_LEAGUE = 0.5
_GOES_WITH: dict[Lie, Lie] = {
    "merges a part wrongly": "finds the opposite",
    "merges wrongly and slips away": "finds the opposite",
    "finds the opposite": "merges a part wrongly",
    "disputes right chunks": "finds the opposite",
    "sends wrong chunks": "reports honest members",
}
"""How often a second liar helps the first, and how; else it does the same."""

_LOSES_ITS_UPDATE = 0.3

_FORGETS = 0.1
_UNHEARD = 0.5
"""How often a member dies that has just committed, and how often the ledger has not heard of that."""

_RESTARTS = 0.5
"""How often the node dies of a member that has finished and goes on contributing."""

_MINUTES_BETWEEN = 4
"""In a long universe: most faults last up to a minute, so the swarm has time to recover, and little more."""

_STARTS = 0.15
_DIES_FOR_GOOD = 0.3
_MIXING = 0.04
_LEADER = 0.2


def draw_plan(seed: int) -> Plan:
    """The universe of a seed.

    The honest and present are always enough for a quorum and a majority, once everything that passes has
    passed: so a round that does not end is a bug.
    """
    chance = random.Random(seed)  # noqa: S311 - a universe is to be the same every time
    members = chance.choice(_SIZES)
    plan = Plan(
        seed=seed,
        members=members,
        rounds=chance.choice(_ROUNDS),
        quorum=members // 2 + 1,
        chunks=chance.choice(_CHUNKS),
        audit=chance.choice(_AUDITS),
        rule="geometric_median" if chance.random() < _MIXING else "mean",
        parts="leader" if chance.random() < _LEADER else "shared",
        running=chance.random() >= _STARTS,
        weather=chance.choice(_WEATHERS),
    )
    return _Drawing(plan, chance).with_faults()


def draw_long(seed: int, hours: float) -> Plan:
    """A study that goes on for hours, four hospitals of which one lies, with a fault every few minutes."""
    chance = random.Random(seed)  # noqa: S311 - as above
    plan = Plan(
        seed=seed, members=4, rounds=1_000_000, quorum=3, chunks=4, weather=Weather(loss=0.01), hours=hours
    )
    drawing = _Drawing(plan, chance)
    drawing.lost = {"d"}
    drawing.faults.append(Liar("d", chance.choice(LIES)))
    kinds = (_Drawing.crash, _Drawing.partition, _Drawing.cut, _Drawing.disk_full, _Drawing.ledger_halt)
    for minute in range(0, int(hours * 60), _MINUTES_BETWEEN):
        fault = chance.choice(kinds)(drawing)
        if fault is not None:
            drawing.faults.append(_later(fault, minute * 60.0))
    return replace(plan, faults=tuple(drawing.faults))


def _later(fault: AnyFault, wait_s: float) -> AnyFault:
    """The same fault after a time."""
    moments = {
        name: getattr(fault, name) + wait_s for name in ("at_s", "back_s", "until_s") if hasattr(fault, name)
    }
    return replace(fault, **moments)


class _Drawing:
    """Draws faults until it has enough; keeps count of who may still be lost."""

    def __init__(self, plan: Plan, chance: random.Random) -> None:
        self.plan = plan
        self.chance = chance
        self.faults: list[AnyFault] = []
        self.lost: set[str] = set()
        self.hidden: set[str] = set()

    def with_faults(self) -> Plan:
        """The plan with faults: mostly one to four, sometimes none."""
        if self.chance.random() < 0.9:  # noqa: PLR2004 - nine of ten universes have faults
            self._draw()
            while self.chance.random() < _MORE_FAULTS:
                self._draw()
        if self.chance.random() < _FORGETS:
            self.faults += self._forgets()
        return replace(self.plan, faults=once_each(self.faults, ONCE), quorum=self._quorum())

    def _quorum(self) -> int:
        """Mostly a majority of the members; else up to all that stay or, where nobody lies or goes, fewer: a
        minority that decides alone may lie, or be gone, with a merge that nobody else can have.
        """
        majority = self.plan.members // 2 + 1
        if self.chance.random() >= _OTHER_QUORUM:
            return majority
        fewest = majority if self.lost else 1
        return self.chance.randint(fewest, self.plan.members - len(self.lost))

    def _draw(self) -> None:
        fault = self.chance.choice(_FAULTS)(self)
        if fault is not None:
            self.faults.append(fault)

    def _member(self) -> str:
        last = self.faults[-1] if self.faults else None
        if (
            isinstance(last, Crash | TrainingDies | Finishes | DiskFull)
            and self.chance.random() < _SAME_MEMBER
        ):
            return last.member
        return self.chance.choice(self.plan.names)

    def _span(self) -> tuple[float, float]:
        at_s = self.chance.uniform(0.0, _HORIZON_S)
        return round(at_s, 3), round(at_s + self.chance.uniform(0.5, _LONGEST_S), 3)

    def _may_be_lost(self, name: str) -> bool:
        """Whether this member may lie or be gone for good: more than half stay honest and there.

        Without its proposer a study never begins: that is known, and no bug.
        """
        if name in self.lost or (not self.plan.running and name == self.plan.names[0]):
            return False
        if 2 * (len(self.lost) + 1) >= self.plan.members or not self._some_can_be_dialled(name):
            return False
        self.lost.add(name)
        return True

    def _some_can_be_dialled(self, without: str) -> bool:
        """Whether an honest member is left that all can dial, and that relays."""
        return bool(set(self.plan.names) - self.lost - self.hidden - {without})

    def crash(self) -> AnyFault | None:
        """A node dies."""
        member, (at_s, back_s) = self._member(), self._span()
        for_good = self.chance.random() < _DIES_FOR_GOOD and self._may_be_lost(member)
        return Crash(member, at_s, 0.0 if for_good else back_s)

    def training_dies(self) -> AnyFault | None:
        """A training process dies."""
        member, (at_s, back_s) = self._member(), self._span()
        for_good = self.chance.random() < _DIES_FOR_GOOD and self._may_be_lost(member)
        return TrainingDies(member, at_s, 0.0 if for_good else back_s)

    def finishes(self) -> AnyFault | None:
        """A training process has enough."""
        member = self._member()
        contribution: Contribution = self.chance.choice(get_args(Contribution))
        if contribution == "inactive" and not self._may_be_lost(member):
            return None
        if contribution != "inactive" and self.chance.random() < _RESTARTS:
            at_s, back_s = self._span()
            self.faults.append(Crash(member, at_s, back_s))
            other = self.chance.choice(self.plan.names)
            if other != member and self._may_be_lost(other):
                self.faults.append(Crash(other, self._span()[0]))
        self.plan = replace(self.plan, rounds=max(2, self.plan.rounds))  # something is to come after it
        return Finishes(member, self.chance.randint(1, self.plan.rounds - 1), contribution)

    def late(self) -> AnyFault | None:
        """A member comes late; of a study that has not begun only."""
        return None if self.plan.running else Late(self._member(), self._span()[0])

    def slow(self) -> AnyFault | None:
        """A member trains long."""
        return Slow(self._member(), round(self.chance.uniform(2.0, 20.0), 1))

    def skew(self) -> AnyFault | None:
        """A clock is wrong, by seconds or by minutes."""
        most_s = self.chance.choice((3.0, 15.0, 300.0))
        return Skew(self._member(), round(self.chance.uniform(-most_s, most_s), 1))

    def dials_out(self) -> AnyFault | None:
        """A member behind a firewall."""
        member = self._member()
        if not self._some_can_be_dialled(member):
            return None
        self.hidden.add(member)
        return DialsOut(member)

    def partition(self) -> AnyFault | None:
        """Some are cut off from the rest."""
        count = self.chance.randint(1, self.plan.members - 1)
        at_s, until_s = self._span()
        return Partition(tuple(sorted(self.chance.sample(self.plan.names, count))), at_s, until_s)

    def cut(self) -> AnyFault | None:
        """One way between two is cut."""
        source, target = self.chance.sample(self.plan.names, 2)
        return Cut(source, target, *self._span())

    def disk_full(self) -> AnyFault | None:
        """A disk is full."""
        return DiskFull(self._member(), *self._span())

    def ledger_halt(self) -> AnyFault | None:
        """The ledger halts, for some or for all."""
        count = self.chance.randint(0, self.plan.members - 1)
        at_s, until_s = self._span()
        return LedgerHalt(tuple(sorted(self.chance.sample(self.plan.names, count))), at_s, until_s)

    def liar(self) -> AnyFault | None:
        """A member lies; some lies need a rule that mixes, and most do more harm where few are there."""
        member, lie = self.chance.choice(self.plan.names), self.chance.choice(LIES)
        if not self._may_be_lost(member):
            return None
        first = next((fault.lie for fault in self.faults if isinstance(fault, Liar)), None)
        if first is not None and self.chance.random() < _IN_LEAGUE:
            lie = _GOES_WITH.get(first, first)
        if lie == "names another Gram matrix":
            self.plan = replace(self.plan, rule="geometric_median")
        if lie in MERGES_WRONGLY:  # who audits less may miss it: that is no bug
            self.plan = replace(self.plan, audit=1.0)
        if self.chance.random() < _FEW_BESIDE_A_LIAR:
            away, loses = self.chance.sample([name for name in self.plan.names if name != member], 2)
            self.faults.append(self._away_early(away))
            if self.chance.random() < _LOSES_ITS_UPDATE:
                self.faults += self._loses_its_update(loses)
        return Liar(member, lie)

    def _loses_its_update(self, member: str) -> tuple[AnyFault, AnyFault]:
        """Node and training die together, when the round may have begun to merge."""
        at_s = round(self.chance.uniform(5.0, 25.0), 3)
        back_s = round(at_s + self.chance.uniform(15.0, 45.0), 3)
        return Crash(member, at_s, back_s), TrainingDies(member, at_s, back_s)

    def _forgets(self) -> list[AnyFault]:
        """All of a member dies about when it commits, and it makes another update: what it had said may never
        have reached the ledger, be on its way, or stand there. Often it cannot be done without.
        """
        member = self.chance.choice(self.plan.names)
        at_s = round(self.chance.uniform(2.0, 9.0), 3)
        back_s = round(at_s + self.chance.uniform(0.2, 20.0), 3)
        faults: list[AnyFault] = [Crash(member, at_s, back_s), TrainingDies(member, at_s, back_s)]
        if self.chance.random() < _UNHEARD:
            faults.append(LedgerHalt((member,), round(self.chance.uniform(0.0, 2.0), 3), at_s + 0.5))
        other = self.chance.choice(self.plan.names)
        if other != member and self._may_be_lost(other):
            faults.append(Crash(other, round(self.chance.uniform(0.0, 20.0), 3)))
        return faults

    def _away_early(self, member: str) -> AnyFault:
        at_s = round(self.chance.uniform(0.0, 3.0), 3)
        back_s = round(at_s + self.chance.uniform(15.0, 45.0), 3)
        if self.chance.random() < 0.5:  # noqa: PLR2004 - one or the other
            return Crash(member, at_s, back_s)
        return LedgerHalt((member,), at_s, back_s)


_FAULTS: tuple[Callable[[_Drawing], AnyFault | None], ...] = (
    _Drawing.crash,
    _Drawing.crash,
    _Drawing.training_dies,
    _Drawing.finishes,
    _Drawing.late,
    _Drawing.slow,
    _Drawing.skew,
    _Drawing.dials_out,
    _Drawing.partition,
    _Drawing.cut,
    _Drawing.disk_full,
    _Drawing.ledger_halt,
    _Drawing.liar,
    _Drawing.liar,
    _Drawing.liar,
    _Drawing.liar,
)
