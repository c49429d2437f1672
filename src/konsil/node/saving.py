"""One study's models on their way to disk: behind training's back, and before a call relies on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from konsil.core.rules import Study
from konsil.errors import KonsilError, StudyError
from konsil.node.models import Models
from konsil.node.store import Model, Store

SAVE_AGAIN_S = 5.0
"""Between two attempts to write the accepted model to a disk that refuses."""

_log = structlog.get_logger(__name__)


class Saving:
    """``problem``: why the accepted model is not on disk yet, in sentences; "" while all is well."""

    def __init__(
        self,
        name: str,
        models: Models,
        store: Store,
        study: Callable[[], Study],
        needed: Callable[[], frozenset[str]],
        done: Callable[[], None],
    ) -> None:
        """``needed`` gives the models that stay on disk; ``done`` is called when one has been written."""
        self.problem = ""
        self._name = name
        self._models = models
        self._store = store
        self._study = study
        self._needed = needed
        self._done = done
        self._latest = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return bool(self._tasks)

    def behind(self) -> None:
        """Write the accepted model to disk while training goes on; the next commit waits for it."""
        model = self._store.model(self._study().accepted)
        if model is None or model.digest == self._latest:
            return
        self._latest = model.digest
        task = asyncio.create_task(self._save(model))
        self._tasks.add(task)
        task.add_done_callback(self._saved)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._done()

    async def _save(self, model: Model) -> None:
        while model.digest == self._study().accepted:
            try:
                await self._models.save(self._name, model, self._needed)
            except KonsilError as error:
                if model.digest != self._study().accepted:
                    return  # what matters now is the next one
                self.problem = str(error)
                _log.warning("the accepted merge is not on disk yet", study=self._name, why=str(error))
                await asyncio.sleep(SAVE_AGAIN_S)  # nobody tells when a full disk has room again
            else:
                self.problem = ""
                return

    async def make_durable(self, digest: str) -> None:
        """See that a model is on disk before anything is said that relies on it.

        Raises:
            NodeError: the disk refuses.
            StudyError: the model is not here.
        """
        model = self._store.model(digest)
        if model is None:
            if await self._models.has(self._name, digest):
                return
            # What the call says would not be true.
            raise StudyError(f"The model {digest[:12]} is not at this node (yet).", do="It is tried again.")
        await self._models.save(self._name, model, self._needed)
        self.problem = ""

    async def close(self) -> None:
        """Stop; a write that has begun ends by itself."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
