"""What ``join`` returns: a study as the training loop sees it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from konsil.core.parameters import Schema, views
from konsil.core.rules.calls import Contribution
from konsil.core.rules.pooling import check_pooling
from konsil.core.rules.settings import StudySettings
from konsil.core.wall import Finished, Progress, Scored, Terms, Update
from konsil.errors import ConfigError, NonFinite, StudyError
from konsil.learners import LocalTraining, Shared, evaluated, learner_in
from konsil.session.accepted import AcceptedRound, counted_examples, figures, said_of
from konsil.session.after import AfterMerge
from konsil.session.connection import LOOK_AGAIN_S, Connection
from konsil.session.final import SavedModel, save_final
from konsil.session.news import Entry, News
from konsil.session.pace import Pace
from konsil.wall.layout import read_arrays, seal_arrays
from konsil.wall.memory import SealedMemory

AWAY_S = 600.0
"""How long a node may be away before a session gives up: enough for a restart of its container or host."""
SETTLE_S = 60.0
"""For words that a node which is there answers in a block or two: terms, scores, the end."""

GOODBYE_S = 2.0
"""For leaving after an error: what the node has not taken by then, it sees by the closed connection."""


class Swarm:
    """A study that this process trains for. Use it in a ``with``; one thread at a time.

    ``model``: as given to ``join``. ``member``: this member's name. ``settings``: the study's. ``round``: the
    round being trained. ``digest``: of the model that its training started from. ``last``: the last accepted
    round, None before the first; ``before``: the one before it, with the scores that have come since.
    ``ended``: why the study is over, empty while it goes on.
    """

    def __init__(
        self,
        connection: Connection,
        model: Any,
        *,
        timeout_s: float | None,
        after: Contribution,
        training: LocalTraining,
        after_merge: AfterMerge,
    ) -> None:
        """Join; the model holds the study's parameters afterwards. Use ``join``."""
        self._connection = connection
        self.model = model
        self._timeout_s = timeout_s
        self._after: Contribution = after
        self._training = training
        self._after_merge = after_merge
        self._display = after_merge.display
        self._examples = 0
        self._progress_at_s = 0.0
        self._closed = False
        self._fitting = False
        self._learner: Shared | None = None
        self._schema: Schema | None = None
        self._initial: SealedMemory | None = None
        self.last: AcceptedRound | None = None
        self.before: AcceptedRound | None = None
        try:
            terms, news = connection.enter(self._prepare, timeout_s or SETTLE_S)
            self.member = terms.member
            self.settings = news.settings
            self._pace = Pace(news.settings, time.monotonic)
            after_merge.joined(terms)
            self._take(news, joining=True)
        except BaseException:
            connection.say_goodbye(GOODBYE_S)
            self._let_go()
            raise
        finally:
            self._display.clear()
            if self._initial is not None:
                self._initial.close()
        connection.away_s = AWAY_S if timeout_s is None else timeout_s

    @property
    def finished(self) -> bool:
        """Whether the study is over; then ``step`` does nothing any more."""
        return bool(self.ended)

    @property
    def learner(self) -> Shared:
        """The adapter around the model.

        Raises:
            StudyError: the session has not joined.
        """
        if self._learner is None:
            raise StudyError("The session has not joined.")
        return self._learner

    def step(self, examples: int) -> bool:
        """Count a step of training; when the study says so, merge.

        Blocks while a merge is made: until the round is accepted.

        Args:
            examples: how many examples the step was trained on.

        Returns:
            Whether a merge was loaded into the model.

        Raises:
            NonFinite: a NaN or an infinity in the model, by its tensor's name; nothing was sent.
            SchemaMismatch: the model has other tensors than when it joined; nothing was sent.
            NodeUnreachable: the node stayed away; calling again tries again, nothing is lost.
            StudyError: no merge in the time that the study allows, or the study failed.
            KonsilError: why the node refused.
        """
        return self._train(examples, self._pace.step)

    def epoch(self, examples: int = 0) -> bool:
        """Count the end of an epoch; for studies that merge by epochs.

        Args:
            examples: trained on in this epoch and not yet counted by ``step``.

        Returns:
            Whether a merge was loaded into the model.

        Raises:
            KonsilError: as ``step``.
        """
        return self._train(examples, self._pace.epoch)

    def fit_preprocessing(self, data: Any) -> None:
        """Fit the preprocessing of a model together: each step takes one round, from sums and counts.

        Where the study has fitted it already (this member comes late), nothing is done.

        Args:
            data: this member's own training rows; they stay in this process.

        Raises:
            ConfigError: the model has no preprocessing that can be fitted together, or the study's rule or
                outer optimiser would not leave sums right.
            StudyError: the study has fewer rounds than that takes, or ended before.
            KonsilError: as ``step``.
        """
        self._require_open()
        check_pooling(self.settings)
        learner, _ = self._parts()
        if not self.finished:
            learner.require_rounds(self.settings.rounds - self.round + 1)
        # One example a member: sums and counts are pooled, whatever a member's training would weigh.
        self._fitting = True  # what these rounds merge is no model yet that could be evaluated
        try:
            while not self.finished and learner.observe(data, self.settings.given.get(self.member, 1)):
                self._merge(1)
        finally:
            self._fitting = False
        if self.finished:
            learner.require_fitted(self.ended)

    def score(self, *, examples: int, loss: float | None = None, **metrics: float) -> None:
        """Say how well the last merge does on this member's own validation data. It goes on the ledger.

        Args:
            examples: how many examples it was scored on.
            loss: lower is better.
            **metrics: by name, for example ``auc=0.91``.

        Raises:
            ConfigError: a score that is no finite number, or no examples.
            StudyError: there is no merge yet.
            KonsilError: why the node or the ledger refused.
        """
        self._require_open()
        if self.last is None:
            raise StudyError(
                "No round was accepted, so there is no merge to score.", do="Score after a merge."
            )
        said = self._after_merge.own
        if said is not None and said.round == self.last.round:
            raise StudyError(
                f"The merge of round {self.last.round} is scored already.",
                safe="The first score stands on the ledger.",
                do="Give loss and metrics in one call a round; with `evaluate=`, return all of them there.",
            )
        own = said_of(self.last.round, evaluated({"examples": examples, "loss": loss, **metrics}))
        self._say(own)
        self._after_merge.own = own

    @property
    def scored_last(self) -> bool:
        """Whether this member has scored the last merge: by ``score``, ``evaluate``, or in an earlier run."""
        if self.last is None:
            return False
        own = self._after_merge.own
        return self.member in self.last.scores or (own is not None and own.round == self.last.round)

    @property
    def figures(self) -> dict[str, float]:
        """The last accepted round for a tracker: "konsil/round", "konsil/members", "konsil/absent",
        "konsil/examples", "konsil/round_s", and own scores, "konsil/own_loss" and so on. Empty before it.
        """
        return {} if self.last is None else figures(self.last, self._after_merge.own)

    def save(self, path: str | os.PathLike[str]) -> SavedModel:
        """Write the study's final model, its card, and a page for people beside it.

        Of a study that is over, once nobody can change the choice any more: with ``best`` in its settings
        that takes as long as the last scores may. While it goes on: the merge that would be final now.

        Args:
            path: where, for example "aml.safetensors"; the page is then "aml.card.md".

        Raises:
            ConfigError: it cannot be written there.
            StudyError: there is no model yet, or the last scores did not come in time.
            KonsilError: why the node refused.
        """
        self._require_open()
        limit_s = self._timeout_s or self.settings.silence_s + SETTLE_S
        try:
            self._after_merge.say_scores(self._say)
            return save_final(self._connection, Path(path), limit_s, self._after_merge.waiting)
        finally:
            self._display.clear()

    def close(self) -> None:
        """Finish: say what this member keeps contributing, and close. Closing twice is harmless.

        Raises:
            KonsilError: the node could not be told; the connection is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._after_merge.say_scores(self._say)
            if not self.finished:
                self._say(Finished(contribution=self._after))
        finally:
            if self.finished:
                self._connection.say_goodbye(GOODBYE_S)
            self._connection.close()
            self._let_go()

    def leave(self) -> None:
        """Stop without finishing: the study goes on without this member, who may join again. Never raises."""
        if not self._closed:
            self._closed = True
            self._connection.say_goodbye(GOODBYE_S)
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish; after an error, leave."""
        if kind is None:
            self.close()
        else:
            self.leave()

    # --- inside ----------------------------------------------------------------------------------

    def _prepare(self, terms: Terms) -> Entry:
        learner = learner_in(terms.settings, self.model, self._training)
        schema = learner.schema()
        if terms.wanted and self._initial is None:
            self._initial = seal_arrays(schema, learner.parameters())
        self._learner, self._schema = learner, schema
        initial = self._initial if terms.wanted else None
        return Entry(schema.header, initial, time.monotonic() + self._patience_s(terms.settings))

    def _train(self, examples: int, count: Callable[[], None]) -> bool:
        self._require_open()
        self._after_merge.say_scores(self._offer)
        counted = counted_examples(examples)
        if self.finished:
            return False
        self._examples += counted
        count()
        if self._pace.due:
            return self._merge(self._examples)
        now_s = time.monotonic()
        if now_s < self._progress_at_s:
            return False
        self._progress_at_s = now_s + LOOK_AGAIN_S
        self._after_merge.training(self, self._pace.progress)
        news = self._connection.progress(Progress(self.round, self._pace.progress))
        if news is not None:
            self._take(news)
        return news is not None

    def _merge(self, examples: int) -> bool:
        if examples == 0:
            raise ConfigError(
                f"Round {self.round} is due, but no examples were counted.",
                safe="Nothing was sent; the model is untouched.",
                do="Say how many each step or epoch was trained on: `step(examples=len(batch))`.",
            )
        learner, schema = self._parts()
        update = Update(round=self.round, base=self.digest, examples=examples)
        until_s = time.monotonic() + self._patience_s(self.settings)
        try:
            with seal_arrays(schema, learner.parameters()) as memory:
                news = self._connection.hand_over(update, memory, until_s)
        except NonFinite as error:
            raise NonFinite(
                error.what,
                safe="Nothing was sent. Your model still holds it; the last merge is safe at the node.",
                do=f"{error.do} To go on from the last merge, leave the `with` and join again.",
                **error.fields,
            ) from None
        finally:
            self._display.clear()
        return self._take(news)

    def _take(self, news: News, *, joining: bool = False) -> bool:
        """Load a merge, and begin the next round; whether there was one to load."""
        learner, schema = self._parts()
        try:
            if news.memory is not None:
                _load(learner, schema, news.memory)
        finally:
            news.close()
        learner.begin_round()
        self.round = news.round + 1
        self.digest = news.digest
        self.settings = news.settings
        self.ended = news.ended
        if news.record is not None:
            self.last = AcceptedRound.of(news.record)
        self.before = None if news.before is None else AcceptedRound.of(news.before)
        self._examples = 0
        self._pace.begin(news.settings, news.interval)
        if news.memory is not None:
            quiet = self._fitting or not learner.fitted
            self._after_merge.loaded(self, learner, joining=joining, quiet=quiet, tell=self._offer)
        if news.failed:
            raise StudyError(
                f"Study '{self.settings.name}' has failed: {self.ended}",
                safe=f"Your model holds the merge of round {news.round}; every accepted round is on record.",
                do="See `konsil study status`; then propose a new study, which may start from this model.",
            )
        return news.memory is not None

    def _say(self, word: Scored | Finished) -> bool:
        """Say it, however long the node is away as long as that is no error."""
        limit_s = self._timeout_s or max(SETTLE_S, AWAY_S)
        self._connection.tell(word, time.monotonic() + limit_s)
        return True

    def _offer(self, scores: Scored) -> bool:
        """Say it unless the node is away, for which training does not wait."""
        return self._connection.offer(scores, self._timeout_s or SETTLE_S)

    def _let_go(self) -> None:
        """Training may go on without the swarm: nothing of Konsil stays in it, nor on the screen."""
        self._display.clear()
        if self._learner is not None:
            self._learner.end()

    def _parts(self) -> tuple[Shared, Schema]:
        if self._learner is None or self._schema is None:
            raise StudyError("The session has not joined.")
        return self._learner, self._schema

    def _patience_s(self, settings: StudySettings) -> float:
        """How long a merge, or the start, may take: what the study itself allows, unless told otherwise."""
        if self._timeout_s is not None:
            return self._timeout_s
        return float(settings.patience_s + settings.give_up_s + settings.merge_s)

    def _require_open(self) -> None:
        if self._closed:
            raise StudyError("This session is closed.", do="Join again with `konsil.join`.")


def _load(learner: Shared, schema: Schema, memory: SealedMemory) -> None:
    _, data = read_arrays(memory, schema)
    learner.load(views(schema, data))
