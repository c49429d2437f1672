"""A node's disk: a write takes a moment, and before that moment is over it is not there."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from konsil.core.round import Farewell, Promise
from konsil.errors import LedgerError, NodeError
from konsil.simulation.universe.agenda import Agenda
from konsil.simulation.universe.models import Content

WRITE_S = 0.02
"""An fsync on a disk that is busy."""

KEPT = 2
"""As in ``node.models``: the newest accepted merge and the one before it."""

Write = Generator[float, None, None]


class Disk:
    """``models``: by digest, oldest first; ``promises``, ``farewell``: the journal."""

    def __init__(self, agenda: Agenda, full: Sequence[tuple[float, float]], *, quick: bool) -> None:
        """``full``: from when to when it takes nothing; ``quick``: whether a write takes no time."""
        self._agenda = agenda
        self._full = full
        self._quick = quick
        self.models: dict[str, Content] = {}
        self.promises: dict[tuple[str, int, str], str] = {}
        self.farewell: Farewell | None = None

    @property
    def is_full(self) -> bool:
        """Whether it takes nothing now."""
        now_s = self._agenda.now_s
        return any(at_s <= now_s < until_s for at_s, until_s in self._full)

    def _require_room(self, what: str) -> None:
        if self.is_full:
            raise NodeError(f"The disk is full: {what} cannot be written.", safe="Nothing new is promised.")

    def save(self, model: Content, needed: Collection[str]) -> Write:
        """Write a model down, and drop old ones that nobody needs."""
        if model.digest in self.models:
            return
        if not self._quick:
            yield WRITE_S
        self._require_room("a model")
        self.models[model.digest] = model
        for digest in list(self.models)[:-KEPT]:
            if digest not in needed:
                del self.models[digest]

    def promise(self, promise: Promise) -> Write:
        """Write a promise down; another one that is there already stands.

        Raises:
            NodeError: another digest was promised, or the disk is full.
        """
        key = promise.study, promise.round, promise.kind
        if key not in self.promises:
            if not self._quick:
                yield WRITE_S
            try:
                self._require_room("a promise")
            except NodeError as error:
                raise LedgerError(error.what, safe=error.safe) from error
            self.promises.setdefault(key, promise.digest)
            for old in [each for each in self.promises if each[1] < promise.round]:
                del self.promises[old]
        if self.promises.get(key, promise.digest) != promise.digest:
            raise NodeError(f"'{promise.kind}' of round {promise.round} was promised otherwise before.")
