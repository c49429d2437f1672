"""The outer optimiser of a study at this node: its states, and the models that training goes on from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import structlog

from konsil.core.digest import chunk_count, chunk_range, leaf
from konsil.core.outer import Layout, Read, advance, check_state, first, layout_of, take_model
from konsil.core.parameters import Schema
from konsil.core.round import Advance, Advanced
from konsil.core.rules import Outer, RoundRecord, Study, agreed_start, choosable_starts, start_of
from konsil.errors import DigestMismatch, KonsilError, NodeError, StudyError
from konsil.node.merging import Merging
from konsil.node.models import Models
from konsil.node.pull import in_thread
from konsil.node.store import Assembly, Model, Store, StoredModel

State = Model | StoredModel

Made = tuple[State, Model]
"""A state, and the model that is in it."""

T = TypeVar("T", tuple[Model], tuple[Model, Model])

_log = structlog.get_logger(__name__)


class OuterStates:
    """The outer states of one study: after the accepted merge, and the one before it, for who comes late.

    In a study without an outer optimiser it holds nothing, and the merge itself is the model.
    """

    def __init__(
        self, name: str, models: Models, store: Store, merging: Merging, study: Callable[[], Study]
    ) -> None:
        """``study``: the study as it stands on the ledger now."""
        self.name = name
        self.folder = f"{name}.outer"  # no study's name holds a dot
        self.models = models
        self.store = store
        self.merging = merging
        self._study = study
        self._now = Advanced("", "", "")
        self._before = ""
        self._in_use: frozenset[str] = frozenset()
        self._turn = asyncio.Lock()
        self._recalls = asyncio.Lock()
        self._saves: set[asyncio.Task[None]] = set()
        self.problem = ""
        self._locked_out = False

    async def close(self) -> None:
        """Stop waiting for what is being written; ``Models`` writes it to its end."""
        for task in self._saves:
            task.cancel()
        await asyncio.gather(*self._saves, return_exceptions=True)

    def model(self, merge: str) -> Model | None:
        """The model that training goes on from after an accepted merge, if it is here.

        Without an outer optimiser that is the merge; with one, its step from the model before.
        """
        if self._study().settings.outer is None:
            return self.store.model(merge)
        return self.store.model(self._now.model) if self._now.digest == merge else None

    async def model_after(self, number: int) -> Model | None:
        """The model that training went on from after a round, if it is here or can be had.

        Args:
            number: of a round that can still be chosen (``choosable``); others may be gone everywhere.

        Returns:
            A model; where it is not the last one, the caller closes its memory.

        Raises:
            PeerUnreachable: its state is not here, and nobody could give it.
        """
        study = self._study()
        if number == len(study.history) or study.settings.outer is None:
            record = study.history[number - 1] if number else None
            return self.model(record.digest if record else study.initial)
        merge, start = self.store.model(study.accepted), start_of(study.history[number], self.merging.me)
        if merge is None or not start:
            return None
        layout = await asyncio.to_thread(layout_of, merge.schema)
        async with self._recalls:
            state = await self._have(layout, start)
            (model,) = await _work(partial(_model_in, layout, state.reader()))
            if isinstance(state, Model):
                await self._save(state)
        return model

    async def recall(self, digest: str) -> bool:
        """Serve a state that a peer asks for from this node's disk; whether it is there."""
        if digest not in self.needed():
            return False
        async with self._recalls:
            return await self._on_disk(digest) is not None

    def needed(self) -> frozenset[str]:
        """Digests that must stay: what training goes on from, and what peers may ask for."""
        study = self._study()
        if study.settings.outer is None:
            return frozenset()
        digests = {agreed_start(study), *choosable_starts(study, self.merging.me), *self._in_use}
        is_new = self._now.digest == study.accepted
        if is_new:
            digests |= {self._now.model, self._before}
        if not is_new or study.phase not in {"finished", "failed"}:  # the next step starts from it
            digests.add(self._now.start)
        return frozenset(digests - {""})

    # --- stepping ------------------------------------------------------------------------------

    async def advance(self, effect: Advance) -> Advanced:
        """Have the outer state after the accepted merge.

        Raises:
            StudyError: the study went on, or its members trained from different states.
            NodeError: this node has not the memory for it.
            PeerUnreachable: it takes a state that nobody could give.
        """
        async with self._turn:  # one that is cancelled ends only with its thread
            return await self._advance(effect)

    async def _advance(self, effect: Advance) -> Advanced:
        study = self._study()
        merge, outer = self.store.model(effect.digest), study.settings.outer
        if merge is None or outer is None or study.accepted != effect.digest:
            raise StudyError(
                f"Round {effect.round} is not the last accepted one.", do="It is looked at anew."
            )
        layout = await asyncio.to_thread(layout_of, merge.schema)
        # For a moment there are three models, as in every study, and the new state beside them.
        self.merging.require_room(study.data_bytes + layout.state.data_bytes // 3)
        try:
            if effect.start:
                self._differs(effect.round, self._now.start, effect.start)
                made = await self._theirs(layout, effect.start)
            elif effect.round == 0:
                (state,) = await _work(partial(_first, outer, layout, merge))
                made = state, merge
            else:
                made = await self._stepped(outer, layout, study, merge)
            return self._take(effect.digest, *made)
        finally:
            self._in_use = frozenset()

    async def _stepped(self, outer: Outer, layout: Layout, study: Study, merge: Model) -> Made:
        """The step of the last round."""
        start = self._start_of(study.history[-1])
        self._in_use = frozenset({start})
        try:
            before = await self._have(layout, start)
        except KonsilError:
            later = agreed_start(study)
            if not later:
                raise
            self._before = ""
            return await self._theirs(layout, later)
        made = await _work(partial(_advanced, outer, layout, before.reader(), merge))
        self._before = start
        self._save_behind(before)
        return made

    def _start_of(self, record: RoundRecord) -> str:
        """The state that a round was trained from; where none has a majority, this node's own.

        Raises:
            StudyError: neither.
        """
        agreed, before = start_of(record), record.number - 1
        mine = record.roster.get(self.merging.me)
        own = mine.start if mine is not None else ""
        where = f"compare `start` in `konsil ledger show {self.name} {record.number} --json`"
        if agreed:
            if own == agreed or self._locked_out:
                self.problem, self._locked_out = "", False
            elif own:
                self._differs(before, own, agreed)
        elif own:
            self.problem = (
                f"After round {before} the members had different outer states, and none had a majority: they "
                f"train from different models. This node goes on from its own. To see who has which, {where}."
            )
        else:
            error = StudyError(
                f"After round {before} the members had different outer states, and none had a majority.",
                safe="Nothing was loaded: this node takes part again once more than half have one state.",
                do=f"To see who has which, {where}; if it lasts, propose a new study.",
            )
            # What the next round brings is tried, too; people must not lose sight of this meanwhile.
            self.problem, self._locked_out = str(error), True
            raise error
        return agreed or own

    def _differs(self, number: int, own: str, theirs: str) -> None:
        self.problem = (
            f"After round {number} this node computed another outer state than the others ({own[:12]}, not "
            f"{theirs[:12]}). It goes on from theirs; accepted rounds are safe. Test this machine's memory, "
            "and compare versions: `konsil doctor`."
        )
        _log.error(
            "another outer state than the others", study=self.name, round=number, own=own, theirs=theirs
        )

    async def _theirs(self, layout: Layout, start: str) -> Made:
        """A state that a majority trains from, as it is."""
        self._in_use |= {start}
        state = await self._have(layout, start)
        (model,) = await _work(partial(_model_in, layout, state.reader()))
        return state, model

    async def _have(self, layout: Layout, digest: str) -> State:
        """A state by its digest, every byte checked: from memory, from disk, or from a peer."""
        found = self.store.model(digest) or await self._on_disk(digest)
        if found is not None:
            return found
        fetched = await self.merging.fetch(digest, layout.state)
        try:
            await in_thread(partial(check_state, layout, fetched.data()))
        except BaseException:
            fetched.close()
            raise
        return self._serve(fetched)

    async def _on_disk(self, digest: str) -> StoredModel | None:
        """A state on this node's disk, if it is there and undamaged."""
        stored = self.store.stored(digest)
        if stored is None:
            stored = await self.models.open(self.folder, digest)
            if stored is None:
                return None
            self.store.put_aside(stored)
        try:
            await in_thread(stored.check)
        except (DigestMismatch, NodeError) as error:
            _log.warning("a stored outer state is damaged; it is fetched", study=self.name, why=str(error))
            self.store.drop_stored(digest)
            await self.models.remove(self.folder, digest)
            return None
        return stored

    def _take(self, merge: str, state: State, model: Model) -> Advanced:
        """Go on from a state and its model."""
        model = self._serve(model)
        if isinstance(state, Model):
            state = self._serve(state)
        self._now = Advanced(merge, state.digest, model.digest)
        if self._study().phase not in {"finished", "failed"}:  # nothing starts from the last one
            self._save_behind(state)
        return self._now

    def _serve(self, model: Model) -> Model:
        """Serve a model or a state; the one that is served, where the same bytes were here already."""
        self.store.add_model(model)
        return self.store.model(model.digest) or model

    # --- disk ----------------------------------------------------------------------------------

    async def make_durable(self, start: str) -> None:
        """See that a state is on disk before this node says on the ledger that it trains from it.

        Raises:
            NodeError: the disk refuses.
        """
        state = self.store.model(start)
        if state is not None:  # else it is there already
            await self._put_aside(state)

    async def _put_aside(self, state: Model) -> None:
        """Write a state to disk; from there it is served, so that its memory is free."""
        await self.models.save(self.folder, state, self.needed)
        stored = await self.models.open(self.folder, state.digest)
        if stored is not None:
            self.store.put_aside(stored)

    def _save_behind(self, state: State) -> None:
        """Write a state while training goes on; the next commit waits for it, and says what is wrong."""
        if not isinstance(state, Model):
            return
        task = asyncio.create_task(self._save(state))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    async def _save(self, state: Model) -> None:
        try:
            await self._put_aside(state)
        except NodeError as error:
            _log.warning("an outer state is not on disk yet", study=self.name, why=str(error))


async def _work(make: Callable[[], T]) -> T:
    """Make models in a thread; who is cancelled meanwhile gives their memory back."""
    working = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        if not working.cancelled() and working.exception() is None:
            for model in working.result():
                model.close()
        raise


def _first(outer: Outer, layout: Layout, initial: Model) -> tuple[Model]:
    with ExitStack() as stack:
        state = _assembly(stack, layout.state)
        with state.whole() as out:
            first(outer, layout, initial.data(), out)
        return (_sealed(state),)


def _advanced(outer: Outer, layout: Layout, before: Read, merge: Model) -> tuple[Model, Model]:
    with ExitStack() as stack:
        after, model = _assembly(stack, layout.state), _assembly(stack, layout.model)
        with after.whole() as out, model.whole() as model_out:
            advance(outer, layout, before, merge.data(), out, model_out)
        return _sealed(after), _sealed(model)


def _model_in(layout: Layout, state: Read) -> tuple[Model]:
    with ExitStack() as stack:
        model = _assembly(stack, layout.model)
        with model.whole() as out:
            take_model(layout, state, out)
        return (_sealed(model),)


def _assembly(stack: ExitStack, schema: Schema) -> Assembly:
    assembly = Assembly(schema)
    stack.callback(assembly.close)
    return assembly


def _sealed(assembly: Assembly) -> Model:
    """What was put together, every byte digested, as a model of one group."""
    data_bytes = assembly.schema.data_bytes
    with assembly.whole() as data:
        leaves = [
            leaf(data[slice(*chunk_range(index, data_bytes))]) for index in range(chunk_count(data_bytes))
        ]
    return assembly.seal([leaves])
