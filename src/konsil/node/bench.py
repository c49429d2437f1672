"""The workbench of one roster: gather its updates' chunks, merge own parts, complete and audit the rest.

It lives as long as a round's roster stays the same, so an attempt that deals parts anew keeps the
chunks that are there already.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import structlog

from konsil.core.digest import CHUNK_BYTES, Manifest, chunk_count, chunk_range, group_digest, leaf, part_range
from konsil.core.merge import (
    Mixing,
    decode_gram,
    encode_gram,
    gram_chunk,
    gram_digest,
    merge_chunk,
    mixing,
    rule,
    sum_grams,
)
from konsil.core.messages import MAX_GRAM_BYTES, GetGram
from konsil.core.parameters import Schema, check_finite
from konsil.core.rules import OpenRound, Part, StudySettings
from konsil.errors import (
    DigestMismatch,
    FrameError,
    MergeMismatch,
    NonFinite,
    PeerUnreachable,
    TransportError,
)
from konsil.node.pull import Puller
from konsil.node.store import Assembly, Model, Slice, Store

WINDOW_BYTES = 64 * 1024 * 1024
"""Memory for chunks under way while merging: enough to keep four 10 Gbit/s links busy."""

FETCHES_AT_ONCE = 8
"""Chunks of others' parts asked for at once: 32 MiB on the way."""

