"""Who reaches whom, and how long it takes: messages are delayed, lost, doubled, cut off, and relayed."""

from __future__ import annotations

import random
from collections.abc import Collection

from konsil.simulation.faults import Cut, DialsOut, LedgerHalt, Partition
from konsil.simulation.universe.agenda import Agenda
from konsil.simulation.universe.plan import Plan

AGAIN_S = 3.0
"""What a lost message costs: the line notices, and sends it again."""

QUICK_S = 0.05
"""Where messages take no longer than this, an answer takes no time at all: nothing happens on its way."""

_ASTRAY = 0.5

_NEVER = float("-inf")


class Network:
    """Links between members, and from members to the ledger. ``quick``: whether answers take no
    time; ``troubled``: whether some members may not reach others.
    """

    def __init__(self, plan: Plan, agenda: Agenda, chance: random.Random) -> None:
        self._agenda = agenda
        self._chance = chance
        weather = plan.weather
        self._delay_s, self._loss, self._again = weather.delay_s, weather.loss, weather.again
        self._lag_s = weather.lag_s
        self._hidden = {fault.member for fault in plan.faults if isinstance(fault, DialsOut)}
        self._partitions = [fault for fault in plan.faults if isinstance(fault, Partition)]
        self._cuts = [fault for fault in plan.faults if isinstance(fault, Cut)]
        self._halts = [fault for fault in plan.faults if isinstance(fault, LedgerHalt)]
        self.troubled = bool(self._hidden or self._partitions or self._cuts)
        self._ledger_troubled = bool(self._partitions or self._halts)
        self.quick = self._delay_s <= QUICK_S and not self._loss

    # --- between members -------------------------------------------------------------------------

    def passes(self, source: str, target: str) -> bool:
        """Whether a message from one gets to the other now, over a connection of their own."""
        if not self.troubled:
            return True
        now_s = self._agenda.now_s
        if source in self._hidden and target in self._hidden:
            return False
        for cut in self._cuts:
            if (cut.source, cut.target) == (source, target) and cut.at_s <= now_s < cut.until_s:
                return False
        return all(
            (source in partition.members) == (target in partition.members)
            for partition in self._partitions
            if partition.at_s <= now_s < partition.until_s
        )

    def connected(self, one: str, other: str) -> bool:
        """Whether both ways are open."""
        return self.passes(one, other) and self.passes(other, one)

    def way(
        self, source: str, target: str, up: Collection[str], tried: Collection[str] = ()
    ) -> tuple[str, ...]:
        """The members that a request passes through, the target last; () if there is no way.

        Args:
            source: who asks.
            target: who is asked.
            up: whose nodes run.
            tried: relays that did not help.
        """
        if target not in up:
            return ()
        if not self.troubled or self.connected(source, target):
            return (target,)
        for relay in sorted(up):
            if relay in {source, target} or relay in tried:
                continue
            if self.connected(source, relay) and self.connected(relay, target):
                return relay, target
        return ()

    def delay_s(self, hops: int) -> float:
        """How long a message is on its way."""
        wait_s: float = self._chance.random() * self._delay_s * hops
        if self._loss and self._chance.random() < self._loss:
            wait_s += AGAIN_S * self._chance.random()
        return wait_s

    def doubled(self) -> bool:
        """Whether a message comes twice."""
        return bool(self._again) and self._chance.random() < self._again

    def lost(self) -> bool:
        """Whether an answer never comes."""
        return bool(self._loss) and self._chance.random() < self._loss

    def astray(self) -> bool:
        """Whether what a node had sent when it died never comes."""
        return self._chance.random() < _ASTRAY

    # --- to the ledger ---------------------------------------------------------------------------

    def ledger_away_until_s(self, member: str) -> float:
        """Until when the ledger is out of a member's reach; the past if it is not.

        A partition takes the ledger away from its members, who are the fewer or the more.
        """
        if not self._ledger_troubled:
            return _NEVER
        until_s, now_s = _NEVER, self._agenda.now_s
        for halt in self._halts:
            if halt.at_s <= now_s < halt.until_s and (not halt.members or member in halt.members):
                until_s = max(until_s, halt.until_s)
        for partition in self._partitions:
            if member in partition.members and partition.at_s <= now_s < partition.until_s:
                until_s = max(until_s, partition.until_s)
        return until_s

    def lag_s(self) -> float:
        """How long it takes until a member hears of an entry."""
        return self._chance.random() * self._lag_s
