"""The training processes' door: one conversation a training process, from knock to goodbye."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import structlog

from konsil.core.parameters import Schema
from konsil.core.round import (
    Attached,
    Deliver,
    Detached,
    Offered,
    ProgressMade,
    UpdateReady,
)
from konsil.core.rules import Score, Study, missing
from konsil.core.wall import (
    WALL_VERSION,
    Final,
    Finished,
    Goodbye,
    Join,
    Joined,
    Knock,
    Merged,
    Noted,
    Progress,
    Scored,
    Terms,
    ToNode,
    Update,
    Waiting,
    Wanted,
)
from konsil.errors import ConfigError, FrameError, KonsilError, NodeBusy, SchemaMismatch, StudyError
from konsil.node.shelf import card_for
from konsil.node.store import Model, model_of
from konsil.node.study import StudyRunner
from konsil.node.trainee import Trainee
from konsil.wall.door import Visitor
from konsil.wall.frames import failure
from konsil.wall.memory import SealedMemory, open_sealed

WAITING_EVERY_S = 1.0
"""How often a waiting training process is told what it waits for."""

KNOCK_S = 10.0
"""A visitor that says nothing for so long gives its place to the next."""

FAREWELL_S = 30.0
"""How long a finished training process waits for its last calls to stand on the ledger."""

SCHEMA_S = 5.0
"""How long the study's own schema is looked for at peers, to say in what another one differs."""

_log = structlog.get_logger(__name__)


class Training:
    """Serves training processes of the studies at this node."""

    def __init__(self, me: str, runners: Callable[[], dict[str, StudyRunner]]) -> None:
        """``runners``: the studies that the ledger knows now."""
        self.me = me
        self._runners = runners

    async def serve(self, visitor: Visitor) -> None:
        """One training process: the handler of the door."""
        try:
            async with asyncio.timeout(KNOCK_S):
                word, fd = await visitor.receive()
        except TimeoutError:
            raise FrameError("A training process must knock first.", do="Compare versions.") from None
        _close(fd)
        if not isinstance(word, Knock):
            raise FrameError("A training process must knock first.", do="Compare versions.")
        if word.version != WALL_VERSION:
            raise ConfigError(
                f"The training process speaks version {word.version} of the wall, this node {WALL_VERSION}.",
                safe="Nothing was changed.",
                do="Install the same version of Konsil for both.",
            )
        runner = self._runner(word.study)
        await runner.start.is_over.wait()
        runner.require_participant()
        study = runner.study
        wanted = not study.initial and study.proposer == self.me
        swarm = runner.site.ledger.state.genesis
        if runner.trainee is not None:
            # before any terms, so that a second script does not even prepare its model
            raise NodeBusy(
                f"Another training process of this hospital takes part in study {word.study!r} already.",
                safe="It goes on undisturbed.",
                do="Wait until it has ended, or end it.",
            )
        await visitor.send(Terms(self.me, study.settings, wanted, swarm))
        await _Conversation(visitor, runner, self.me, word.pid).run()

    def _runner(self, name: str) -> StudyRunner:
        runners = self._runners()
        if name not in runners:
            known = ", ".join(sorted(runners)) or "none yet"
            raise StudyError(
                f"There is no study {name!r} on the ledger (known: {known}).",
                safe="Nothing was changed.",
                do="Propose it with `konsil study propose FILE`, or look at `konsil study list`.",
            )
        return runners[name]


