"""The simulated swarm between members' turns: machines want effects, and these are carried out at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from konsil.core.digest import Manifest, group_digest
from konsil.core.merge import Rule, merge_whole
from konsil.core.parameters import views
from konsil.core.round import (
    Advance,
    Deliver,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    Held,
    Lead,
    Looked,
    PartMerged,
    Submit,
    step,
)
from konsil.core.rules import OpenRound, Score, Study, Tick, weights_of
from konsil.errors import Refused
from konsil.simulation.ledger import Ledger
from konsil.simulation.member import Problem
from konsil.simulation.node import Node
from konsil.simulation.outer import OuterState
from konsil.simulation.update import Layout, Parcel


class World:
    """Nodes, their ledger, the time, and the models that are held: the accepted one and the open round's.

    ``pool``: threads for what goes over all bytes of all models.
    """

    def __init__(self, ledger: Ledger, nodes: Sequence[Node], rule: Rule) -> None:
        """Nothing happens until something is posted. ``rule``: the study's merge rule."""
        self.ledger = ledger
        self._rule = rule
        self._outer: OuterState | None = None
        self.nodes = tuple(nodes)
        self._named = {node.name: node for node in nodes}
        self.problems: list[Problem] = []
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, "konsil-simulate")
        self._todo: deque[tuple[Node, Effect]] = deque()
        self._seen = -1
        self._merging = (0, 0)
        self._parts: list[str] = []
        self._gram = ""

    @property
    def study(self) -> Study:
        """The study as it stands on the ledger."""
        return self.ledger.study

    @property
    def over(self) -> bool:
        """Whether the study has ended."""
        return self.study.phase in {"finished", "failed"}

    def begin(self, layout: Layout, initial: Parcel) -> None:
        """Hold the initial parameters."""
        self.layout = layout
        self._data, self._spare = layout.room(), layout.room()
        for (start, stop), chunk in zip(layout.spans, initial.chunks, strict=True):
            self._data[start:stop] = chunk
        self._digest, self._candidate = initial.digest, ""
        outer = self.study.settings.outer
        if outer is not None:
            self._outer = OuterState(outer, layout)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown()

    def accepted(self) -> Mapping[str, Any]:
        """The arrays that training goes on from: of the accepted merge, or of the outer optimiser's step."""
        self._hold_accepted()
        data = self._data if self._outer is None else self._outer.model
        return views(self.layout.schema, data.toreadonly())

    # --- events and effects ----------------------------------------------------------------------

    def post(self, node: Node, event: Event) -> None:
        """Tell a node's machine what happened; what it wants is done by ``settle``."""
        node.state, effects, node.wake_s = step(node.state, event, self.study, self.ledger.now_s)
        self._todo.extend((node, effect) for effect in effects)

    def settle(self) -> None:
        """Carry out what nodes want, and let all look at the ledger when it has moved, until all is still."""
        while True:
            while self._todo:
                node, effect = self._todo.popleft()
                if effect in node.state.doing:  # not cancelled meanwhile
                    self.post(node, self._carried_out(node, effect))
            if self._seen == self.ledger.state.height:
                return
            self._seen = self.ledger.state.height
            for node in self.nodes:
                self.post(node, Looked())

    def pass_time(self, until_s: float) -> None:
        """Let the ledger's time pass; whoever has to say something on the way says it then."""
        while (wake_s := min(node.wake_s for node in self.nodes)) <= until_s:
            self.ledger.now_s = max(self.ledger.now_s, wake_s)
            for node in self.nodes:
                if node.wake_s <= self.ledger.now_s:
                    self.post(node, Looked())
            self.settle()
        self.ledger.now_s = until_s

    def jump(self, to_s: float) -> None:
        """Go to a later time at once, without what would be said on the way."""
        self.ledger.now_s = max(self.ledger.now_s, to_s)
        self._seen = -1
        self.settle()

    def _carried_out(self, node: Node, effect: Effect) -> Event:
        match effect:
            case Submit():
                return self._submit(node, effect)
            case Lead(round=number, attempt=attempt, part=part):
                self._make_merge()
                self.post(node, PartMerged(number, attempt, part, self._parts[part], self._gram))
            case Fetch(digest=digest):
                self.post(node, Held(self._held(digest)))
            case Advance(digest=digest):
                self.post(node, self._advanced(digest))
            case Deliver(round=number):
                node.handed, node.due = number, True
            case _:  # nobody's update is missing here, and nobody lies
                raise TypeError(effect)
        return Done(effect)

    def _submit(self, node: Node, effect: Submit) -> Event:
        try:
            self.ledger.submit(node.name, effect.call)
        except Refused as refusal:
            if not isinstance(effect.call, Tick):
                self.note(Problem(node.name, len(self.study.history) + 1, str(refusal)))
            if isinstance(effect.call, Score):
                return Done(effect)
            wait_s = refusal.fields.get("wait_s")
            return Failed(effect, wait_s=float(wait_s) if isinstance(wait_s, int | float) else None)
        return Done(effect)

    def note(self, problem: Problem) -> None:
        """Keep a problem for the end, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    # --- merging ---------------------------------------------------------------------------------

    def _make_merge(self) -> None:
        """Make the whole merge of the open round when the first part of it is wanted."""
        current = self.study.open
        if current is None:
            raise RuntimeError("a part is led while no round is open")
        if self._merging == (current.number, current.attempt):
            return
        weights = weights_of(self.study)
        self._hold_accepted()
        whole = merge_whole(
            self._rule,
            self.layout.schema,
            [self._update_of(name, current) for name in current.roster],
            [weights[name] for name in current.roster],
            len(current.parts),
            self._spare,
            self.pool.map,
            self.layout.whole(self._data),
        )
        self._merging = (current.number, current.attempt)
        self._parts, self._gram = [group_digest(group) for group in whole.groups], whole.gram
        self._candidate = Manifest(self.layout.schema.header, whole.groups).digest

    def _update_of(self, name: str, current: OpenRound) -> Sequence[memoryview]:
        committed = current.commits[name].digest
        node = self._named[name]
        if node.update is not None and node.update.digest == committed:
            return node.update.chunks
        # A finished member commits the model again that training goes on from.
        if self._outer is not None and self._outer.now is not None and committed == self._outer.now.model:
            return self.layout.whole(self._outer.model)
        if committed != self._digest:
            raise RuntimeError(f"the update of {name} is not held")
        return self.layout.whole(self._data)

    def _hold_accepted(self) -> None:
        """Once the open round's merge is accepted it takes the place of the one before."""
        if self._candidate and self._candidate == self.study.accepted:
            self._data, self._spare = self._spare, self._data
            self._digest, self._candidate = self._candidate, ""

    def _advanced(self, digest: str) -> Event:
        """What an outer optimiser makes of the accepted merge."""
        if self._held(digest) != self._digest or self._outer is None:
            raise RuntimeError(f"{digest} is not the accepted merge of a study with an outer optimiser")
        return self._outer.after(digest, self._data)

    def _held(self, digest: str) -> str:
        """A digest, if it is of a model that is here."""
        self._hold_accepted()
        if digest not in {self._digest, self._candidate}:
            raise RuntimeError(f"no model with digest {digest} was made")
        return digest
