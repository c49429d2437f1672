"""One hospital's training in several processes: the first speaks to the node, all learn alike.

Every process joins and counts its own steps, as often as the others. Only the first (rank 0) has a
connection; after each step it says one small word to the others: that all goes on, that their examples shall
be summed for an update, what was accepted, or what went wrong. After a merge they get its values from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

import msgspec
from torch import distributed

from konsil.core.rules.calls import Contribution
from konsil.core.rules.settings import StudySettings
from konsil.core.wall import Terms
from konsil.errors import ConfigError, KonsilError, SchemaMismatch, StudyError
from konsil.learners import LocalTraining, Shared, learner_in
from konsil.learners.torch import TorchLearner
from konsil.session.accepted import AcceptedRound
from konsil.session.after import AfterMerge
from konsil.session.connection import Connection
from konsil.session.final import SavedModel
from konsil.session.news import Entry
from konsil.session.ranks import FIRST, Ranks, Word
from konsil.session.swarm import GOODBYE_S, Swarm

FAREWELL_S = 10.0
"""How long a first process that fails tries to tell the others why; after that they see that it is gone."""


class Facts(msgspec.Struct, frozen=True):
    """What the first process knows. ``loaded``: values follow. ``schema``: digest of what travels."""

    member: str
    round: int
    digest: str
    ended: str
    settings: StudySettings
    last: AcceptedRound | None
    loaded: bool
    schema: str


def session_type() -> type[Swarm]:
    """The kind of session that this process needs: a plain one unless it is one of several."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Swarm
    if distributed.get_world_size() == 1:
        return Swarm
    return Leading if distributed.get_rank() == FIRST else Following


class Leading(Swarm):
    """The first process's session: what happens in it happens in the others."""

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
        """Join, and let the others join: they get the study's parameters from here."""
        self._ranks = Ranks()
        self._told: BaseException | None = None
        self._learner = None
        self._display = after_merge.display
        try:
            with self._telling(), self._ranks.waiting():
                _require_nothing_to_resume(after_merge)
                super().__init__(
                    connection,
                    model,
                    timeout_s=timeout_s,
                    after=after,
                    training=training,
                    after_merge=after_merge,
                )
            self._tell(loaded=True)
        except BaseException:
            connection.say_goodbye(GOODBYE_S)
            self._let_go()
            self._ranks.part()
            raise

    def close(self) -> None:
        """Finish; the others hear of it, or of what went wrong.

        Raises:
            KonsilError: as a plain session.
        """
        if self._closed:
            return
        try:
            with self._telling(), self._ranks.waiting():
                super().close()
            self._ranks.say(Word.CLOSED)
        finally:
            self._ranks.part()

    def leave(self) -> None:
        """Stop without finishing. Never raises."""
        super().leave()
        self._ranks.part()

    def fit_preprocessing(self, data: Any) -> None:
        """Not in several processes.

        Raises:
            ConfigError: always.
        """
        del data
        _no_preprocessing()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish; after an error, tell the others and leave."""
        if error is not None and error is not self._told:
            self._ranks.fail(error, limit_s=FAREWELL_S)
        super().__exit__(kind, error, trace)

    def _prepare(self, terms: Terms) -> Entry:
        entry = super()._prepare(terms)
        _torch_learner(self._parts()[0])
        return entry

    def _train(self, examples: int, count: Callable[[], None]) -> bool:
        self._require_open()
        if self.finished:
            return False
        before = self.round, self.digest, self.ended
        with self._telling():
            loaded = super()._train(examples, count)
        if before == (self.round, self.digest, self.ended):
            self._ranks.say(Word.GO_ON)
        else:
            self._tell(loaded=loaded)
        return loaded

    def _merge(self, examples: int) -> bool:
        total = self._ranks.summed(examples)
        with self._ranks.waiting():
            return super()._merge(total)

    def _tell(self, *, loaded: bool) -> None:
        """Tell the others what is accepted; when they join, see that they have the same model."""
        learner, schema = self._parts()
        facts = Facts(
            member=self.member,
            round=self.round,
            digest=self.digest,
            ended=self.ended,
            settings=self.settings,
            last=self.last,
            loaded=loaded,
            schema=schema.digest,
        )
        self._ranks.say(Word.ACCEPTED, msgspec.msgpack.encode(facts))
        if self._ranks.total(0):
            raise _another_model()
        if loaded:
            self._ranks.share(_torch_learner(learner).tensors())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong in here goes wrong in all processes."""
        try:
            yield
        except BaseException as error:
            self._told = error
            self._ranks.fail(error)
            raise


