"""Gathering the updates of one roster, chunk by chunk, and saying whose cannot be had."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from konsil.core.digest import CHUNK_BYTES, Manifest, chunk_count, chunk_range
from konsil.core.parameters import Schema, check_finite
from konsil.core.rules import StudySettings
from konsil.errors import (
    DigestMismatch,
    NonFinite,
    PeerUnreachable,
    StudyError,
    TransportError,
    UpdatesMissing,
)
from konsil.node.pull import Puller, in_thread
from konsil.node.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SMALL_TALK_BYTES = 16 * 1024
"""Heartbeats, refusals and the ledger's entries, which a member that hangs may still send."""

RETRY_S = 0.25
"""A peer that just restarted has its update back from its training process within about this."""


@dataclass(frozen=True)
class Roster:
    """What defines a merge: who, with which update and weight, by which rule, in how many parts.

    ``base``: digest of the model that the round started from.
    """

    study: str
    round: int
    members: tuple[str, ...]
    digests: tuple[str, ...]
    weights: tuple[int, ...]
    settings: StudySettings
    n_parts: int
    base: str


class Gatherer:
    """The updates of a roster. Own ones come from the store, those of others from their nodes."""

    def __init__(
        self, roster: Roster, schema: Schema, puller: Puller, store: Store, *, grace_s: float
    ) -> None:
        """``grace_s``: how long an unreachable member is waited for before it is given up."""
        self.roster = roster
        self.schema = schema
        self.puller = puller
        self.grace_s = grace_s
        self._store = store
        self._manifests: dict[str, Manifest] = {}
        self._waiting: Counter[str] = Counter()

    def span(self, index: int) -> tuple[int, int]:
        """Where a chunk lies in the data section, in bytes."""
        return chunk_range(index, self.schema.data_bytes)

    def buffer(self) -> memoryview:
        """Memory for one chunk."""
        return np.empty(min(CHUNK_BYTES, self.schema.data_bytes), np.uint8).data.cast("B")

    def buffers(self) -> list[memoryview]:
        """Memory for one chunk of every member."""
        return [self.buffer() for _ in self.roster.members]

    @contextmanager
    def waiting_for(self, member: str) -> Iterator[None]:
        """Note that this member's answer is waited for, while the ``with`` lasts."""
        self._waiting[member] += 1
        try:
            yield
        finally:
            self._waiting[member] -= 1

    def who_hangs(self, before: Mapping[str, int]) -> tuple[str, ...]:
        """Members that are connected and whose answers are waited for, but that have sent next to nothing.

        Slow is not dead: who has sent a good part of a chunk is waited for. And where everybody hangs, the
        own line is to blame; of one alone nobody can tell, and a false report costs little there.

        Args:
            before: ``peers.received()`` when the waiting began.
        """
        received = self.puller.peers.received()
        little = min(CHUNK_BYTES, self.schema.data_bytes) // 16 + SMALL_TALK_BYTES
        hanging = {
            member
            for member, count in self._waiting.items()
            if count and member in received and received[member] - before.get(member, 0) < little
        }
        others = {member for member in self.roster.members if member in received}
        return tuple(sorted(hanging)) if hanging < others or len(others) == 1 else ()

    async def learn(self, members: Sequence[str] = ()) -> None:
        """Get the manifests of these members' updates, by default of all.

        Each update was committed to by its digest, so no manifest can be forged.

        Raises:
            UpdatesMissing: names the members whose manifest could not be had.
        """
        wanted = [
            (member, partial(self._learn_one, member, digest))
            for member, digest in zip(self.roster.members, self.roster.digests, strict=True)
            if member not in self._manifests and (not members or member in members)
        ]
        await self._from_all(wanted)

    async def _learn_one(self, member: str, digest: str) -> None:
        model = self._store.model(digest)
        if model is not None:
            manifest = model.manifest
        else:
            with self.waiting_for(member):
                manifest = await self.puller.manifest(digest, (member,), away_s=self.grace_s)
        if manifest.header != self.schema.header or len(manifest.leaves) != chunk_count(
            self.schema.data_bytes
        ):
            raise DigestMismatch(f"The update of {member} has another schema than the study's.")
        self._manifests[member] = manifest

    async def chunks(self, index: int, buffers: Sequence[memoryview]) -> list[memoryview]:
        """Chunk ``index`` of every update, in roster order; those of others land in ``buffers``.

        Raises:
            UpdatesMissing: names the members whose chunk could not be had.
        """
        start, stop = self.span(index)
        found: list[memoryview] = []
        pulls: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        for member, digest, buffer in zip(self.roster.members, self.roster.digests, buffers, strict=True):
            model = self._store.model(digest)
            if model is not None:
                found.append(model.chunk(index))
                continue
            into = buffer[: stop - start]
            found.append(into)
            pulls.append((member, partial(self._pull, member, digest, index, into)))
        await self._from_all(pulls)
        return found

    def base(self, index: int) -> memoryview:
        """Chunk ``index`` of the model that the round started from; see ``Bench`` for how it gets here.

        Raises:
            StudyError: it is not here.
        """
        model = self._store.model(self.roster.base)
        if model is None:
            raise StudyError(
                f"The model that round {self.roster.round} of study {self.roster.study!r} started from "
                f"({self.roster.base[:12]}) is not here.",
                safe="Nothing was merged; accepted rounds are safe.",
                do="It is fetched from a peer and tried again: see `konsil node status`.",
            )
        return model.chunk(index)

    async def _pull(self, member: str, digest: str, index: int, into: memoryview) -> None:
        leaf = self._manifests[member].leaves[index]
        with self.waiting_for(member):
            await self.puller.chunk(digest, index, leaf, into, (member,), away_s=self.grace_s)

    async def _from_all(self, pulls: Sequence[tuple[str, Callable[[], Awaitable[None]]]]) -> None:
        """Run one pull a member, each tried until the grace is over; name all that failed."""
        until_s = asyncio.get_running_loop().time() + self.grace_s
        problems = await asyncio.gather(*(_insist(pull, until_s) for _, pull in pulls))
        failed = {member: what for (member, _), what in zip(pulls, problems, strict=True) if what}
        if failed:
            raise UpdatesMissing(failed, " ".join(failed.values()))

    def require_finite(self, index: int, chunks: Sequence[memoryview]) -> None:
        """See that every member's chunk is finite.

        Raises:
            UpdatesMissing: names the members that committed a NaN or an infinity.
        """
        start, _ = self.span(index)
        problems: dict[str, str] = {}
        for member, chunk in zip(self.roster.members, chunks, strict=True):
            try:
                check_finite(self.schema, chunk, start)
            except NonFinite as error:
                problems[member] = f"The update of {member} is refused: {error.what}"
        if problems:
            raise UpdatesMissing(problems, " ".join(problems.values()))

    async def check(self, member: str) -> None:
        """See that a member's whole update can be had and is finite, because somebody reported otherwise.

        Raises:
            UpdatesMissing: it cannot, or is not.
        """
        await self.learn((member,))
        digest = self.roster.digests[self.roster.members.index(member)]
        buffer = self.buffer()
        for index in range(len(self._manifests[member].leaves)):
            start, stop = self.span(index)
            into = buffer[: stop - start]
            try:
                await self._pull(member, digest, index, into)
                await in_thread(partial(check_finite, self.schema, into, start))
            except (PeerUnreachable, NonFinite) as error:
                raise UpdatesMissing((member,), f"The update of {member}: {error.what}") from error


async def _insist(pull: Callable[[], Awaitable[None]], until_s: float) -> str:
    """Try until it works or the time is up; then why it does not."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            await pull()
        except (TransportError, DigestMismatch) as error:
            if loop.time() + RETRY_S > until_s:
                return error.what
            await asyncio.sleep(RETRY_S)
        else:
            return ""


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises its first failure itself instead of a group of failures."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
