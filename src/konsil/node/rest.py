"""A study that is over: its model is served from disk and takes no memory any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from konsil.node.models import Models
from konsil.node.store import Store


class Rest:
    """Puts the last model of one study aside."""

    def __init__(self, name: str, models: Models, store: Store, resting: Callable[[], str]) -> None:
        """``resting`` gives the digest of the model that may be put aside now, "" if there is none."""
        self._name = name
        self._models = models
        self._store = store
        self._resting = resting
        self._task: asyncio.Task[None] | None = None
        self._look_again = False
        self._closed = False

    def look(self) -> None:
        """Something has changed: put the model aside if nobody needs it in memory."""
        if self._task is not None:
            self._look_again = True  # what is under way may have looked before the change
            return
        digest = self._resting()
        if digest and not self._closed:
            self._task = asyncio.create_task(self._put_aside(digest))
            self._task.add_done_callback(self._over)

    async def _put_aside(self, digest: str) -> None:
        stored = await self._models.open(self._name, digest)
        if stored is None:
            return  # it is not on disk (yet): memory is all there is
        if self._resting() == digest:
            self._store.drop_stored(digest)  # an earlier one may be of a file that was damaged and is new now
            self._store.put_aside(stored)
        else:  # somebody came meanwhile
            stored.close()

    def _over(self, _: asyncio.Task[None]) -> None:
        self._task = None
        if self._look_again:
            self._look_again = False
            self.look()

    async def close(self) -> None:
        """Stop; what ends meanwhile may still ask to look."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
