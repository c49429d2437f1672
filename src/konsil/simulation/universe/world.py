"""A universe: members, their nodes and training, a network, disks and a ledger, from a plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from konsil.simulation.faults import (
    Crash,
    Cut,
    DiskFull,
    Finishes,
    Late,
    LedgerHalt,
    Partition,
    Skew,
    TrainingDies,
)
from konsil.simulation.laws import Violation
from konsil.simulation.sentences import begins, ends
from konsil.simulation.universe.agenda import Agenda
from konsil.simulation.universe.ledger import PATIENCE_S, Ledger, initial_model
from konsil.simulation.universe.liars import make_node
from konsil.simulation.universe.models import Content, Merges
from konsil.simulation.universe.network import Network
from konsil.simulation.universe.node import Node
from konsil.simulation.universe.plan import Plan, Slow
from konsil.simulation.universe.sentences import BEYOND
from konsil.simulation.universe.training import Training
from konsil.simulation.universe.watch import Watch

BOUND_S = 5.0 * PATIENCE_S
"""How long a round may take once all that passes has passed. Most take as long as their training; the longest
come from liars that let others hang while few are there, and time to merge doubles with each attempt."""

EVENTS_AT_ONCE, EVENTS_A_SECOND = 100_000, 300
"""At first, and each second: a hundred times what a universe takes, and three times what ten members take
that begin a round every few seconds. A machine that spins shows here; a long time in which little happens,
such as a fault of a day, does not."""


class World:
    """``up``: whose nodes run. ``contents``: everything that anybody ever held, by its digest."""

    __deletable__ = ("ledger", "watch")  # compiled classes take this literally

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None) -> None:
        """Lay a universe out. ``tell``: gets its story, sentence by sentence."""
        self.plan = plan
        self.chance = random.Random(plan.seed * 2 + 1)  # noqa: S311 - a universe is to be the same every time
        self.agenda = Agenda()
        self.lies = plan.liars
        self.network = Network(plan, self.agenda, self.chance)
        self.merges = Merges()
        model = initial_model(plan.chunks)
        self.contents: dict[str, Content] = {model.digest: model}
        self._tell = tell
        self.watch = Watch(self)
        self.ledger = Ledger(plan, self.agenda, self.network, self.watch.taken)
        self.ledger.moved = self._moved
        self.up: set[str] = set()
        self._healed_s = plan.healed_s
        self.limit_s = BOUND_S
        self.longest_s = 0.0
        skews = {fault.member: fault.ahead_s for fault in plan.faults if isinstance(fault, Skew)}
        self.nodes = {name: make_node(self, name, skews.get(name, 0.0)) for name in plan.names}
        for node in self.nodes.values():
            node.training = self._training(node)
        self._schedule(model)

    def is_quick(self, name: str) -> bool:
        """Whether a node need not take time over what it does by itself: it never dies in the midst of it."""
        return not any(isinstance(fault, Crash) and fault.member == name for fault in self.plan.faults)

    def disk_faults(self, name: str) -> Iterator[DiskFull]:
        """When a member's disk is full."""
        return (fault for fault in self.plan.faults if isinstance(fault, DiskFull) and fault.member == name)

    def _training(self, node: Node) -> Training:
        slow, rounds, contribution = 1.0, float("inf"), "inactive"
        for fault in self.plan.faults:
            if isinstance(fault, Slow) and fault.member == node.name:
                slow = fault.times
            elif isinstance(fault, Finishes) and fault.member == node.name:
                rounds, contribution = float(fault.rounds), fault.contribution
        return Training(node, slow, rounds, contribution)  # type: ignore[arg-type]

    # --- the story ---------------------------------------------------------------------------------

    def story(self, sentence: Callable[[], str]) -> None:
        """Tell what happened, if anybody listens."""
        if self._tell is not None:
            self._tell(f"{self.agenda.now_s:8.3f} s  {sentence()}")

    # --- what the plan says ------------------------------------------------------------------------

    def _schedule(self, model: Content) -> None:
        late = {fault.member: fault.at_s for fault in self.plan.faults if isinstance(fault, Late)}
        for node in self.nodes.values():
            if self.plan.running:
                node.disk.models[model.digest] = model
            self.agenda.at(0.0, self._starts, node)
            self.agenda.at(late.get(node.name, 0.0), self._trains, node)
        for fault in self.plan.faults:
            match fault:
                case Crash(member=member, at_s=at_s, back_s=back_s):
                    self.agenda.at(at_s, self._dies, self.nodes[member])
                    if back_s:
                        self.agenda.at(back_s, self._starts, self.nodes[member])
                case TrainingDies(member=member, at_s=at_s, back_s=back_s):
                    self.agenda.at(at_s, self._training_dies, self.nodes[member])
                    if back_s:
                        self.agenda.at(back_s, self._trains, self.nodes[member])
                case Partition() | Cut() | DiskFull() | LedgerHalt():
                    self.agenda.at(fault.at_s, self.story, lambda fault=fault: begins(fault, BEYOND))
                    self.agenda.at(fault.until_s, self.story, lambda fault=fault: ends(fault))
                case _:
                    pass

    def _starts(self, node: Node) -> None:
        if not node.up and not self._gone(node.name, Crash):
            self.story(lambda: f"{node.name}'s node starts")
            self.up.add(node.name)
            node.start()
            if node.training is not None and node.training.alive:
                node.training.found_node()

    def _dies(self, node: Node) -> None:
        if node.up:
            self.story(lambda: f"{node.name}'s node dies")
            self.up.discard(node.name)
            node.crash()
            if node.training is not None:
                node.training.lost_node()

    def _trains(self, node: Node) -> None:
        training = node.training
        if training is None or training.alive or training.finished or self._gone(node.name, TrainingDies):
            return
        self.story(lambda: f"{node.name}'s training starts")
        training.start()

    def _training_dies(self, node: Node) -> None:
        if node.training is not None and node.training.alive:
            self.story(lambda: f"{node.name}'s training dies")
            node.training.die()

    def _gone(self, name: str, kind: type[Crash | TrainingDies]) -> bool:
        """Whether it died for good by now."""
        return any(
            isinstance(fault, kind)
            and fault.member == name
            and not fault.back_s
            and fault.at_s < self.agenda.now_s
            for fault in self.plan.faults
        )

    def _moved(self) -> None:
        for node in self.nodes.values():
            node.hear()

    def round_begins(self) -> None:
        """A round was accepted: the next one has its time anew."""
        self.longest_s = max(self.longest_s, self.agenda.now_s - (self.limit_s - BOUND_S))
        self.limit_s = max(self._healed_s, self.agenda.now_s) + BOUND_S

    def end(self) -> None:
        """Let go of each other, so that memory is free at once: nobody has to look for what holds itself."""
        self.agenda.clear()
        for node in self.nodes.values():
            node.end()
        self.nodes.clear()
        del self.ledger, self.watch

    # --- running -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the study is over and everybody was told.

        Raises:
            Violation: an invariant does not hold.
        """
        agenda, ledger, events = self.agenda, self.ledger, 0
        self.limit_s = self._healed_s + BOUND_S
        while agenda.goes_on():
            if ledger.over and self._over():
                self.watch.at_the_end()
                return
            events += 1
            if events > EVENTS_AT_ONCE and events > EVENTS_AT_ONCE + EVENTS_A_SECOND * agenda.now_s:
                raise Violation("rounds end", f"something spins: {events} events in {agenda.now_s:.0f} s.")
            if agenda.now_s > self.limit_s:
                break
        self.watch.out_of_time()

    def _over(self) -> bool:
        return all(self._waits_for_nothing(node) for node in self.nodes.values())

    def _waits_for_nothing(self, node: Node) -> bool:
        training = node.training
        if training is None or training.served or not training.alive or node.name in self.lies:
            return True
        return not node.up and self._gone(node.name, Crash)
