"""Models that are asked for now and then: taken from the disk or from peers, and given back afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from konsil import __version__
from konsil.core.model_card import card_of, encode_card
from konsil.core.round import finalists
from konsil.core.rules import FinalModel, State, Study, asked_for, choosable, final_round, is_over
from konsil.errors import KonsilError, StudyError
from konsil.node.merging import Merging
from konsil.node.outer import OuterStates
from konsil.node.site import Site
from konsil.node.store import Model, Store

LENT_S = 60.0
"""How long a model that was asked for stays in memory: peers ask for its chunks one after the other."""

CLOCK_SLACK_S = 5.0
"""The ledger's clock may be behind this node's by so much: `konsil doctor` warns of more. Behind by more, a
node calls a choice settled that a score in time could still change."""

SEEK_AGAIN_S, SEEK_AT_MOST_S = 30.0, 3600.0
"""Between two attempts to get a final model that nobody had, doubled each time."""

SETTLING_S = 5.0
"""How long somebody waits at a time for the last scores before being told how things are."""

_log = structlog.get_logger(__name__)


class Shelf:
    """The models of one study that no open round needs, above all the best one."""

    def __init__(
        self,
        site: Site,
        store: Store,
        merging: Merging,
        study: Callable[[], Study],
        let_go: Callable[[], None],
        outer: OuterStates,
        needed: Callable[[], frozenset[str]],
    ) -> None:
        """``let_go`` is called when a model has not been asked for any more; ``outer`` has, where there is an
        outer optimiser, the models that training went on from after a round; ``needed``: what stays on disk.
        """
        self._site = site
        self._store = store
        self._merging = merging
        self._study = study
        self._let_go = let_go
        self._outer = outer
        self._needed = needed
        self._lent: dict[str, float] = {}
        self._getting: dict[tuple[str, bool], asyncio.Task[Model]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sought = ""
        self._seeking: asyncio.Task[None] | None = None

    @property
    def lent(self) -> frozenset[str]:
        """Digests of the models that stay in memory since somebody has just asked for them."""
        return frozenset(self._lent)

    def look(self) -> None:
        """The ledger moved: of a study that is over, get the final model while peers are still there."""
        study = self._study()
        if not is_over(study) or self._site.me not in study.participants or not study.history:
            return
        final = final_round(study, self._site.ledger_s())
        if final.digest in {study.accepted, self._sought}:
            return
        self._sought = final.digest
        if self._seeking is not None:
            self._seeking.cancel()
        self._seeking = asyncio.create_task(self._seek(final))

    async def _seek(self, final: FinalModel) -> None:
        pause_s = SEEK_AGAIN_S
        while True:
            try:
                await self.model_of(final)
            except KonsilError as error:
                _log.warning("the final model is not here", digest=final.digest, why=str(error))
            else:
                return
            await asyncio.sleep(pause_s)  # nobody tells when a member that has it is back
            pause_s = min(2 * pause_s, SEEK_AT_MOST_S)

    def chosen(self, number: int = 0) -> FinalModel:
        """The study's final model or, with a number, the merge of that round; -1 for the last one.

        Raises:
            StudyError: there is no such round, or no model yet.
        """
        study = self._study()
        if not study.accepted:
            raise StudyError(
                f"Study {study.settings.name!r} has no model yet.",
                safe="Nothing was changed.",
                do="It comes with the proposer's training: wait until that has joined.",
            )
        # Lateness is by the ledger's time; where nothing has moved that on, this node's clock stands for it.
        now_s = max(self._site.ledger.state.now_s, self._site.ledger_s() - CLOCK_SLACK_S)
        final = final_round(study, now_s)
        last = len(study.history)
        number = last if number < 0 else number
        if number in {0, final.round}:
            return final
        if number > last:
            raise StudyError(
                f"Round {number} of study {study.settings.name!r} is not accepted; {last} are.",
                safe="Nothing was changed.",
                do=f"See `konsil study status {study.settings.name}`.",
            )
        return asked_for(study, number, final)

    async def settle(self, wait_s: float) -> bool:
        """Wait for the choice of a study that is over to be settled; whether it is, or the study goes on."""
        loop, ledger = asyncio.get_running_loop(), self._site.ledger
        until_s = loop.time() + max(0.0, min(SETTLING_S, wait_s))
        while is_over(self._study()) and not self.chosen().settled:
            left_s = until_s - loop.time()
            if left_s <= 0:
                return False
            await ledger.changed(ledger.state.height, left_s)
        return True

    @property
    def settled_at_s(self) -> float:
        """Unix time at which the choice of a study that is over is settled at the latest."""
        study = self._study()
        return study.ended_s + study.settings.silence_s + CLOCK_SLACK_S

    async def model_of(self, chosen: FinalModel) -> Model:
        """The model that stands for a round: its merge or, where an outer optimiser steps from merge to
        merge, what training went on from.

        Raises:
            StudyError: nobody holds it any more.
        """
        study = self._study()
        if study.settings.outer is None:
            return await self.model(chosen.digest)
        last = len(study.history)
        is_kept = chosen.round in {last, *choosable(study)}
        found = await self._outer.model_after(chosen.round) if is_kept else None
        if found is None:
            raise StudyError(
                f"The model after round {chosen.round} of study {study.settings.name!r} is not at this node.",
                safe="Nothing was changed.",
                do="There are those after the last round and, with `best`, after those that can be chosen.",
            )
        return found if chosen.round == last else self._keep(found)

    async def model(self, digest: str) -> Model:
        """A model by its digest: from memory, from disk, or from peers.

        Raises:
            StudyError: nobody holds it any more.
        """
        try:
            return await asyncio.shield(self._get(digest, from_peers=True))
        except KonsilError as error:
            name = self._study().settings.name
            raise StudyError(
                f"The model {digest[:12]} of study {name!r} is not at this node. {error.what}",
                safe="Nothing was changed.",
                do="Members keep the last merges and the best one; of others only the digests remain.",
            ) from error

    async def recall(self, digest: str) -> bool:
        """Take a model that a peer asks for from disk into memory; whether it is there now."""
        study = self._study()
        if digest not in finalists(study) | {record.digest for record in study.history[-2:]}:
            return study.settings.outer is not None and await self._outer.recall(digest)
        try:
            await asyncio.shield(self._get(digest, from_peers=False))
        except StudyError:
            return False
        return True

    def _get(self, digest: str, *, from_peers: bool) -> asyncio.Task[Model]:
        key = digest, from_peers
        if key not in self._getting:
            task = asyncio.create_task(self._found(digest, from_peers=from_peers))
            self._getting[key] = task
            task.add_done_callback(partial(self._got, key))
        return self._getting[key]

    def _got(self, key: tuple[str, bool], task: asyncio.Task[Model]) -> None:
        self._getting.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen: whoever asked may have gone meanwhile

    async def _found(self, digest: str, *, from_peers: bool) -> Model:
        name = self._study().settings.name
        model = self._store.model(digest) or await self._site.models.load(name, digest)
        if model is not None:
            return self._keep(model)
        if not from_peers:
            raise StudyError("It is not on this node's disk.")
        model = self._keep(await self._merging.fetch(digest))
        await self._site.models.save(name, model, self._needed)
        return model

    def _keep(self, model: Model) -> Model:
        loop = asyncio.get_running_loop()
        self._lent[model.digest] = loop.time() + LENT_S
        self._store.add_model(model)
        if self._timer is None:
            self._timer = loop.call_later(LENT_S, self._expire)
        return self._store.model(model.digest) or model  # it may have been there already

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        self._lent = {digest: until_s for digest, until_s in self._lent.items() if until_s > loop.time()}
        if self._lent:
            self._timer = loop.call_at(min(self._lent.values()), self._expire)
        self._let_go()

    async def close(self) -> None:
        """Stop getting models."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._getting.values(), *([self._seeking] if self._seeking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lent.clear()


def card_for(state: State, study: str, chosen: FinalModel, model: Model) -> bytes:
    """The card that goes with a model."""
    groups = [len(group) for group in model.manifest.groups]
    found = state.studies[study]
    return encode_card(card_of(state, found, chosen, model.digest, groups, software=__version__))
