"""A simulated member's node: the round machine of the real one, and what is beside it in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from konsil.core.parameters import Schema
from konsil.core.round import NodeRound
from konsil.core.rules import Study, StudySettings, is_over
from konsil.learners import LocalTraining, Shared, learner_in
from konsil.simulation.member import Member
from konsil.simulation.update import Layout, Parcel


class Node:
    """One member.

    ``handed``: the round whose merge its training was handed last; ``due``: and has not taken up yet.
    ``update``: what it committed last. ``trained``: since it scored last; ``scored``: which round that was.
    """

    def __init__(self, name: str, study: str, member: Member) -> None:
        """A node that knows nothing yet."""
        self.name = name
        self.member = member
        self.state = NodeRound(me=name, study=study)
        self.wake_s = float("inf")
        self.handed = 0
        self.due = False
        self.trained = False
        self.scored = 0
        self.update: Parcel | None = None
        self._learner: Shared | None = None
        self._room: memoryview | None = None

    @property
    def finishes(self) -> bool:
        """Whether the member has taken part in as many rounds as it wanted to."""
        return self.member.rounds is not None and self.handed >= self.member.rounds

    @property
    def may_score(self) -> bool:
        """Whether its model holds a merge that it trained for and has not scored."""
        return self.member.evaluate is not None and self.trained and self.handed > self.scored

    def prepare(self, settings: StudySettings) -> Schema:
        """Make the learner, as a session does when it joins.

        Raises:
            ConfigError: no learner for this model, or it cannot do what the study asks.
            ParametersError: an array that cannot be merged.
        """
        asked = LocalTraining(self.member.optimizer, self.member.reset_optimizer)
        self._learner = learner_in(settings, self.member.model, asked)
        return self._learner.schema()

    @property
    def learner(self) -> Shared:
        """The adapter around the member's model."""
        if self._learner is None:
            raise RuntimeError(f"{self.name} was not prepared")
        return self._learner

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Hold the accepted model, from which the next training starts."""
        keeps = self.finishes and self.member.after == "snapshot"
        # The chunks of an update lie in the model itself, which now becomes another.
        self.update = self.update.copied() if keeps and self.update is not None else None
        self.learner.load(arrays)
        self.learner.begin_round()

    def observe(self, study: Study) -> bool:
        """Take the next step of fitting the preprocessing together; False once there is none (any more).

        Raises:
            StudyError: the study has fewer rounds than that takes, or ended before.
            ConfigError: the rows cannot be used.
        """
        if self.member.preprocessing is None:
            return False
        if is_over(study):
            self.learner.require_fitted(study.ended)
            return False
        if self.handed == 0:
            self.learner.require_rounds(study.settings.rounds)
        if self.learner.observe(self.member.preprocessing, study.settings.given.get(self.name, 1)):
            return True
        self.member = replace(self.member, preprocessing=None)
        return False

    def make_update(self, layout: Layout) -> Parcel:
        """The model as it is now, as an update.

        Raises:
            SchemaMismatch: training has changed names, dtypes or shapes.
            NonFinite: a NaN or an infinity, by its tensor's name.
        """
        if self._room is None:
            self._room = layout.room()
        self.update = layout.parcel(self.learner.parameters(), self._room)
        return self.update
