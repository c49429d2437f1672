"""Members that break the protocol in one way each, and keep it in all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from konsil.core.round import Effect, Event, Found, Lead
from konsil.core.rules import (
    Accept,
    Alive,
    Call,
    Commit,
    Dispute,
    Enter,
    Leave,
    OpenRound,
    Publish,
    Report,
    Tick,
    Verdict,
)
from konsil.errors import KonsilError, PeerRefused, Refused
from konsil.simulation.laws import Violation
from konsil.simulation.universe.errand import Answer, Work
from konsil.simulation.universe.ledger import STUDY
from konsil.simulation.universe.models import Content, model_of, part_of, spoiled, whole
from konsil.simulation.universe.node import Node
from konsil.simulation.universe.plan import MERGES_WRONGLY
from konsil.simulation.universe.work import Works

if TYPE_CHECKING:
    from konsil.simulation.faults import Lie
    from konsil.simulation.universe.world import World

BETWEEN_S = 2.0
"""A liar speaks up after this, again and again."""

LASTS_S = 200.0

LAST_MOMENT_S = 1.0
"""Enough to merge and to publish."""


def make_node(world: World, name: str, skew_s: float) -> Node:
    """A member's node: honest, or a liar."""
    lie = world.lies.get(name)
    return Node(world, name, skew_s) if lie is None else LyingNode(world, name, skew_s, lie)


class LyingWorks(Works):
    """What a liar carries out otherwise than it should."""

    def __init__(self, node: LyingNode) -> None:
        super().__init__(node)
        self.lie = node.lie

    def led(self, part: Content, gram: str) -> tuple[Content, str]:
        """Another part than its merge gave."""
        if self.lie in MERGES_WRONGLY and part.chunks:
            return part_of((spoiled(part.chunks[0]), *part.chunks[1:])), gram
        if self.lie == "names another Gram matrix" and gram:
            return part, gram[::-1]
        return part, gram

    def perform(self, effect: Effect) -> Work:
        """Not all that is wanted is done."""
        if self.lie == "leads nothing" and isinstance(effect, Lead):
            return _for_ever()
        if self.lie == "leads at the last moment" and isinstance(effect, Lead):
            return self._late(effect)
        return super().perform(effect)

    def _late(self, effect: Lead) -> Work:
        """As late as it may be, so that all wait, and nobody can say that it led nothing."""
        current = self.node.view.open
        if current is not None:
            yield max(0.0, current.deadline_s - self.node.ledger_now_s - LAST_MOMENT_S)
        yield from super().perform(effect)


def _for_ever() -> Work:
    while True:
        yield 1000.0