class Following(Swarm):
    """Another process's session: it hears from the first one what it cannot ask the node."""

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
        """Join with the first process; the model holds the study's parameters afterwards."""
        del connection, timeout_s, after, after_merge  # the first process's
        self._after_merge = AfterMerge()
        self.model = model
        self._training = training
        self._learner = None
        self._examples = 0
        self._closed = False
        self.before = None
        self._ranks = Ranks()
        try:
            self._follow()
        except BaseException:
            self.leave()
            raise

    def score(self, *, examples: int, loss: float | None = None, **metrics: float) -> None:
        """Nothing: the first process's scores are the hospital's."""

    def fit_preprocessing(self, data: Any) -> None:
        """Not in several processes.

        Raises:
            ConfigError: always.
        """
        del data
        _no_preprocessing()

    def save(self, path: str | os.PathLike[str]) -> SavedModel:
        """Only in the first process, which speaks to the node.

        Raises:
            StudyError: always.
        """
        raise StudyError(
            f"{os.fspath(path)} can be saved by the first process of this hospital only.",
            safe="Nothing was written.",
            do="Call `save` where `torch.distributed.get_rank()` is 0.",
        )

    def close(self) -> None:
        """Wait until the first process has finished. Closing twice is harmless.

        Raises:
            KonsilError: what went wrong there, or that it still trains.
        """
        if self._closed:
            return
        self._closed = True
        self._end()
        try:
            word, _ = self._ranks.hear()
        finally:
            self._ranks.part()
        if word is not Word.CLOSED:
            raise StudyError(
                "This process has ended its training while the first one of this hospital still trains.",
                safe="The other hospitals go on.",
                do="Let every process call `step` and `epoch` equally often.",
            )

    def leave(self) -> None:
        """Stop without finishing. Never raises."""
        self._closed = True
        self._end()
        self._ranks.part()

    def _train(self, examples: int, count: Callable[[], None]) -> bool:
        del count  # the first process counts
        self._require_open()
        if self.finished:
            return False
        self._examples += examples
        return self._follow()

    def step(self, examples: int) -> bool:
        """Count a step of training, and merge when the first process does.

        Raises:
            KonsilError: what the first process's ``step`` raises.
        """
        return self._train(examples, lambda: None)

    def epoch(self, examples: int = 0) -> bool:
        """Count the end of an epoch, and merge when the first process does.

        Raises:
            KonsilError: what the first process's ``epoch`` raises.
        """
        return self._train(examples, lambda: None)

    def _follow(self) -> bool:
        """Do as the first process says; whether a merge was loaded."""
        while True:
            word, payload = self._ranks.hear()
            if word is Word.SUM:
                self._ranks.total(self._examples)
                if self._learner is not None:
                    self._learner.parameters()  # as the first one does: SCAFFOLD's control is given away now
            elif word is Word.ACCEPTED:
                return self._accept(msgspec.msgpack.decode(payload, type=Facts))
            elif word is Word.GO_ON:
                return False
            else:
                self.leave()
                raise StudyError(
                    "The first process of this hospital has ended its training while this one still trains.",
                    safe="The other hospitals go on.",
                    do="Let every process call `step` and `epoch` equally often.",
                )

    def _accept(self, facts: Facts) -> bool:
        problem: BaseException | None = None
        if self._learner is None:
            try:
                self._learner = self._made(facts)
            except KonsilError as error:
                problem = error
        if self._ranks.total(0 if problem is None else 1):
            raise problem or _another_model()
        learner = self._learner
        if learner is None:
            raise StudyError("The session has not joined.")
        if facts.loaded:
            self._ranks.share(_torch_learner(learner).tensors())
        learner.begin_round()
        self.member, self.settings, self.last = facts.member, facts.settings, facts.last
        self.round, self.digest, self.ended = facts.round, facts.digest, facts.ended
        self._examples = 0
        return facts.loaded

    def _made(self, facts: Facts) -> Shared:
        learner = learner_in(facts.settings, self.model, self._training)
        _torch_learner(learner)
        if learner.schema().digest != facts.schema:
            raise SchemaMismatch(
                f"The model of process {self._ranks.rank} is not that of this hospital's first process.",
                safe="Nothing was sent; the other hospitals go on.",
                do="Build the model alike in every process, and freeze the same parts of it.",
            )
        return learner

    def _end(self) -> None:
        if self._learner is not None:
            self._learner.end()


def _torch_learner(learner: Shared) -> TorchLearner:
    """The adapter, which knows the tensors.

    Raises:
        ConfigError: the model is no PyTorch module.
    """
    if isinstance(learner.learner, TorchLearner):
        return learner.learner
    raise ConfigError(
        f"torch.distributed runs several processes, but the model is a {type(learner.learner).__name__}.",
        safe="Nothing was sent; the model is untouched.",
        do="Join with the torch.nn.Module that they train, or in one process before `init_process_group`.",
    )


def _require_nothing_to_resume(after_merge: AfterMerge) -> None:
    """See that no local state is kept: that of one process would be given back to one process only.

    Raises:
        ConfigError: ``resume`` was given.
    """
    if after_merge.resumes:
        raise ConfigError(
            "`resume` keeps the local state of one process, and this hospital trains in several.",
            safe="Nothing was sent; the model is untouched.",
            do="Join without it; save the optimiser's state in every process yourself.",
        )


def _no_preprocessing() -> NoReturn:
    raise ConfigError(
        "A PyTorch module has no preprocessing that could be fitted together.",
        safe="Nothing was sent.",
        do="Join with a scikit-learn Pipeline whose steps can: docs/data-scientist.md names them.",
    )


def _another_model() -> SchemaMismatch:
    return SchemaMismatch(
        "Another process of this hospital cannot take part with its model.",
        safe="Nothing was sent; the other hospitals go on.",
        do="See that process's own error; build model and optimiser alike in every process.",
    )
