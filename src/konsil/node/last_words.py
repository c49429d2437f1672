"""What a training process said when it finished: kept for the ledger, and for the node's next life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from konsil.core.round import Event, Farewell, FinishWanted
from konsil.core.rules import Study, is_over
from konsil.errors import KonsilError
from konsil.node.journal import StudyJournal
from konsil.node.site import Site
from konsil.node.store import Model

_log = structlog.get_logger(__name__)


class LastWords:
    """One study's farewell in the journal, and the snapshot on disk that it may speak of."""

    def __init__(
        self,
        name: str,
        site: Site,
        journal: StudyJournal,
        study: Callable[[], Study],
        needed: Callable[[], frozenset[str]],
    ) -> None:
        """``needed`` gives the models that stay on disk for other reasons."""
        self._name = name
        self._site = site
        self._journal = journal
        self._study = study
        self._needed = needed
        self._farewell: Farewell | None = None
        self._forgetting: asyncio.Task[None] | None = None

    async def take_up(self, serve: Callable[[Model], None], post: Callable[[Event], None]) -> None:
        """Go on with what a training process left when it finished, in an earlier life of this node.

        Args:
            serve: gets the snapshot, if it is here.
            post: tells the machine a fact.
        """
        farewell = self._farewell = self._journal.farewell
        if farewell is None or is_over(self._study()):
            return
        update = farewell.update
        model = await self._site.models.load(self._name, update.digest) if update is not None else None
        if update is not None and model is not None:
            serve(model)
            post(update)
        post(FinishWanted(farewell.contribution))

    async def note(self, farewell: Farewell) -> None:
        """Write down what was said; its snapshot is on disk already.

        Raises:
            LedgerError: the disk is full or failed.
        """
        await asyncio.to_thread(self._journal.note_farewell, farewell)
        self._farewell = farewell

    async def forget(self) -> None:
        """A training process has come back: what an earlier one said is over.

        Raises:
            LedgerError: the disk is full or failed.
        """
        self._farewell = None
        await asyncio.to_thread(self._journal.note_farewell, None)

    def look(self) -> None:
        """Once the study is over, nobody asks for a snapshot any more: an update does not stay on disk."""
        if self._farewell is None or self._forgetting is not None or not is_over(self._study()):
            return
        farewell, self._farewell = self._farewell, None
        self._forgetting = asyncio.create_task(self._end(farewell))
        self._forgetting.add_done_callback(self._ended)

    async def _end(self, farewell: Farewell) -> None:
        try:
            if farewell.update is not None and farewell.update.digest not in self._needed():
                await self._site.models.remove(self._name, farewell.update.digest)
            await asyncio.to_thread(self._journal.note_farewell, None)
        except (KonsilError, OSError) as error:
            _log.warning("a snapshot stays on disk until the next start", study=self._name, why=str(error))

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._forgetting = None

    async def close(self) -> None:
        """Stop; what is still on disk is deleted at the next start."""
        self._farewell = None
        if self._forgetting is not None:
            self._forgetting.cancel()
            await asyncio.gather(self._forgetting, return_exceptions=True)
