"""A study at this node: feeds the round machine of ``core`` with facts and carries out its effects."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from konsil.core import round as machine
from konsil.core.round import (
    Advance,
    Cancel,
    Deliver,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    FinishWanted,
    Found,
    Held,
    Lead,
    Looked,
    NodeRound,
    PartMerged,
    Probe,
    Recompute,
    Submit,
    Suspected,
)
from konsil.core.rules import Commit, Contribution, OpenRound, Score, Study, is_over, readable
from konsil.core.wall import MemberProgress, StudyStatus
from konsil.errors import KonsilError, MergeMismatch, Refused, StudyError, UpdatesMissing
from konsil.node.heartbeats import Heartbeats
from konsil.node.journal import Mended
from konsil.node.last_words import LastWords
from konsil.node.merging import Merging
from konsil.node.outer import OuterStates
from konsil.node.rest import Rest
from konsil.node.saving import Saving
from konsil.node.scoring import Scoring
from konsil.node.shelf import Shelf
from konsil.node.site import Site
from konsil.node.start import Start
from konsil.node.store import Model, Store
from konsil.node.trainee import Trainee

REFUSED_OFTEN = 2
"""A call that the contract refuses once or twice came too late or too early; one that it refuses again and
again is a problem that people must see."""

_log = structlog.get_logger(__name__)


class StudyRunner:
    """One study at one node."""

    def __init__(self, name: str, site: Site) -> None:
        """Start with nothing but what the ledger and the disk say."""
        self.name = name
        self.site = site
        self.store = Store()
        self.state = NodeRound(me=site.me, study=name)
        self.trainee: Trainee | None = None
        self._problems: dict[Effect, str] = {}
        self.merging = Merging(name, site, self.store, lambda: self.study)
        self.outer = OuterStates(name, site.models, self.store, self.merging, lambda: self.study)
        self.shelf = Shelf(
            site, self.store, self.merging, lambda: self.study, self._let_go, self.outer, self._needed
        )
        self._tasks: dict[Effect, asyncio.Task[None]] = {}
        self._wake: asyncio.TimerHandle | None = None
        self.heartbeats = Heartbeats(name, site, lambda: self.study, self._progress)
        self._rest = Rest(name, site.models, self.store, self._resting)
        self.journal = site.journal.of(name)
        self.last_words = LastWords(name, site, self.journal, lambda: self.study, self._needed)
        self.scoring = Scoring(site, self.journal, lambda: self.study, lambda: self.state, self.post)
        self.saving = Saving(name, site.models, self.store, lambda: self.study, self._needed, self._rest.look)
        self.start = Start(name)
        self._mended = Mended(0, None, 0)
        self._closed = False

    @property
    def study(self) -> Study:
        """The study as it stands on the ledger."""
        return self.site.ledger.state.studies[self.name]

    @property
    def problem(self) -> str:
        """What fails now and is tried again, in sentences; "" while all is well."""
        problems = [*self._problems.values(), self.saving.problem, self.outer.problem]
        problems.append(str(self.journal.damage or self.start.failed))
        if self.site.me in self.study.participants and self.study.phase not in {"finished", "failed"}:
            problems.append(self.site.rules.problem(self.study.settings))
        return " ".join(dict.fromkeys(problem for problem in problems if problem))

    def require_participant(self) -> None:
        """See that this member takes part in the study, and that its node can.

        Raises:
            StudyError: it has not agreed, or was struck.
            NodeBusy: what the node has noted of this study is damaged, or the study could not begin.
        """
        if (damage := self.journal.damage) is not None:
            raise damage
        participant = self.study.participants.get(self.site.me)
        if participant is None:
            raise StudyError(
                f"{self.site.me} has not agreed to study {self.name!r}.",
                safe="Nothing was changed.",
                do=f"Look at it and agree: `konsil study agree {self.name}`.",
            )
        if participant.struck:
            raise StudyError(
                f"{self.site.me} was struck from study {self.name!r}: a merge that it published was wrong.",
                safe="The model up to then is on every member's disk.",
                do=f"See `konsil ledger show {self.name}`; a faulty memory module can be the cause.",
            )
        self.start.require()

    async def open(self) -> None:
        """Read what is noted of this study, then begin."""
        async with self.start.turn:
            with self.start.attempt():
                await asyncio.to_thread(self.journal.open, self._may_have_promised())
                await self._begin()

    def _may_have_promised(self) -> tuple[machine.Promise, ...]:
        return machine.may_have_promised(self.site.me, self.study)

    async def _begin(self) -> None:
        """Take the last accepted merge from disk, if it is there, and begin; with no journal only serve."""
        if self.journal.damage is None:
            # First the snapshot: in the place of one that is not here the merge would do.
            await self.last_words.take_up(self.serve, self._step)
        model = await self.site.models.load(self.name, self.study.accepted)
        if model is not None:
            self.serve(model)
            self._step(Held(model.digest))
        if (damage := self.journal.damage) is not None:
            _log.error("a study is stopped", study=self.name, why=str(damage))
            return
        for event in self.start.begin():
            self.post(event)
        self.heartbeats.start()
        self.scoring.take_up()
        self.look()

    async def mend(self) -> Mended:
        """Begin with what a damaged journal still says, or again where the study could not begin.

        Raises:
            NodeError, LedgerError: there is nothing to mend, or the disk refuses; nothing was changed.
        """
        async with self.start.turn:
            if self.journal.damage is not None or not self.start.failed:
                self._mended = told = await asyncio.to_thread(self.journal.mend, self._may_have_promised())
                _log.warning("a study is mended", study=self.name, kept=told.kept, aside=str(told.aside))
            with self.start.attempt():
                await self._begin()
        return self._mended

    async def finish(self, contribution: Contribution) -> None:
        """The training process has finished. The ledger hears of it, even if this node dies before it does.

        Raises:
            NodeError, LedgerError: the disk is full or failed.
        """
        farewell = machine.farewell_of(self.state, contribution)
        if farewell.update is not None:
            await self.saving.make_durable(farewell.update.digest)
        await self.last_words.note(farewell)
        self.post(FinishWanted(contribution))

    def look(self) -> None:
        """The ledger moved."""
        self.post(Looked())
        self.shelf.look()
        if self.start.begun:
            self.last_words.look()

    async def close(self) -> None:
        """Stop everything; what was promised stays in the journal."""
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        parts = (self.saving, self.shelf, self.heartbeats, self._rest, self.last_words)
        await asyncio.gather(*tasks, *(part.close() for part in parts), return_exceptions=True)
        await self.outer.close()
        self.merging.close()
        self.store.close()

    # --- the machine ---------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Tell the machine a fact and carry out what it wants."""
        if self.journal.damage is None and not self.start.keeps(event):
            self._step(event)

    def _step(self, event: Event) -> None:
        if self._closed or self.journal.damage is not None:
            return
        now_s = self.site.ledger_s()
        before = machine.stage(self.state, self.study)
        self.state, effects, wake_s = machine.step(self.state, event, self.study, now_s)
        self._problems = {e: why for e, why in self._problems.items() if e in self.state.retries}
        for effect in effects:
            self._start(effect)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if wake_s < math.inf:
            loop = asyncio.get_running_loop()
            self._wake = loop.call_later(max(0.0, wake_s - now_s) + 0.001, self.post, Looked())
        after = machine.stage(self.state, self.study)
        if after != before:
            _log.info("stage", study=self.name, stage=after, round=self._round_number())
        self._let_go()
        self.saving.behind()
        self.scoring.look()

    def _start(self, effect: Effect) -> None:
        if isinstance(effect, Cancel):
            task = self._tasks.pop(effect.effect, None)
            if task is not None:
                task.cancel()
            return
        task = asyncio.create_task(self._carry_out(effect), name=f"{self.name}: {type(effect).__name__}")
        self._tasks[effect] = task
        task.add_done_callback(partial(self._over, effect))

    def _over(self, effect: Effect, task: asyncio.Task[None]) -> None:
        if self._tasks.get(effect) is task:
            del self._tasks[effect]
        if not task.cancelled() and task.exception() is not None:
            _log.error("an effect broke", study=self.name, effect=str(effect), exc_info=task.exception())
            self._problems[effect] = f"internal error: {task.exception()!r}"
            self.post(Failed(effect))
        self._rest.look()

    async def _carry_out(self, effect: Effect) -> None:
        began_s = time.perf_counter()
        try:
            await self._perform(effect)
        except Refused as refusal:
            if isinstance(effect, Submit) and isinstance(effect.call, Score):
                _log.warning("a score was refused", study=self.name, why=refusal.what)
            else:
                _log.debug("refused", study=self.name, code=refusal.code, effect=str(effect))
            before = self.state.retries.get(effect)
            if before is not None and before.failures >= REFUSED_OFTEN:
                self._problems[effect] = str(refusal)
            self.post(machine.failed(effect, refusal))
        except UpdatesMissing as missing:
            self._problems[effect] = missing.what
            _log.warning("updates missing", study=self.name, members=missing.members, why=missing.what)
            self.post(machine.failed(effect, missing))
        except (KonsilError, TimeoutError, ConnectionError) as error:
            self._problems[effect] = str(error)
            _log.warning("to be tried again", study=self.name, effect=type(effect).__name__, why=str(error))
            self.post(machine.failed(effect, error))
        else:
            what = type(effect.call if isinstance(effect, Submit) else effect).__name__
            _log.debug("done", study=self.name, what=what, took_s=round(time.perf_counter() - began_s, 4))
            self.post(Done(effect))

    def _perform(self, effect: Effect) -> Coroutine[Any, Any, None]:
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
                return self.merging.probe(effect)
            case Advance():
                return self._advance(effect)
            case Deliver():
                return self._deliver(effect)
            case _:
                raise TypeError(effect)

    # --- effects -------------------------------------------------------------------------------

    async def _submit(self, effect: Submit) -> None:
        call = effect.call
        for digest in machine.durable_before(call):
            await self.saving.make_durable(digest)
        if isinstance(call, Commit):
            await self.outer.make_durable(call.start)
        promise = machine.promise_of(call)
        if promise is not None:
            await asyncio.to_thread(self.journal.promise, promise)
        await self.site.submit(call)

    async def _fetch(self, effect: Fetch) -> None:
        if effect.attempt:
            self.serve(await self._complete(self.merging.current(effect)))
        elif self.store.model(effect.digest) is None:
            # On this node's own disk, too: when it started its ledger may have been behind what it had saved.
            model = await self.site.models.load(self.name, effect.digest)
            self.serve(model or await self.merging.fetch(effect.digest))
        self.post(Held(effect.digest))

    async def _complete(self, current: OpenRound) -> Model:
        try:
            return await self.merging.complete(current)
        except MergeMismatch as mismatch:
            _log.error("a wrong merge", study=self.name, why=str(mismatch))
            part, chunk = mismatch.fields["part"], mismatch.fields["chunk"]
            if isinstance(part, int) and isinstance(chunk, int):
                self.post(Suspected(current.number, current.attempt, part, chunk))
            raise

    async def _lead(self, effect: Lead) -> None:
        digest, gram = await self.merging.lead(effect)
        self.post(PartMerged(effect.round, effect.attempt, effect.part, digest, gram))

    async def _recompute(self, effect: Recompute) -> None:
        self.post(Found(effect, await self.merging.recompute(effect)))

    async def _advance(self, effect: Advance) -> None:
        self.post(await self.outer.advance(effect))

    async def _deliver(self, effect: Deliver) -> None:
        """Hand the model to the training process; without one there is nobody to hand it to."""
        trainee = self.trainee
        if trainee is None:
            return
        if self.store.stored(effect.digest) is not None:
            await self.shelf.model(effect.digest)  # a study that is over lies on disk
        model = self.outer.model(effect.digest)
        if model is None and self.study.phase != "failed":  # the ledger moved just when this began
            raise StudyError(f"The model {effect.digest[:12]} was let go of: there is a newer one.")
        await trainee.tell(effect, self.study, model)

    # --- models --------------------------------------------------------------------------------

    def serve(self, model: Model) -> None:
        """Keep a model, and serve it to peers."""
        self.merging.schema = model.schema
        self.store.add_model(model)

    def _needed(self) -> frozenset[str]:
        return machine.to_keep(self.state, self.study)

    def _let_go(self) -> None:
        """Forget models and benches that no peer can ask for any more."""
        keep = {*machine.to_hold(self.state, self.study), *self.outer.needed(), *self.shelf.lent}
        self.merging.let_go()
        self.store.keep_only(keep, self.merging.assembly)
        self._rest.look()

    def _resting(self) -> str:
        """The model that nobody here has to hold in memory any more, "" if there is none (yet)."""
        study = self.study
        busy = (
            self.trainee is not None or self._tasks or self.saving.busy or study.accepted in self.shelf.lent
        )
        if busy or not is_over(study) or study.settings.outer is not None:
            return ""
        return study.accepted if self.store.model(study.accepted) is not None else ""

    # --- peers ---------------------------------------------------------------------------------

    def may_read(self, peer: str, digest: str) -> bool:
        """Whether a peer may have what is behind a digest, as far as this study goes."""
        return digest in readable(self.study, peer)

    def _round_number(self) -> int:
        return self.study.open.number if self.study.open is not None else len(self.study.history)

    def status(self) -> StudyStatus:
        """What this node does in the study, for people."""
        mine = self._progress()
        return StudyStatus(self.name, mine.stage, mine.round, (mine, *self.heartbeats.peers), self.problem)

    def _progress(self) -> MemberProgress:
        stopped = self.journal.damage is not None or self.start.failed
        stage = "stopped" if stopped else machine.stage(self.state, self.study)
        return MemberProgress(
            self.site.me, self._round_number(), stage, self.state.progress, self.site.ledger_s()
        )