RETRY_S = 0.25
"""A peer that just restarted has its update back from its training process within about this."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_secret = random.SystemRandom()


class UpdatesMissing(PeerUnreachable):
    """Members of the roster whose update could not be had, or is not a number everywhere."""

    def __init__(self, members: Iterable[str], what: str) -> None:
        """Keep the names beside the sentence."""
        super().__init__(what, safe="Accepted rounds are safe.", do="The members report it to the ledger.")
        self.members = tuple(sorted(members))


@dataclass(frozen=True)
class Roster:
    """What defines a merge: who, with which update and weight, by which rule, in how many parts."""

    study: str
    round: int
    members: tuple[str, ...]
    digests: tuple[str, ...]
    weights: tuple[int, ...]
    settings: StudySettings
    n_parts: int


class Bench:
    """One roster's merge at one node."""

    def __init__(
        self, roster: Roster, schema: Schema, me: str, puller: Puller, store: Store, *, grace_s: float
    ) -> None:
        """``grace_s``: how long an unreachable member is waited for before it is reported."""
        self.roster = roster
        self.schema = schema
        self.me = me
        self.puller = puller
        self.store = store
        self.grace_s = grace_s
        self.rule = rule(roster.settings.rule, roster.settings.rule_options)
        self.n_chunks = chunk_count(schema.data_bytes)
        self.assembly = Assembly(schema)
        self._sealed: Model | None = None
        self.leaves: dict[int, bytes] = {}
        self._manifests: dict[str, Manifest] = {}
        self._grams: dict[int, asyncio.Future[np.ndarray]] = {}
        self._mixing: Mixing | None = None
        self._gram_digest = ""

    def close(self) -> None:
        """Give the assembly's memory back, unless it became a model."""
        for future in self._grams.values():
            future.cancel()
        self.assembly.close()

    def chunks_of(self, part: int) -> range:
        """The chunks of a part."""
        return part_range(part, self.roster.n_parts, self.n_chunks)

    # --- leading -------------------------------------------------------------------------------

    async def lead(self, part: int, current: OpenRound) -> tuple[str, str]:
        """Merge a part.

        Returns:
            The part's group digest and, where the rule mixes, the digest of the summed Gram matrix.

        Raises:
            UpdatesMissing: names the members whose update could not be had.
        """
        await self._get_manifests()
        chunks = self.chunks_of(part)
        if self.rule.mix is not None and self._mixing is None:
            await self._agree_on_mixing(part, current)
        todo = iter([index for index in chunks if index not in self.leaves])
        at_once = max(1, WINDOW_BYTES // (CHUNK_BYTES * max(1, len(self.roster.members) - 1)))
        async with _first_failure() as group:
            for _ in range(min(at_once, len(chunks))):
                group.create_task(self._merge_chunks(todo))
        leaves = tuple(self.leaves[index] for index in chunks)
        digest = group_digest(leaves)
        self.store.add_part(digest, Slice(leaves, chunks.start, self.assembly))
        return digest, self._gram_digest

    async def _merge_chunks(self, todo: Iterator[int]) -> None:
        buffers = self._buffers()
        for index in todo:
            chunks = await self._gather(index, buffers)
            self.leaves[index] = await asyncio.to_thread(self._merge_into_place, index, chunks)

    def _merge_into_place(self, index: int, chunks: Sequence[memoryview]) -> bytes:
        with self.assembly.chunk(index) as out:
            self._merge(index, chunks, out)
            return leaf(out)

    def _merge(self, index: int, chunks: Sequence[memoryview], out: memoryview) -> None:
        start, stop = chunk_range(index, self.schema.data_bytes)
        if self.rule.name != "mean":
            self._require_finite(start, chunks)
        merge_chunk(self.rule, self.schema.runs(start, stop), chunks, self.roster.weights, out, self._mixing)
        if self.rule.name == "mean":  # a NaN or an infinity in any update is one in their mean
            try:
                check_finite(self.schema, out, start)
            except NonFinite:
                self._require_finite(start, chunks)

    def _require_finite(self, start: int, chunks: Sequence[memoryview]) -> None:
        """See that every member's chunk, which starts at byte ``start``, is finite."""
        problems: dict[str, str] = {}
        for member, chunk in zip(self.roster.members, chunks, strict=True):
            try:
                check_finite(self.schema, chunk, start)
            except NonFinite as error:
                problems[member] = f"The update of {member} is refused: {error.what}"
        if problems:
            raise UpdatesMissing(problems, " ".join(problems.values()))

    # --- gathering -----------------------------------------------------------------------------

    def _buffers(self) -> list[memoryview]:
        size = min(CHUNK_BYTES, self.schema.data_bytes)
        return [np.empty(size, np.uint8).data.cast("B") for _ in self.roster.members]

    async def _get_manifests(self, members: Sequence[str] = ()) -> None:
        """Manifests of these members' updates, of all by default.

        Each update was committed to by its digest, so no manifest can be forged.
        """

        async def one(member: str, digest: str) -> None:
            model = self.store.model(digest)
            manifest = model.manifest if model else await self._manifest_of(member, digest)
            if manifest.header != self.schema.header or len(manifest.leaves) != self.n_chunks:
                raise DigestMismatch(f"The update of {member} has another schema than the study's.")
            self._manifests[member] = manifest

        wanted = [
            (member, digest)
            for member, digest in zip(self.roster.members, self.roster.digests, strict=True)
            if member not in self._manifests and (not members or member in members)
        ]
        await self._from_all([(member, lambda m=member, d=digest: one(m, d)) for member, digest in wanted])

    async def _manifest_of(self, member: str, digest: str) -> Manifest:
        return await self.puller.manifest(digest, (member,), away_s=self.grace_s)

    async def _gather(self, index: int, buffers: Sequence[memoryview]) -> list[memoryview]:
        """Chunk ``index`` of every update, in roster order; those of others land in ``buffers``."""
        start, stop = chunk_range(index, self.schema.data_bytes)
        chunks: list[memoryview] = []
        pulls = []
        for member, digest, buffer in zip(self.roster.members, self.roster.digests, buffers, strict=True):
            model = self.store.model(digest)
            if model is not None:
                chunks.append(model.chunk(index))
                continue
            into = buffer[: stop - start]
            chunks.append(into)
            expected = self._manifests[member].leaves[index]

            async def pull(
                m: str = member, d: str = digest, e: bytes = expected, i: memoryview = into
            ) -> None:
                await self.puller.chunk(d, index, e, i, (m,), away_s=self.grace_s)

            pulls.append((member, pull))
        await self._from_all(pulls)
        return chunks

    async def _from_all(self, pulls: Sequence[tuple[str, object]]) -> None:
        """Run one pull a member, each tried until the grace is over; name all that failed."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.grace_s

        async def insist(pull: object) -> str:
            while True:
                try:
                    await pull()  # type: ignore[operator]  # a coroutine function of no arguments
                except (TransportError, DigestMismatch) as error:
                    if loop.time() + RETRY_S > until_s:
                        return error.what
                    await asyncio.sleep(RETRY_S)
                else:
                    return ""

        problems = await asyncio.gather(*(insist(pull) for _, pull in pulls))
        failed = {member: what for (member, _), what in zip(pulls, problems, strict=True) if what}
        if failed:
            raise UpdatesMissing(failed, " ".join(failed.values()))

    # --- rules that mix ------------------------------------------------------------------------

    async def _agree_on_mixing(self, part: int, current: OpenRound) -> None:
        """Make the Gram matrix of the own part, get the others', and derive the coefficients."""
        own = self._gram_future(part)
        if not own.done():
            own.set_result(await self._gram_of(self.chunks_of(part)))
        grams = [
            await self._gram_from(other, current.parts[other], current) for other in range(len(current.parts))
        ]
        self._use_grams(grams)

    def _use_grams(self, grams: Sequence[np.ndarray]) -> None:
        total = sum_grams(grams)
        self._gram_digest = gram_digest(total)
        self._mixing = mixing(self.rule, total, self.roster.weights)

    async def _gram_of(self, chunks: range) -> np.ndarray:
        buffers = self._buffers()
        grams = []
        for index in chunks:
            gathered = await self._gather(index, buffers)
            start, stop = chunk_range(index, self.schema.data_bytes)
            self._require_finite(start, gathered)
            grams.append(await asyncio.to_thread(gram_chunk, self.schema.runs(start, stop), gathered))
        return sum_grams(grams)

    async def _gram_from(self, part: int, dealt: Part, current: OpenRound) -> np.ndarray:
        future = self._gram_future(part)
        if future.done():
            return future.result()
        if dealt.leader == self.me:
            return await asyncio.shield(future)
        n = len(self.roster.members)
        wait_s = max(1.0, self.grace_s)
        request = GetGram(self.roster.study, self.roster.round, current.attempt, part, wait_s)
        try:
            _, received = await self.puller.peers.ask(
                dealt.leader, request, timeout_s=wait_s + 5.0, limit_bytes=MAX_GRAM_BYTES
            )
        except TransportError as error:
            raise UpdatesMissing((), f"No Gram matrix of part {part}: {error.what}") from error
        try:
            gram = decode_gram(received.body, n)
        except FrameError as error:
            raise UpdatesMissing((), f"{dealt.leader}'s Gram matrix of part {part}: {error.what}") from error
        if not future.done():
            future.set_result(gram)
        return gram

    def _gram_future(self, part: int) -> asyncio.Future[np.ndarray]:
        if part not in self._grams:
            self._grams[part] = asyncio.get_running_loop().create_future()
        return self._grams[part]

    async def gram(self, part: int, wait_s: float) -> bytes:
        """This node's Gram matrix of a part that it leads, for a peer; waits until it is made."""
        async with asyncio.timeout(wait_s):
            matrix = await asyncio.shield(self._gram_future(part))
        return encode_gram(matrix)

    # --- completing and auditing ---------------------------------------------------------------

    async def complete(self, parts: Sequence[Part], digest: str) -> Model:
        """Get the parts that others merged, and seal the whole.

        Raises:
            PeerUnreachable: somebody's part cannot be had; others keep what is there.
            DigestMismatch: the parts do not give the merge's digest.
        """
        if self._sealed is not None and self._sealed.digest == digest:
            return self._sealed
        todo: list[tuple[int, Part, int, bytes]] = []
        for number, part in enumerate(parts):
            chunks = self.chunks_of(number)
            leaves = await self._leaves_of(part, chunks)
            todo += [
                (index, part, index - chunks.start, expected)
                for index, expected in zip(chunks, leaves, strict=True)
                if self.leaves.get(index) != expected
            ]
        pending = iter(todo)

        async def fetch() -> None:
            for index, part, offset, expected in pending:
                with self.assembly.chunk(index) as into:
                    await self._from_leader(part, self._chunk_of(part, offset, expected, into))
                self.leaves[index] = expected

        async with _first_failure() as group:
            for _ in range(min(FETCHES_AT_ONCE, len(todo))):
                group.create_task(fetch())
        groups = [[self.leaves[index] for index in self.chunks_of(number)] for number in range(len(parts))]
        return self._seal(groups, digest)

    async def _leaves_of(self, part: Part, chunks: range) -> tuple[bytes, ...]:
        here = tuple(self.leaves.get(index, b"") for index in chunks)
        if all(here) and group_digest(here) == part.digest:
            return here
        manifest = await self._from_leader(
            part, self.puller.manifest(part.digest, self._holders(part), away_s=self.grace_s)
        )
        if len(manifest.leaves) != len(chunks):
            raise DigestMismatch(
                f"A part of {part.leader} has {len(manifest.leaves)} chunks instead of {len(chunks)}.",
                safe="Nothing was loaded.",
                do="The leader is reported; the part is dealt anew.",
            )
        return manifest.leaves

    def _chunk_of(
        self, part: Part, offset: int, expected: bytes, into: memoryview
    ) -> Coroutine[Any, Any, None]:
        holders = self._holders(part)
        return self.puller.chunk(part.digest, offset, expected, into, holders, away_s=self.grace_s)

    async def _from_leader(self, part: Part, pull: Awaitable[T]) -> T:
        """What only a part's leader has for sure; without it the leader is to be reported."""
        try:
            return await pull
        except PeerUnreachable as error:
            raise UpdatesMissing((part.leader,), error.what) from error

    async def check_update(self, member: str) -> None:
        """See that a member's whole update can be had and is finite, because somebody reported otherwise.

        Raises:
            UpdatesMissing: it cannot, or is not.
        """
        await self._get_manifests((member,))
        place = self.roster.members.index(member)
        digest, manifest = self.roster.digests[place], self._manifests[member]
        buffer = np.empty(min(CHUNK_BYTES, self.schema.data_bytes), np.uint8).data.cast("B")
        for index, expected in enumerate(manifest.leaves):
            start, stop = chunk_range(index, self.schema.data_bytes)
            into = buffer[: stop - start]
            try:
                await self.puller.chunk(digest, index, expected, into, (member,), away_s=self.grace_s)
                await asyncio.to_thread(check_finite, self.schema, into, start)
            except (PeerUnreachable, NonFinite) as error:
                raise UpdatesMissing((member,), f"The update of {member}: {error.what}") from error

    async def published_leaf(self, part: Part, number: int, index: int) -> bytes:
        """What a part's leader published as the leaf of a chunk."""
        chunks = self.chunks_of(number)
        return (await self._leaves_of(part, chunks))[index - chunks.start]

    def _holders(self, part: Part) -> tuple[str, ...]:
        return (part.leader, *(member for member in self.roster.members if member != part.leader))

    def _seal(self, groups: Sequence[Sequence[bytes]], digest: str) -> Model:
        manifest = Manifest(self.schema.header, tuple(tuple(group) for group in groups))
        if manifest.digest != digest:
            raise DigestMismatch(
                f"The parts of round {self.roster.round} give {manifest.digest[:12]}, not {digest[:12]}.",
                safe="Nothing was loaded.",
                do="It is fetched again.",
            )
        self._sealed = self.assembly.seal(groups)
        return self._sealed

    async def audit(self, parts: Sequence[Part], model: Model, settled: set[int]) -> None:
        """Recompute a secret choice of the chunks that others merged.

        Raises:
            MergeMismatch: with fields ``part`` and ``chunk``, for the dispute.
        """
        foreign = [
            (number, index)
            for number, part in enumerate(parts)
            if part.leader != self.me
            for index in self.chunks_of(number)
            if index not in settled
        ]
        count = math.ceil(len(foreign) * self.roster.settings.audit_fraction)
        if not count or (self.rule.mix is not None and self._mixing is None):
            return
        for number, index in _secret.sample(foreign, min(count, len(foreign))):
            try:
                wrong = await self.is_wrong(index, model.manifest.leaves[index])
            except UpdatesMissing as error:
                _log.warning("a chunk could not be audited", chunk=index, problem=error.what)
                continue
            if wrong:
                raise MergeMismatch(
                    f"Chunk {index} (part {number}) of round {self.roster.round} of study "
                    f"{self.roster.study!r}, merged by {parts[number].leader!r}, is not what its "
                    f"commits give.",
                    safe=f"Nothing was loaded; your model is at round {self.roster.round - 1}.",
                    do=f"The dispute is on the ledger: `konsil ledger show {self.roster.study}`.",
                    part=number,
                    chunk=index,
                )

    async def is_wrong(self, index: int, published: bytes) -> bool:
        """Whether a chunk, recomputed here from the roster's updates, has another leaf."""
        await self._get_manifests()
        if self.rule.mix is not None and self._mixing is None:
            self._use_grams(
                [await self._gram_of(self.chunks_of(part)) for part in range(self.roster.n_parts)]
            )
        chunks = await self._gather(index, self._buffers())
        start, stop = chunk_range(index, self.schema.data_bytes)

        def recompute() -> bytes:
            out = np.empty(stop - start, np.uint8).data.cast("B")
            self._merge(index, chunks, out)
            return leaf(out)

        return await asyncio.to_thread(recompute) != published


class _first_failure(asyncio.TaskGroup):  # noqa: N801 - reads as a phrase where it is used
    """A task group that raises the first failure itself instead of a group of failures."""

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            await super().__aexit__(kind, error, trace)  # type: ignore[arg-type]  # passed through
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
