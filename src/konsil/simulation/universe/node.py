"""One member's node: the real round machine, what it carries out, its memory, its disk, and how it dies."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from konsil.core.round import (
    Cancel,
    Done,
    Effect,
    Event,
    Failed,
    FinishWanted,
    Held,
    LedgerTime,
    Looked,
    NodeRound,
    failed,
    stage,
    step,
    to_hold,
)
from konsil.core.rules import Call, Study, is_over, readable
from konsil.errors import KonsilError, PeerRefused, PeerUnreachable, UpdatesMissing
from konsil.simulation.universe.disk import Disk
from konsil.simulation.universe.errand import DOING, Answer, Ask, Errand, Want
from konsil.simulation.universe.ledger import BEGIN_S, STUDY
from konsil.simulation.universe.models import Content
from konsil.simulation.universe.work import Works, checked

if TYPE_CHECKING:
    from konsil.simulation.universe.training import Training
    from konsil.simulation.universe.world import World

_LOOKED = Looked()

RESET_S = 0.5
"""A node that dies resets its connections: who waited for it hears of that soon."""

HANGS_S = 120.0
"""How long an answer is waited for that does not come, as in ``node.pull``."""

CATCH_UP_S = 2.0
"""How far behind its peers on the ledger a node may be before it refuses, as in ``node.service``."""


class Node:
    """``up``: whether it runs; ``life``: how many times it has begun; ``view``: the study as it knows it;
    ``quick``: whether what it does by itself takes no time.
    """

    __deletable__ = ("works",)

    def __init__(self, world: World, name: str, skew_s: float) -> None:
        self.world = world
        self.agenda = world.agenda
        self.name = name
        self.skew_s = skew_s
        self.quick = world.is_quick(name)
        full = [(fault.at_s, fault.until_s) for fault in world.disk_faults(name)]
        self.disk = Disk(world.agenda, full, quick=self.quick and not full)
        self.training: Training | None = None
        self.up = False
        self.life = 0
        self._hearing = False
        self._begin()

    def _begin(self) -> None:
        self.state = NodeRound(me=self.name, study=STUDY)
        self.view: Study = self.world.ledger.study
        self.models: dict[str, Content] = {}
        self.works = Works(self)
        self.errands: dict[Effect, Errand] = {}
        self.time = LedgerTime()
        self._wake_s = self._alarm_s = math.inf
        self._readable: dict[str, frozenset[str]] = {}

    # --- life and death ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what the ledger and the disk say."""
        self._begin()
        self.up = True
        self.life += 1
        self._take_up_farewell()
        model = self.disk.models.get(self.view.accepted)
        if model is not None:
            self.hold(model)
            self.post(Held(model.digest))
        else:
            self.post(_LOOKED)

    def _take_up_farewell(self) -> None:
        farewell = self.disk.farewell
        if farewell is None or is_over(self.view):
            return
        update = farewell.update
        if update is not None and update.digest in self.disk.models:
            self.hold(self.disk.models[update.digest])
            self.post(update)
        self.post(FinishWanted(farewell.contribution))

    def crash(self) -> None:
        """Die on the spot: what is not on the disk is gone."""
        self.up = False
        self.life += 1
        for errand in self.errands.values():
            errand.abandon()
        self.errands = {}  # and with them what was being written: it was not there yet

    def end(self) -> None:
        """Let go of what holds on to this node, once its universe is over."""
        self.errands.clear()
        self.training = None
        del self.works

    @property
    def own_s(self) -> float:
        """What its clock shows, right or wrong."""
        return BEGIN_S + self.agenda.now_s + self.skew_s

    @property
    def ledger_now_s(self) -> float:
        """What it thinks that the ledger's time is."""
        return self.time.now_s(self.own_s)

    # --- the machine -------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Tell the machine a fact and carry out what it wants."""
        now_s = self.ledger_now_s
        self.state, effects, wake_s = step(self.state, event, self.view, now_s)
        for effect in effects:
            self._carry_out(effect)
        if wake_s != self._wake_s:
            self._wake_s = wake_s
            self._set_alarm(wake_s - now_s)

    def _set_alarm(self, wait_s: float) -> None:
        """Wake up after this time; an alarm that comes before is set anew then."""
        when_s = self.agenda.now_s + wait_s + 0.001
        if when_s < self._alarm_s:
            self._alarm_s = when_s
            self.agenda.at(when_s, self._woken, when_s, self.life)

    def _woken(self, when_s: float, life: int) -> None:
        if self.life != life or self._alarm_s != when_s:
            return
        self._alarm_s, wait_s = math.inf, self._wake_s - self.ledger_now_s
        if wait_s > 0:
            self._set_alarm(wait_s)
        else:
            self._wake_s = math.inf
            self.post(_LOOKED)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Cancel):
            errand = self.errands.pop(effect.effect, None)
            if errand is not None:
                errand.abandon()
            return
        errand = Errand(effect, self.works.perform(effect), self.life)
        self.errands[effect] = errand
        self.agenda.soon(self._go_on, errand)

    def _go_on(self, errand: Errand, value: Any = None, error: KonsilError | None = None) -> None:
        """Let an errand run up to what it waits for next."""
        if errand.over:
            return
        errand.running = True
        try:
            want = errand.work.send(value) if error is None else errand.work.throw(error)
        except StopIteration:
            self._end(errand, Done(errand.effect))
        except KonsilError as raised:
            self._does_not_succeed(errand, raised)
        else:
            errand.running = False
            self._wait_for(errand, want)

    def _does_not_succeed(self, errand: Errand, problem: KonsilError) -> None:
        self.world.story(
            lambda: f"{self.name} does not succeed in {DOING[type(errand.effect)]}: {problem.what}"
        )
        self.world.watch.failed(self.name, errand.effect, problem, self)
        self._end(errand, failed(errand.effect, problem))

    @property
    def stage(self) -> str:
        """What it is doing, in a word or two."""
        return stage(self.state, self.view) if self.up else "down"

    def _end(self, errand: Errand, event: Done | Failed) -> None:
        errand.over = True
        if self.errands.get(errand.effect) is errand:
            del self.errands[errand.effect]
            self.post(event)

    def _wait_for(self, errand: Errand, want: Want) -> None:
        if isinstance(want, float):
            self.agenda.after(want, self._go_on, errand)
        elif isinstance(want, list):
            errand.answers, errand.missing = [None] * len(want), len(want)
            for place, ask in enumerate(want):
                self._ask(errand, place, ask)
            if not want:
                self.agenda.soon(self._go_on, errand, [])
        else:
            self._submit(errand, want)  # type: ignore[arg-type]

    def _submit(self, errand: Errand, call: Call) -> None:
        sent_s = self.own_s
        self.world.ledger.submit(
            self.name, call, lambda error: self._told(errand, sent_s, error), self.same_life()
        )

    def same_life(self) -> Callable[[], bool]:
        """Tells later whether this node has not died since."""
        life = self.life
        return lambda: self.life == life

    def _told(self, errand: Errand, sent_s: float, error: KonsilError | None) -> None:
        if errand.over:
            return
        if error is None:
            self.time = self.time.answered(sent_s, self.world.ledger.state.now_s)
        self._sees_more()  # how the call ended is the machine's next event: it looks then
        self._go_on(errand, None, error)

    # --- the ledger --------------------------------------------------------------------------------

    def hear(self) -> None:
        """The ledger moved: this node hears of it in its own time."""
        if self.up and not self._hearing:
            self._hearing = True
            self.agenda.after(self.world.network.lag_s(), self._news)

    def _news(self) -> None:
        away_s = self.world.network.ledger_away_until_s(self.name)
        if away_s > self.agenda.now_s:
            self.agenda.at(away_s, self._news)
            return
        self._hearing = False
        if self.up:
            self.look()

    def look(self) -> None:
        """See what the ledger says now."""
        if self._sees_more():
            self.post(_LOOKED)
            self._let_go()

    def _sees_more(self) -> bool:
        """Whether the study has changed since it looked last."""
        ledger = self.world.ledger
        if self.view is ledger.study:
            return False
        self.view = ledger.study
        self.time = self.time.heard(ledger.state.now_s, self.own_s)
        self._readable = {}
        return True

    # --- models ------------------------------------------------------------------------------------

    def hold(self, model: Content) -> None:
        """Keep a model in memory, for peers too."""
        self.models[model.digest] = model
        self.world.contents.setdefault(model.digest, model)

    def _let_go(self) -> None:
        keep = to_hold(self.state, self.view)
        self.works.let_go()
        for digest in [digest for digest in self.models if digest not in keep]:
            if digest not in self.works.parts:
                del self.models[digest]

    # --- asking ------------------------------------------------------------------------------------

    def _ask(self, errand: Errand, place: int, ask: Ask) -> None:
        way = self.world.network.way(self.name, ask.peer, self.world.up)
        errand.open[ask.peer] = errand.open.get(ask.peer, 0) + 1
        if not way:
            nobody = PeerUnreachable(f"There is no way from {self.name} to {ask.peer}.")
            self.agenda.after(ask.away_s, self._answered, errand, place, ask, nobody)
            return
        wait_s = self.world.network.delay_s(len(way))
        self.agenda.after(wait_s, self._arrives, errand, place, ask, way, self.agenda.now_s + CATCH_UP_S, ())

    def _arrives(
        self,
        errand: Errand,
        place: int,
        ask: Ask,
        way: tuple[str, ...],
        until_s: float,
        tried: tuple[str, ...],
    ) -> None:
        if errand.over:
            return
        world, peer = self.world, self.world.nodes[ask.peer]
        if not (world.up.issuperset(way) and self._open(way)):
            reset = PeerUnreachable(f"The line from {self.name} to {ask.peer} broke.")
            self.agenda.after(RESET_S, self._answered, errand, place, ask, reset)
            return
        answer = peer.answer(self.name, ask.digest)
        if answer is None:  # it lets the asker hang
            hung = PeerUnreachable(f"{ask.peer} does not answer.")
            self.agenda.after(HANGS_S, self._answered, errand, place, ask, hung)
        elif isinstance(answer, PeerRefused) and self.agenda.now_s < until_s:
            self.agenda.after(RESET_S, self._arrives, errand, place, ask, way, until_s, tried)
        else:
            if len(way) > 1:
                answer = world.nodes[way[0]].relayed(answer)
                if self._asks_another_relay(errand, place, ask, answer, (*tried, way[0])):
                    return
            if world.network.quick:
                self._answered(errand, place, ask, answer)
            else:
                wait_s = world.network.delay_s(len(way))
                self.agenda.after(wait_s, self._answered, errand, place, ask, answer)

    def _asks_another_relay(
        self, errand: Errand, place: int, ask: Ask, answer: Answer, tried: tuple[str, ...]
    ) -> bool:
        """Where what came through a relay is no answer, or not the right one, as in ``node.pull``."""
        way = self.world.network.way(self.name, ask.peer, self.world.up, tried)
        if len(way) <= 1:
            return False
        try:
            checked(answer, ask.digest)
        except KonsilError:
            wait_s = self.world.network.delay_s(2 * len(way))
            self.agenda.after(wait_s, self._arrives, errand, place, ask, way, 0.0, tried)
            return True
        return False

    def _open(self, way: tuple[str, ...]) -> bool:
        network = self.world.network
        return not network.troubled or all(network.connected(*p) for p in pairwise((self.name, *way)))

    def _answered(self, errand: Errand, place: int, ask: Ask, answer: Answer) -> None:
        if errand.over or errand.answers[place] is not None:
            return
        errand.open[ask.peer] -= 1
        errand.answers[place] = answer
        errand.missing -= 1
        if not errand.missing:
            self._go_on(errand, errand.answers)

    def blame(self, errand: Errand, roster: tuple[str, ...]) -> None:
        """Say whose answers an errand waits for, before the attempt is over, as ``node.merging`` does."""
        if errand.over:
            return
        others = {name for name in roster if name != self.name and self._reaches(name)}
        hanging = {name for name, count in errand.open.items() if count} & others
        if not hanging or (hanging == others and len(others) > 1):
            return  # slow is not dead, and where everybody hangs the own line is to blame
        problem = UpdatesMissing(hanging, f"{', '.join(sorted(hanging))} lets a part hang.")
        self.world.story(lambda: f"{self.name} gives up {DOING[type(errand.effect)]}: {problem.what}")
        errand.abandon()
        self._end(errand, failed(errand.effect, problem))

    def _reaches(self, name: str) -> bool:
        return bool(self.world.network.way(self.name, name, self.world.up))

    # --- answering ---------------------------------------------------------------------------------

    def answer(self, peer: str, digest: str) -> Answer | None:
        """What this node gives a peer; None if it never answers."""
        allowed = self._readable.get(peer)
        if allowed is None:
            allowed = self._readable[peer] = readable(self.view, peer)
        found = self.models.get(digest) or self.disk.models.get(digest)
        if digest not in allowed or found is None:
            return PeerRefused("not_here", f"{self.name} does not have {digest[:8]}, or not for {peer}.")
        return found

    def relayed(self, answer: Answer) -> Answer:
        """What this node hands on of another's answer."""
        return answer