class _Conversation:
    """What is said with one training process."""

    def __init__(self, visitor: Visitor, runner: StudyRunner, me: str, pid: int) -> None:
        self.visitor = visitor
        self.runner = runner
        self.me = me
        self.pid = pid
        self.joined = False
        self.trainee: Trainee | None = None
        self._reporter: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the training process goes."""
        goodbye = False
        try:
            while not goodbye:
                word, fd = await self.visitor.receive()
                try:
                    goodbye = await self._answer(word, fd)
                except FrameError:
                    raise
                except KonsilError as error:
                    await self.visitor.send(failure(error))
        finally:
            if self._reporter is not None:
                self._reporter.cancel()
            if self.trainee is not None and self.runner.trainee is self.trainee:
                self.runner.trainee = None
                self.runner.post(Detached(goodbye))
                _log.info("training left", study=self.runner.name, goodbye=goodbye, pid=self.pid)

    async def _answer(self, word: ToNode, fd: int | None) -> bool:
        """Act on a word; whether it was the last."""
        if self.trainee is None and not isinstance(word, Join):
            _close(fd)
            raise FrameError("A training process must join first.", do="Compare versions.")
        match word:
            case Join():
                await self._join(word, fd)
            case Update():
                await self._update(word, fd)
            case Progress():
                self.runner.post(ProgressMade(min(1.0, max(0.0, word.progress))))
            case Scored():
                score = Score(self.runner.name, word.round, word.examples, word.loss, word.metrics)
                await self.runner.scoring.take(score)
                await self.visitor.send(Noted(self.runner.site.ledger.state.height))
            case Wanted():
                await self._final(word)
            case Finished():
                await self.runner.finish(word.contribution)
                await self._settled(self._has_finished)
                await self.visitor.send(Noted(self.runner.site.ledger.state.height))
                return True
            case Goodbye():
                await self.visitor.send(Noted(self.runner.site.ledger.state.height))
                return True
            case _:
                _close(fd)
                raise FrameError(f"{type(word).__name__} is not for this socket.", do="Compare versions.")
        return False

    # --- joining -------------------------------------------------------------------------------

    async def _join(self, word: Join, fd: int | None) -> None:
        memory = open_sealed(fd) if fd is not None else None
        try:
            schema = await asyncio.to_thread(Schema.from_header, word.header)
            # Memory that was never written costs its sender nothing, and whoever reads it all that it claims.
            self.runner.merging.require_room(schema.data_bytes)
            study = self.runner.study
            if study.schema and schema.digest != study.schema:
                await self._refuse_schema(schema)
            if self.runner.trainee is not None:  # from here to the next line nobody else can come in
                raise NodeBusy("This study has a training process already.", do="End the other one.")
            self.trainee = Trainee(schema, self._tell)
            self.runner.trainee = self.trainee
            self.runner.merging.schema = schema
            if memory is not None and not study.initial and study.proposer == self.me:
                model = await asyncio.to_thread(model_of, memory, schema)
                memory = None
                self.runner.serve(model)
                self.runner.post(Offered(schema.digest, model.digest, schema.data_bytes))
        finally:
            if memory is not None:
                memory.close()
        _log.info("training joined", study=self.runner.name, pid=self.pid)
        self._reporter = asyncio.create_task(self._say_what_it_waits_for())
        await self.runner.last_words.forget()
        holds = word.digest if word.round == len(self.runner.study.history) else ""
        self.runner.post(Attached(holds))

    async def _refuse_schema(self, schema: Schema) -> NoReturn:
        differences: list[str] = []
        with suppress(KonsilError, TimeoutError):  # without a peer to ask, it is refused in fewer words
            async with asyncio.timeout(SCHEMA_S):
                differences = (await self.runner.merging.study_schema()).differences(schema)
        detail = " ".join(differences[:5]) or "Names, dtypes or shapes differ, or the parts that are frozen."
        raise SchemaMismatch(
            f"The model's parameters are not those of study {self.runner.name!r}. {detail}",
            safe="Nothing was changed; the others go on.",
            do="Build the model as the proposer does; compare with `konsil doctor --model FILE`.",
        )

    # --- updates -------------------------------------------------------------------------------

    async def _update(self, word: Update, fd: int | None) -> None:
        if fd is None or self.trainee is None:
            _close(fd)
            raise FrameError("An update came without its parameters.", do="Compare versions.")
        try:
            self.runner.require_participant()
            self._require_unfinished()
        except StudyError:
            _close(fd)
            raise
        memory = open_sealed(fd)
        try:
            model = await asyncio.to_thread(self._digested, memory)
        except BaseException:  # a node that stops meanwhile has nobody to serve it to
            memory.close()
            raise
        digest = model.digest
        self.runner.serve(model)
        self.runner.post(UpdateReady(word.round, word.base, digest, word.examples))
        stands = self.runner.state.update
        if stands is not None and stands.digest != digest:
            _log.warning("an earlier update of this round stands", study=self.runner.name, round=word.round)

    def _require_unfinished(self) -> None:
        """See that an update of this member can still count: else it would train on for nothing, unaware.

        Raises:
            StudyError: an earlier training process has finished, and the study goes on without this member.
        """
        study = self.runner.study
        participant = study.participants.get(self.me)
        if study.phase == "running" and participant is not None and participant.finished == "inactive":
            raise StudyError(
                f"{self.me} has finished study {self.runner.name!r} already and contributes nothing more.",
                safe="The model is untouched, and holds the last merge that was loaded.",
                do="To stop without finishing, call `leave()`, or join with `after='active'`; for more "
                "rounds of this member, propose a new study.",
            )

    def _digested(self, memory: SealedMemory) -> Model:
        trainee = self.trainee
        if trainee is None:
            raise FrameError("An update came before the model.", do="Compare versions.")
        return model_of(memory, trainee.schema)

    # --- delivering ----------------------------------------------------------------------------

    async def _tell(self, effect: Deliver, study: Study, model: Model | None) -> None:
        """Hand a model over: the answer to ``Join`` or ``Update``."""
        ended = study.ended if study.phase in {"finished", "failed"} else ""
        before, record = (None, None, *study.history[-2:])[-2:]
        interval, failed = study.open.interval if study.open is not None else 1, study.phase == "failed"
        if model is None or (self.joined and record is None):
            self.joined = True
            raise_to = StudyError(
                f"Study {self.runner.name!r} has ended without a merge: {study.ended}",
                safe="Your model is untouched.",
                do="Propose a new study.",
            )
            await self.visitor.send(failure(raise_to))
            return
        if not self.joined or record is None:
            has_it = self.runner.state.delivered == effect.digest
            if await self._turned_away(study):
                return
            self.joined = True
            word = Joined(
                study.settings, effect.round + 1, effect.digest, record, ended, interval, before, failed
            )
            await self.visitor.send(word, None if has_it else model.memory.fd)
            return
        merged = Merged(effect.round, effect.digest, record, study.settings, ended, interval, before, failed)
        await self.visitor.send(merged, model.memory.fd)

    async def _turned_away(self, study: Study) -> bool:
        """Whether the training process came before the study had a model, and with another one than it has.

        Then it leaves here, before the others are told that it is ready.
        """
        if self.trainee is None or not study.schema or self.trainee.schema.digest == study.schema:
            return False
        try:
            await self._refuse_schema(self.trainee.schema)
        except SchemaMismatch as mismatch:
            self.trainee = self.runner.trainee = None
            self.runner.post(Detached(goodbye=False))
            await self.visitor.send(failure(mismatch))
        return True

    async def _final(self, word: Wanted) -> None:
        """Answer with the final model; of a study that is over, once nobody can change the choice."""
        shelf, ledger = self.runner.shelf, self.runner.site.ledger
        settled = await shelf.settle(word.wait_s)
        chosen = shelf.chosen()
        if not settled:
            until_s = shelf.settled_at_s
            await self.visitor.send(Final(chosen.round, chosen.digest, settled=False, until_s=until_s))
            return
        model = await shelf.model_of(chosen)
        card = card_for(ledger.state, self.runner.name, chosen, model)
        await self.visitor.send(Final(chosen.round, model.digest, chosen.settled, card), model.memory.fd)

    async def _say_what_it_waits_for(self) -> None:
        ledger = self.runner.site.ledger
        said: Waiting | None = None
        while True:
            await ledger.changed(ledger.state.height, WAITING_EVERY_S)
            if not self.runner.state.waiting:
                continue
            try:
                self.runner.require_participant()
            except StudyError as struck:  # its updates count no more: training on would be for nothing
                await self.visitor.send(failure(struck))
                return
            word = waiting_for(self.runner)
            if word != said:
                said = word
                await self.visitor.send(word)

    # --- leaving -------------------------------------------------------------------------------

    def _has_finished(self) -> bool:
        if self.runner.state.scores:
            return False
        study = self.runner.study
        participant = study.participants.get(self.me)
        if participant is None or study.phase in {"finished", "failed"}:
            return True
        return participant.finished is not None

    async def _settled(self, done: Callable[[], bool]) -> None:
        """Wait until the last words stand on the ledger, or the time for that is up."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + FAREWELL_S
        ledger = self.runner.site.ledger
        while not done() and loop.time() < until_s:
            await ledger.changed(ledger.state.height, min(1.0, until_s - loop.time()))


def waiting_for(runner: StudyRunner) -> Waiting:
    """What a study at this node waits for, in words."""
    study = runner.study
    current = study.open
    if current is None:
        present = [name for name, who in study.participants.items() if who.present]
        absent = tuple(sorted(set(study.participants) - set(present)))
        need = study.settings.min_members
        stage = f"its start, with {len(present)} of {need} members ready"
        return Waiting(0, stage, absent, 0)
    if current.phase == "collecting":
        return Waiting(current.number, "updates", missing(current), current.deadline_s)
    if not current.digest:
        silent = tuple(sorted({part.leader for part in current.parts if not part.digest}))
        return Waiting(current.number, "the merge of parts", silent, current.deadline_s)
    late = tuple(name for name in current.roster if name not in current.accepts)
    return Waiting(current.number, "acceptance of the merge", late, current.deadline_s)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
