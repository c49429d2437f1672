"""A member's training process: it takes the merge, trains for a while, hands its update over, and may die."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from konsil.core.round import (
    Attached,
    Deliver,
    Detached,
    FinishWanted,
    Offered,
    ScoreReady,
    UpdateReady,
    farewell_of,
)
from konsil.core.rules import Contribution, Score, Study, is_over
from konsil.simulation.universe.ledger import STUDY, initial_model
from konsil.simulation.universe.models import SCHEMA, Content, data_bytes, model_of

if TYPE_CHECKING:
    from konsil.simulation.universe.node import Node

EXAMPLES_A_MEMBER = 7
"""The first has so many, the second twice as many, and so on: weights that are mixed up show."""

_SCORED = 0.2
_AGAIN_S = 0.5
"""A training process looks for its node again after this, as in ``session.connection``."""


class Training:
    """``served``: it was told that the study is over. ``rounds``: after how many it has enough."""

    def __init__(self, node: Node, slow: float, rounds: float, contribution: Contribution) -> None:
        self.node = node
        self.world = node.world
        self.chance = node.world.chance
        self.slow = slow
        self.rounds = rounds
        self.contribution = contribution
        self.life = 0
        self.alive = self.attached = self.greeted = self.served = self.finished = False
        self.has: Content | None = None
        self.at = 0
        self.update: tuple[UpdateReady, Content] | None = None

    # --- coming and going --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin anew, with nothing but the initial model of the proposer."""
        self.life += 1
        self.alive, self.served, self.has, self.at, self.update = True, False, None, 0, None
        self.join()

    def join(self) -> None:
        """Knock at the node, if it is there."""
        if not self.alive or self.attached or self.finished or not self.node.up:
            return
        self.attached, self.greeted = True, False
        self.node.disk.farewell = None
        study = self.node.view
        holds = self.has.digest if self.has is not None and self.at == len(study.history) else ""
        if not study.initial and study.proposer == self.node.name:
            model = initial_model(self.world.plan.chunks)
            self.world.contents[model.digest] = model
            self.node.hold(model)
            self.node.post(Offered(SCHEMA, model.digest, data_bytes(len(model.chunks))))
        self.node.post(Attached(holds))

    def die(self) -> None:
        """Gone, and its update with it."""
        self.life += 1
        self.alive = False
        self._part(goodbye=False)

    def _part(self, *, goodbye: bool) -> None:
        if self.attached:
            self.attached = False
            if self.node.up:
                self.node.post(Detached(goodbye))

    def lost_node(self) -> None:
        """The node died under it: training goes on."""
        self.attached = False

    def found_node(self) -> None:
        """The node is back: it is noticed at the next knock."""
        self.node.agenda.after(_AGAIN_S, self.join)

    # --- rounds ------------------------------------------------------------------------------------

    def takes(self, effect: Deliver, study: Study, model: Content | None) -> None:
        """A merge has come."""
        if is_over(study):
            self.served = True
        if model is None:
            return
        self.world.watch.delivered(self.node.name, effect, model)
        self.greeted = True
        if is_over(study):
            self.has, self.at, self.update = model, effect.round, None
            return
        if self.has is not None and (self.at, self.has.digest) == (effect.round, model.digest):
            self.node.agenda.soon(self._hand_over)  # of a node that is back: it may have lost the update
            return
        self.has, self.at, self.update = model, effect.round, None
        wait_s = self.chance.uniform(2.0, 5.0) * self.slow
        self.node.agenda.after(wait_s, self._trained, effect, self.life)

    def _trained(self, effect: Deliver, life: int) -> None:
        if (
            life != self.life
            or self.has is None
            or (self.at, self.has.digest) != (effect.round, effect.digest)
        ):
            return
        if effect.round >= self.rounds:
            self._finish()
            return
        if self.attached and effect.round and self.chance.random() < _SCORED:
            self.node.post(ScoreReady(Score(STUDY, effect.round, 10, loss=1.0 / effect.round)))
        number = ord(self.node.name) - ord("a") + 1 + self.chance.random()
        update = self.trained_to([number + base for base in self.has.numbers])
        self.world.contents[update.digest] = update
        examples = EXAMPLES_A_MEMBER * (ord(self.node.name) - ord("a") + 1)
        self.update = UpdateReady(effect.round + 1, effect.digest, update.digest, examples), update
        self._hand_over()

    def trained_to(self, numbers: list[float]) -> Content:
        """The update that it hands over."""
        if self.world.lies.get(self.node.name) == "commits what is no number":
            numbers[-1] = math.nan
        return model_of(numbers)

    def _hand_over(self) -> None:
        """Give the node the update, if there is one; not before the node has said which round it is."""
        if self.update is not None and self.attached and self.greeted:
            said, content = self.update
            self.node.hold(content)
            self.node.post(said)

    def _finish(self) -> None:
        """It has had enough, and leaves once its node has written that down."""
        if not self.attached or self.node.disk.is_full:
            self.node.agenda.after(_AGAIN_S, self._finish_again, self.life)
            return
        self.finished = True
        self._leave_word()
        self.node.post(FinishWanted(self.contribution))
        self.node.agenda.after(2.0, self._goodbye, self.life)

    def _leave_word(self) -> None:
        node, snapshot = self.node, self.node.state.update
        if self.contribution == "snapshot" and snapshot is not None:
            self.world.watch.left[node.name] = snapshot.digest
        farewell = node.disk.farewell = farewell_of(node.state, self.contribution)
        model = node.models.get(farewell.update.digest) if farewell.update is not None else None
        if model is not None:
            node.disk.models[model.digest] = model

    def _finish_again(self, life: int) -> None:
        if life == self.life:
            self._finish()

    def _goodbye(self, life: int) -> None:
        if life == self.life:
            self.alive = False
            self._part(goodbye=True)
