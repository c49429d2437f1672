"""What a node carries out, effect by effect, as ``node.study``, ``node.merging`` and ``node.bench`` do."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from konsil.core.digest import part_range
from konsil.core.round import (
    Deliver,
    Effect,
    Fetch,
    Found,
    Held,
    Lead,
    PartMerged,
    Probe,
    Recompute,
    Submit,
    Suspected,
    audits,
    blamed_after_s,
    durable_before,
    promise_of,
    to_keep,
)
from konsil.core.rules import Commitment, OpenRound, weights_of
from konsil.errors import (
    DigestMismatch,
    KonsilError,
    MergeMismatch,
    PeerUnreachable,
    StudyError,
    UpdatesMissing,
)
from konsil.simulation.universe.errand import Answer, Ask, Work
from konsil.simulation.universe.ledger import MERGE_S
from konsil.simulation.universe.models import Content, Merged, part_of, whole

if TYPE_CHECKING:
    from konsil.simulation.universe.node import Node

MERGING_S = 0.05
"""What merging a part takes."""

GRACE_S = max(2.0, 0.2 * MERGE_S)
"""How long an unreachable member is waited for, as in ``node.merging``."""

Updates = Generator[Sequence[Ask], list[Answer], list[Content]]


class Bench(NamedTuple):
    """What defines a merge: the round with its roster, the merge weights, and the rule."""

    current: OpenRound
    weights: dict[str, int]
    rule: str


class Works:
    """``parts``: what this node merged for the open round, by group digest."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.parts: dict[str, Content] = {}
        self._of: tuple[int, tuple[str, ...]] = (0, ())
        self._weights: tuple[dict[str, Commitment], dict[str, int]] = ({}, {})

    def let_go(self) -> None:
        """Forget what belongs to a round that is over."""
        current = self.node.view.open
        if self._of[0] and (current is None or current.number != self._of[0]):
            self.parts, self._of = {}, (0, ())

    def perform(self, effect: Effect) -> Work:
        """An effect as work."""
        match effect:
            case Submit():
                return self._submit(effect)
            case Fetch():
                return self._fetch(effect)
            case Lead():
                return self._lead(effect)
            case Recompute():
                return self._recompute(effect)
            case Probe():
                return self._probe(effect)
            case Deliver():
                return self._deliver(effect)
            case _:
                raise TypeError(effect)

    # --- the ledger --------------------------------------------------------------------------------

    def _submit(self, effect: Submit) -> Work:
        node, call = self.node, effect.call
        for digest in durable_before(call):
            model = node.models.get(digest)
            if model is not None:
                yield from node.disk.save(model, to_keep(node.state, node.view))
            elif digest not in node.disk.models:
                raise StudyError(f"The model {digest[:8]} is not at this node (yet).")
        promise = promise_of(call)
        if promise is not None:
            yield from node.disk.promise(promise)
        node.world.watch.says(node.name, call, node)
        yield call

    # --- the open round ----------------------------------------------------------------------------

    def _current(self, effect: Lead | Recompute | Probe) -> Bench:
        current = self.node.view.open
        at = (current.number, current.attempt) if current is not None else (0, 0)
        if current is None or at != (effect.round, effect.attempt) or current.phase != "merging":
            raise StudyError(f"Attempt {effect.attempt} of round {effect.round} is not being merged here.")
        return self._bench(current)

    def _bench(self, current: OpenRound) -> Bench:
        """What the merge of this roster is made of, whatever the ledger says later."""
        roster = tuple(current.commits[name].digest for name in current.roster)
        if self._of != (current.number, roster):
            self.parts, self._of = {}, (current.number, roster)
        view = self.node.view
        if self._weights[0] is not current.commits:
            self._weights = current.commits, weights_of(view)
        return Bench(current, self._weights[1], view.settings.rule)

    def _in_time(self, effect: Effect, current: OpenRound) -> None:
        """From the second attempt on, say who lets this hang before the attempt is over."""
        node = self.node
        wait_s = blamed_after_s(node.view, node.ledger_now_s, GRACE_S)
        if wait_s is not None:
            node.agenda.after(wait_s, node.blame, node.errands[effect], current.roster)

    def _lead(self, effect: Lead) -> Work:
        bench = self._current(effect)
        self._in_time(effect, bench.current)
        updates = yield from self._gather(bench.current, bench.current.roster)
        if not self.node.quick:
            yield MERGING_S
        chunks, gram = self._merged(bench, updates)
        part = part_of(chunks[self._span(bench.current, effect.part)])
        part, gram = self.led(part, gram)
        self.parts[part.digest] = part
        self.node.hold(part)
        self.node.post(PartMerged(effect.round, effect.attempt, effect.part, part.digest, gram))

    def led(self, part: Content, gram: str) -> tuple[Content, str]:
        """The part that this node publishes: what its merge gave."""
        return part, gram

    def _span(self, current: OpenRound, part: int) -> slice:
        chunks = part_range(part, len(current.parts), self.node.world.plan.chunks)
        return slice(chunks.start, chunks.stop)

    def _merged(self, bench: Bench, updates: Sequence[Content]) -> Merged:
        n_parts = len(bench.current.parts)
        return self.node.world.merges.merged(bench.rule, updates, bench.weights, n_parts)

    def _gather(self, current: OpenRound, members: Sequence[str]) -> Updates:
        """The updates of members, in roster order; those of others from their nodes, each time anew."""
        wanted = {name: current.commits[name].digest for name in members}
        here = dict(self.node.models)
        missing = [name for name in members if wanted[name] not in here]
        problems: dict[str, str] = {}
        if missing:
            answers = yield [Ask(name, wanted[name], GRACE_S) for name in missing]
            for name, answer in zip(missing, answers, strict=True):
                try:
                    here[wanted[name]] = checked(answer, wanted[name])
                except KonsilError as error:
                    problems[name] = f"The update of {name}: {error.what}"
        problems |= {
            name: f"The update of {name} is no number everywhere."
            for name in members
            if wanted[name] in here and not here[wanted[name]].finite
        }
        if problems:
            raise UpdatesMissing(problems, " ".join(problems.values()))
        return [here[wanted[name]] for name in members]

    def _probe(self, effect: Probe) -> Work:
        yield from self._gather(self._current(effect).current, (effect.member,))

    def _recompute(self, effect: Recompute) -> Work:
        bench = self._current(effect)
        published = yield from self._part(effect.part, bench.current)
        updates = yield from self._gather(bench.current, bench.current.roster)
        wrong = effect.chunk in self._wrong_chunks(bench, effect.part, published, updates)
        self.node.post(Found(effect, wrong=wrong))

    def _wrong_chunks(
        self, bench: Bench, part: int, published: Content, updates: Sequence[Content]
    ) -> list[int]:
        """The chunks of a published part that are not what the updates give."""
        chunks, _ = self._merged(bench, updates)
        span = self._span(bench.current, part)
        return [
            span.start + place
            for place, chunk in enumerate(published.chunks)
            if chunk != chunks[span.start + place]
        ]

    # --- whole models ------------------------------------------------------------------------------

    def _fetch(self, effect: Fetch) -> Work:
        node = self.node
        current = node.view.open
        asked = (effect.round, effect.attempt, effect.digest)
        if current is not None and asked == (current.number, current.attempt, current.digest):
            yield from self._complete(effect, self._bench(current))
        elif effect.digest not in node.models:
            yield from self._from_anybody(effect.digest)
        node.post(Held(effect.digest))

    def _from_anybody(self, digest: str) -> Work:
        view, problems = self.node.view, []
        holders = view.history[-1].accepts if view.history else (view.proposer,)
        others = [name for name in sorted(view.participants) if name not in holders]
        for holder in (*holders, *others):
            if holder == self.node.name:
                continue
            (answer,) = yield [Ask(holder, digest)]
            try:
                self.node.hold(checked(answer, digest))
            except KonsilError as error:
                problems.append(f"{holder}: {error.what}")
            else:
                return
        raise PeerUnreachable(f"Nobody could give {digest[:8]}: {' '.join(problems)}")

    def _complete(self, effect: Fetch, bench: Bench) -> Work:
        self._in_time(effect, bench.current)
        parts: list[Content] = []
        for number in range(len(bench.current.parts)):
            part = yield from self._part(number, bench.current)
            parts.append(part)
        model = whole(tuple(chunk for part in parts for chunk in part.chunks), len(parts))
        if model.digest != effect.digest:
            raise DigestMismatch("The parts do not give the merge's digest.")
        yield from self._audit(bench, parts)
        self.node.hold(model)

    def _part(self, number: int, current: OpenRound) -> Any:
        """A published part: from its leader, or from who has it from there."""
        part, span = current.parts[number], self._span(current, number)
        if part.digest in self.parts:
            return self.parts[part.digest]
        others = (name for name in current.roster if name not in {part.leader, self.node.name})
        problems = []
        for holder in (part.leader, *others):
            if holder == self.node.name:
                continue
            (answer,) = yield [Ask(holder, part.digest, GRACE_S)]
            try:
                found = checked(answer, part.digest)
            except KonsilError as error:
                problems.append(error.what)
                continue
            try:
                found.manifest.require_part(part.digest, span.stop - span.start)
            except DigestMismatch as error:
                raise UpdatesMissing(
                    (part.leader,), f"{part.leader} published no part: {error.what}"
                ) from error
            self.parts[part.digest] = found
            self.node.hold(found)
            return found
        raise UpdatesMissing((part.leader,), f"A part of {part.leader} cannot be had: {' '.join(problems)}")

    def _audit(self, bench: Bench, parts: Sequence[Content]) -> Work:
        """Recompute a secret choice of the chunks that others merged, as the study says how many."""
        current = bench.current
        settled = {
            dispute.chunk
            for dispute in current.disputes
            if dispute.attempt == current.attempt and dispute.outcome == "right"
        }
        chosen = self._chosen(current, settled)
        if not chosen:
            return
        updates = yield from self._gather(current, current.roster)
        for number in dict.fromkeys(number for number, _ in chosen):
            for chunk in self._wrong_chunks(bench, number, parts[number], updates):
                if (number, chunk) in chosen:
                    self.node.post(Suspected(current.number, current.attempt, number, chunk))
                    leader = current.parts[number].leader
                    raise MergeMismatch(f"Part {number}, merged by {leader}, is wrong at {chunk}.")

    def _chosen(self, current: OpenRound, settled: Collection[int]) -> list[tuple[int, int]]:
        """Parts and chunks to audit."""
        world, foreign = self.node.world, []
        for number, part in enumerate(current.parts):
            if part.leader != self.node.name:
                span = self._span(current, number)
                foreign += [(number, chunk) for chunk in range(span.start, span.stop) if chunk not in settled]
        fraction, others = world.plan.audit, len(current.roster) - 1
        if fraction in {0, 1}:
            return foreign if fraction else []
        return world.chance.sample(foreign, audits(len(foreign), fraction, others, world.chance.random()))

    # --- training ----------------------------------------------------------------------------------

    def _deliver(self, effect: Deliver) -> Work:
        training = self.node.training
        if training is not None and training.attached:
            if not self.node.quick:
                yield 0.001
            model, view = self.node.models.get(effect.digest), self.node.view
            if model is None and view.phase != "failed":
                raise StudyError(f"The model {effect.digest[:8]} was let go of: there is a newer one.")
            training.takes(effect, view, model)


def checked(answer: Answer, digest: str) -> Content:
    """What a peer sent, if it is what the digest says.

    Raises:
        KonsilError: it is not, or nothing came.
    """
    if isinstance(answer, KonsilError):
        raise answer
    answer.manifest.require(digest)
    if answer.wrong_chunk is not None:
        raise answer.wrong_chunk.with_traceback(None)
    return answer