class LyingNode(Node):
    """A node whose owner has changed it. ``lie``: how."""

    def __init__(self, world: World, name: str, skew_s: float, lie: Lie) -> None:
        self.lie = lie
        super().__init__(world, name, skew_s)

    def _begin(self) -> None:
        super()._begin()
        self.works = LyingWorks(self)

    def start(self) -> None:
        """Begin, and begin to talk."""
        super().start()
        self.agenda.after(BETWEEN_S, self._talk, self.life)

    # --- answering ---------------------------------------------------------------------------------

    def answer(self, peer: str, digest: str) -> Answer | None:
        """What it gives a peer, if anything, and if it is that."""
        answer = super().answer(peer, digest)
        current = self.view.open
        if self.lie == "lets others hang" and current is not None and current.phase == "merging":
            return None
        if answer is None or isinstance(answer, KonsilError):
            return answer
        if self.lie == "sends wrong chunks":
            return _spoiled(answer)
        if self.lie == "sends other models":
            return _another(answer)
        mine = (
            current is not None
            and self.name in current.commits
            and current.commits[self.name].digest == digest
        )
        part = current is not None and any(p.digest == digest for p in current.parts)
        if (self.lie == "gives its update to nobody" and mine) or (
            self.lie == "gives its parts to nobody" and part
        ):
            return PeerRefused("not_here", f"{self.name} gives nothing.")
        return answer

    def relayed(self, answer: Answer) -> Answer:
        """What it hands on."""
        if self.lie == "sends wrong chunks" and not isinstance(answer, KonsilError):
            return _spoiled(answer)
        return answer

    # --- finding -----------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Some facts become others."""
        if self.lie == "finds the opposite" and isinstance(event, Found):
            event = Found(event.at, not event.wrong)
        super().post(event)

    # --- talking -----------------------------------------------------------------------------------

    def _talk(self, life: int) -> None:
        if life != self.life or self.agenda.now_s > LASTS_S:
            return
        for call in self._lies():
            self._say(call)
        if self.lie == "reads early":
            self._read_early()
        if self.lie == "says old calls again" and self.name in self.world.ledger.last:
            self._say_again()
        self.agenda.after(BETWEEN_S * (0.5 + self.world.chance.random()), self._talk, self.life)

    def _read_early(self) -> None:
        """Ask for the updates on record while the round still collects."""
        study = self.world.ledger.study
        current = study.open
        if current is None or current.phase != "collecting" or current.attempt > 1:
            return  # in a second attempt, those of the first have been open to readers already
        for name, commit in current.commits.items():
            peer = self.world.nodes[name]
            if commit.digest == study.accepted:
                continue  # a member that stays active commits the merge again, which all may read
            if name != self.name and peer.up and isinstance(peer.answer(self.name, commit.digest), Content):
                raise Violation(
                    "updates are read once the roster is fixed", f"{name} gave its to {self.name}."
                )

    def _say(self, call: Call) -> None:
        self.world.ledger.submit(self.name, call, lambda _error: None, self.same_life())

    def _say_again(self) -> None:
        """The very call that it made last, under its old number."""
        number, call = self.world.ledger.last[self.name]
        try:
            self.world.ledger.take(self.name, call, number)
        except Refused:
            pass
        else:
            raise AssertionError("an old call was taken again")
        self._say(call)

    def _lies(self) -> Iterator[Call]:
        """What it says now besides."""
        current = self.view.open
        if current is None:
            return
        match self.lie:
            case "commits twice" if self.name in current.commits:
                other = model_of([-1.0] * self.world.plan.chunks)
                self.world.contents[other.digest] = other
                yield Commit(STUDY, current.number, self.view.accepted, other.digest, 10)
            case "says that it is alive for ever":
                yield Alive(STUDY, current.number, 0.5)
            case "ticks and flaps":
                yield Tick(STUDY)
                yield Leave(STUDY)
                yield Enter(STUDY)
            case "disputes right chunks":
                yield from self._disputes(current)
            case _:
                yield from self._lies_to_the_roster(current)

    def _lies_to_the_roster(self, current: OpenRound) -> Iterator[Call]:
        at = (STUDY, current.number, current.attempt)
        others = tuple(name for name in current.roster if name != self.name)
        match self.lie:
            case "takes its update back" if self.name in current.roster:
                yield Report(*at, (self.name,))
            case "merges wrongly and slips away" if current.dispute and current.dispute.leader == self.name:
                yield Report(*at, (self.name,))
                yield Leave(STUDY)
                yield Enter(STUDY)
            case "reports honest members" if others:
                yield Report(*at, others)
            case "accepts what it does not hold" if current.digest:
                yield Accept(*at, current.digest)
            case "says old calls again" if others:
                yield Publish(STUDY, current.number, max(1, current.attempt - 1), 0, current.base)
                yield Verdict(*at, 0, 0, wrong=True)
            case _:
                pass

    def _disputes(self, current: OpenRound) -> Iterator[Call]:
        for number, part in enumerate(current.parts):
            if part.digest and part.leader != self.name:
                chunk = self.works._span(current, number).start  # noqa: SLF001 - of the same universe
                yield Dispute(STUDY, current.number, current.attempt, number, chunk)
                return


def _another(content: Content) -> Content:
    """Something else that is whole in itself, under this one's digest."""
    chunks = tuple(spoiled(chunk) for chunk in content.chunks)
    if not content.manifest.header:
        return replace(part_of(chunks), digest=content.digest)
    return replace(whole(chunks, len(content.manifest.groups)), digest=content.digest)


def _spoiled(content: Content) -> Content:
    """The right manifest with a wrong chunk."""
    if not content.chunks:
        return content
    return Content(content.manifest, (spoiled(content.chunks[0]), *content.chunks[1:]), content.digest)
