"""The workbench of one roster: merge own parts, complete the merge with those of others, audit them.

It lives as long as a round's roster stays the same, so an attempt that deals parts anew keeps the
chunks that are there already.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import structlog

from konsil.core.digest import CHUNK_BYTES, Manifest, chunk_count, group_digest, leaf, part_range
from konsil.core.merge import Rule, merge_chunk
from konsil.core.parameters import Schema, check_finite
from konsil.core.round import audits
from konsil.core.rules import BUILT_IN_RULES, Part, StudySettings
from konsil.errors import (
    DigestMismatch,
    MergeMismatch,
    NonFinite,
    PeerUnreachable,
    StudyError,
    UpdatesMissing,
)
from konsil.node.gather import Gatherer, Roster, together
from konsil.node.grams import Grams
from konsil.node.pull import Puller, in_thread
from konsil.node.rules import built_in
from konsil.node.store import Assembly, Model, Slice, Store

WINDOW_BYTES = 64 * 1024 * 1024
"""Memory for chunks under way while merging: enough to keep four 10 Gbit/s links busy."""

FETCHES_AT_ONCE = 8
"""Chunks of others' parts asked for at once: 32 MiB on the way."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)
_secret = random.SystemRandom()


class Bench:
    """One roster's merge at one node."""

    def __init__(
        self,
        roster: Roster,
        schema: Schema,
        me: str,
        puller: Puller,
        store: Store,
        *,
        grace_s: float,
        find_rule: Callable[[StudySettings], Rule] = built_in,
        fetch: Callable[[str], Awaitable[Model]] | None = None,
    ) -> None:
        """Lay out what a roster's merge needs.

        Args:
            roster: what defines the merge.
            schema: the study's.
            me: this member.
            puller: gets what others hold.
            store: what is held here.
            grace_s: how long an unreachable member is waited for before it is reported.
            find_rule: gives a study's merge rule, or raises a KonsilError.
            fetch: gets a model by its digest from any peer, for a member that lacks the round's base.
        """
        self.roster = roster
        self.schema = schema
        self.me = me
        self.puller = puller
        self.store = store
        self.grace_s = grace_s
        self.gatherer = Gatherer(roster, schema, puller, store, grace_s=grace_s)
        self.grams = Grams(self.gatherer)
        self._find_rule = find_rule
        self._fetch_model = fetch
        self._rule: Rule | None = None
        self.n_chunks = chunk_count(schema.data_bytes)
        self.assembly = Assembly(schema)
        self.closed = False
        self.leaves: dict[int, bytes] = {}
        self._merged_here: set[int] = set()
        self._sealed: Model | None = None

    def close(self) -> None:
        """Give the memory back, unless it became a model that the store serves."""
        self.closed = True
        self.assembly.close()
        if self._sealed is not None and self.store.model(self._sealed.digest) is not self._sealed:
            self._sealed.memory.close()

    def serves(self, roster: Roster, digest: str) -> bool:
        """Whether this bench can go on for a roster whose merge has this digest, "" if not known yet.

        Not where the round has collected again meanwhile: then the store has given its merge's memory back.
        """
        if self.roster != roster:
            return False
        return self._sealed is None or (self._sealed.digest == digest and self._sealed.memory.fd >= 0)

    def chunks_of(self, part: int) -> range:
        """The chunks of a part."""
        return part_range(part, self.roster.n_parts, self.n_chunks)

    def _all_parts(self) -> list[range]:
        return [self.chunks_of(part) for part in range(self.roster.n_parts)]

    # --- leading -------------------------------------------------------------------------------

    async def lead(self, part: int) -> tuple[str, str]:
        """Merge a part.

        Returns:
            The part's group digest and, where the rule mixes, the digest of the summed Gram matrix.

        Raises:
            UpdatesMissing: names the members whose update could not be had.
            ConfigError, StudyError: the rule is not here, or failed.
        """
        await self._get_ready()
        chunks = self.chunks_of(part)
        # Not what another leader merged and this node fetched: who publishes a chunk answers for it.
        wanted = iter([index for index in chunks if index not in self._merged_here])
        at_once = max(1, WINDOW_BYTES // (CHUNK_BYTES * max(1, len(self.roster.members) - 1)))
        async with together() as group:
            for _ in range(min(at_once, len(chunks))):
                group.create_task(self._merge_chunks(wanted))
        leaves = tuple(self.leaves[index] for index in chunks)
        digest = group_digest(leaves)
        self.store.add_part(digest, Slice(leaves, chunks.start, self.assembly))
        return digest, self.grams.digest

    async def _get_ready(self) -> None:
        """Get what a chunk's merge needs beside the chunks: manifests, the rule, the base, coefficients."""
        if self._rule is None:
            self._rule = await in_thread(partial(self._find_rule, self.roster.settings))
        await self.gatherer.learn()
        if self._rule.around_base and self.store.model(self.roster.base) is None and self._fetch_model:
            self.store.add_model(await self._fetch_model(self.roster.base))
        await self.grams.make(self._rule, self._all_parts())

    async def _merge_chunks(self, wanted: Iterator[int]) -> None:
        buffers = self.gatherer.buffers()
        for index in wanted:
            chunks = await self.gatherer.chunks(index, buffers)
            self.leaves[index] = await in_thread(partial(self._merge_into_place, index, chunks))
            self._merged_here.add(index)

    def _merge_into_place(self, index: int, chunks: Sequence[memoryview]) -> bytes:
        with self.assembly.chunk(index) as out:
            self._merge(index, chunks, out)
            return leaf(out)

    def _merge(self, index: int, chunks: Sequence[memoryview], out: memoryview) -> None:
        start, stop = self.gatherer.span(index)
        rule = self._rule
        if rule is None:
            raise StudyError("A chunk is merged before its rule is there.", safe="Nothing was merged.")
        if rule.name != "mean":
            self.gatherer.require_finite(index, chunks)
        base = self.gatherer.base(index) if rule.around_base else None
        runs = self.schema.runs(start, stop)
        with np.errstate(over="ignore"):  # too large for the parameters' dtype: found below
            merge_chunk(rule, runs, chunks, self.roster.weights, out, self.grams.mixing, base)
        if rule.name not in BUILT_IN_RULES or rule.around_base or rule.name == "mean":
            try:
                check_finite(self.schema, out, start)
            except NonFinite as error:
                self.gatherer.require_finite(index, chunks)  # any in an update is one in the mean
                raise StudyError(
                    f"The merge rule '{rule.name}' did not give a number everywhere. {error.what}",
                    safe="Nothing was published; accepted rounds are safe.",
                    do="Have the rule corrected or take another, by vote: `konsil study change`.",
                ) from error

    # --- completing ----------------------------------------------------------------------------

    async def complete(self, parts: Sequence[Part], digest: str) -> Model:
        """Get the parts that others merged, and seal the whole.

        Raises:
            UpdatesMissing: names the leader whose part cannot be had from anyone.
            DigestMismatch: the parts do not give the merge's digest.
        """
        if self._sealed is not None and self._sealed.digest == digest:
            return self._sealed
        wanted: list[tuple[int, Part, int, bytes]] = []
        for number, part in enumerate(parts):
            chunks = self.chunks_of(number)
            leaves = await self._leaves_of(part, chunks)
            wanted += [
                (index, part, index - chunks.start, expected)
                for index, expected in zip(chunks, leaves, strict=True)
                if self.leaves.get(index) != expected
            ]
        pending = iter(wanted)
        async with together() as group:
            for _ in range(min(FETCHES_AT_ONCE, len(wanted))):
                group.create_task(self._fetch(pending))
        groups = tuple(
            tuple(self.leaves[index] for index in self.chunks_of(number)) for number in range(len(parts))
        )
        actual = Manifest(self.schema.header, groups).digest
        if actual != digest:
            raise DigestMismatch(
                f"The parts of round {self.roster.round} give {actual[:12]}, not {digest[:12]}.",
                safe="Nothing was loaded.",
                do="It is fetched again.",
            )
        self._sealed = self.assembly.seal(groups)
        return self._sealed

    async def _fetch(self, pending: Iterator[tuple[int, Part, int, bytes]]) -> None:
        for index, part, offset, expected in pending:
            self.leaves.pop(index, None)
            self._merged_here.discard(index)
            with self.assembly.chunk(index) as into:
                holders = self._holders(part)
                pull = self.puller.chunk(part.digest, offset, expected, into, holders, away_s=self.grace_s)
                await self._from_leader(part, pull)
                await self._require_finite(index, part, into)
            self.leaves[index] = expected

    async def _require_finite(self, index: int, part: Part, chunk: memoryview) -> None:
        """A merge of finite updates is finite: another one is wrong, and needs no recomputing to know it."""
        start, _ = self.gatherer.span(index)
        try:
            await in_thread(partial(check_finite, self.schema, chunk, start))
        except NonFinite as error:
            number = next(n for n in range(self.roster.n_parts) if index in self.chunks_of(n))
            raise self._mismatch(number, index, part.leader) from error

    def give(self, index: int, expected: bytes, into: memoryview) -> bool:
        """Copy a chunk of the merge that is here already; whether it is, and is the one behind this leaf."""
        if self.closed or self.leaves.get(index) != expected:
            return False
        into[:] = self.assembly.read(index)
        return True

    async def _leaves_of(self, part: Part, chunks: range) -> tuple[bytes, ...]:
        here = tuple(self.leaves.get(index, b"") for index in chunks)
        if all(here) and group_digest(here) == part.digest:
            return here
        pull = self.puller.manifest(part.digest, self._holders(part), away_s=self.grace_s)
        manifest = await self._from_leader(part, pull)
        try:
            manifest.require_part(part.digest, len(chunks))
        except DigestMismatch as error:
            raise UpdatesMissing((part.leader,), f"{part.leader} published no part: {error.what}") from error
        return manifest.leaves

    async def _from_leader(self, part: Part, pull: Awaitable[T]) -> T:
        """What only a part's leader has for sure; without it the leader is to be reported."""
        try:
            with self.gatherer.waiting_for(part.leader):
                return await pull
        except PeerUnreachable as error:
            raise UpdatesMissing((part.leader,), error.what) from error

    def _holders(self, part: Part) -> tuple[str, ...]:
        return (part.leader, *(member for member in self.roster.members if member != part.leader))

    # --- auditing ------------------------------------------------------------------------------

    async def audit(self, parts: Sequence[Part], model: Model, settled: set[int]) -> None:
        """Recompute a secret choice of the chunks that others merged.

        Args:
            parts: who merged what.
            model: the completed merge.
            settled: chunks that a dispute has found right.

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
        others = len(self.roster.members) - 1
        count = audits(len(foreign), self.roster.settings.audit_fraction, others, _secret.random())
        for number, index in _secret.sample(foreign, count):
            if await self.is_wrong(index, model.manifest.leaves[index]):
                raise self._mismatch(number, index, parts[number].leader)

    def _mismatch(self, part: int, chunk: int, leader: str) -> MergeMismatch:
        study, number = self.roster.study, self.roster.round
        return MergeMismatch(
            f"Part {part} of round {number} of study {study!r}, merged by {leader!r}, is not what its "
            f"commits give (chunk {chunk}).",
            safe=f"Nothing was loaded; your model is at round {number - 1}.",
            do=f"The dispute is on the ledger: `konsil ledger show {study} {number}`.",
            part=part,
            chunk=chunk,
        )

    async def is_wrong(self, index: int, published: bytes) -> bool:
        """Whether a chunk, recomputed here from the roster's updates, has another leaf.

        Raises:
            UpdatesMissing: it cannot be recomputed.
            ConfigError, StudyError: the rule is not here, or failed.
        """
        await self._get_ready()
        chunks = await self.gatherer.chunks(index, self.gatherer.buffers())
        start, stop = self.gatherer.span(index)
        out = self.gatherer.buffer()[: stop - start]

        def recompute() -> bytes:
            self._merge(index, chunks, out)
            return leaf(out)

        return await in_thread(recompute) != published

    async def published_leaf(self, part: Part, number: int, index: int) -> bytes:
        """What a part's leader published as the leaf of a chunk."""
        chunks = self.chunks_of(number)
        return (await self._leaves_of(part, chunks))[index - chunks.start]
