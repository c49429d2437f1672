"""What follows each time a merge was loaded, before training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konsil.core.wall import Scored, Terms, Waiting
from konsil.learners import Scores, Shared, evaluated
from konsil.session.accepted import said_of
from konsil.session.display import Display, Nothing, accepted_words, training_words, waiting_words
from konsil.session.resume import LocalFile

if TYPE_CHECKING:
    from konsil.session.swarm import Swarm

Evaluate = Callable[[Any], Mapping[str, Any]]
OnRound = Callable[["Swarm"], object]


class AfterMerge:
    """In this order: the local state is written, the merge evaluated, shown, and told to whoever listens."""

    def __init__(
        self,
        *,
        resume: Path | None = None,
        evaluate: Evaluate | None = None,
        display: Display | None = None,
        on_round: OnRound | Iterable[OnRound] = (),
    ) -> None:
        """``resume``: where the local state is written. The rest as in ``join``."""
        self.display: Display = display or Nothing()
        self.own: Scored | None = None
        self._resume = resume
        self._evaluate = evaluate
        self._on_round = (on_round,) if callable(on_round) else tuple(on_round)
        self._local: LocalFile | None = None
        self._unsaid: dict[int, Scored] = {}

    @property
    def resumes(self) -> bool:
        """Whether a local state is kept."""
        return self._resume is not None

    def joined(self, terms: Terms) -> None:
        """The node has said who this member is."""
        if self._resume is not None:
            study = terms.settings.name
            self._local = LocalFile(self._resume, swarm=terms.swarm, study=study, member=terms.member)

    def loaded(
        self, swarm: Swarm, learner: Shared, *, joining: bool, quiet: bool, tell: Callable[[Scored], bool]
    ) -> None:
        """A model was loaded.

        Args:
            swarm: it knows the round.
            learner: it holds the model.
            joining: this is the first model: a script that is started again gets its local state back.
            quiet: what is merged is no model yet that could be evaluated.
            tell: puts scores on the ledger; False if the node is away.
        """
        self.own = None
        if self._local is not None:
            number = swarm.round - 1
            if joining:
                self._local.load(learner, number, swarm.digest)
            self._local.save(learner, number, swarm.digest)
        if swarm.last is None or quiet:
            return
        if self._evaluate is not None and swarm.member not in swarm.last.scores:
            self._keep(swarm.last.round, evaluated(self._evaluate(swarm.model)))
            self.say_scores(tell)
        self.display.line(accepted_words(swarm.last, swarm.settings.rounds, self.own, swarm.before))
        for call in self._on_round:
            call(swarm)

    def _keep(self, number: int, scores: Scores) -> None:
        """Keep a round's scores until they are said. Where none is defined there is nothing to say."""
        if scores.named:
            self.own = self._unsaid[number] = said_of(number, scores)

    def say_scores(self, tell: Callable[[Scored], bool]) -> None:
        """Put scores on the ledger, in the order of the rounds; those that were not taken stay for later."""
        while self._unsaid:
            number = min(self._unsaid)
            if not tell(self._unsaid[number]):
                return
            del self._unsaid[number]

    def waiting(self, waiting: Waiting) -> None:
        """Show what the node waits for."""
        self.display.now(waiting_words(waiting))

    def training(self, swarm: Swarm, progress: float) -> None:
        """Show how far the open round's training is."""
        self.display.now(training_words(swarm.round, swarm.settings.rounds, progress))
