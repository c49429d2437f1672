"""The Gram matrix of a roster's updates, for rules that mix: each leader makes its part's, all sum them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog

from konsil.core.digest import chunk_count, part_range
from konsil.core.merge import (
    Mixing,
    Rule,
    decode_gram,
    encode_gram,
    gram_chunk,
    gram_digest,
    mixing,
    sum_grams,
)
from konsil.core.messages import MAX_GRAM_BYTES, GetGram
from konsil.core.rules import OpenRound, Part
from konsil.errors import StudyError, TransportError
from konsil.node.gather import Gatherer

ANSWER_S = 5.0
"""How long a leader's answer may take once its matrix is made."""

_log = structlog.get_logger(__name__)


class Grams:
    """The parts' Gram matrices at one node, and what follows from their sum.

    ``mixing``: the rule's coefficients, once known. ``digest``: of the summed matrix, once known.
    """

    def __init__(self, rule: Rule, gatherer: Gatherer, me: str) -> None:
        """For the roster of a gatherer, at the member ``me``."""
        self.rule = rule
        self.gatherer = gatherer
        self.me = me
        self.mixing: Mixing | None = None
        self.digest = ""
        self._parts: dict[int, asyncio.Future[np.ndarray]] = {}

    @property
    def needed(self) -> bool:
        """Whether the rule mixes and its coefficients are not known yet."""
        return self.rule.mix is not None and self.mixing is None

    async def agree(self, part: int, chunks: range, current: OpenRound) -> None:
        """Make the matrix of the own part, get the others', and derive the coefficients."""
        own = self._future(part)
        if not own.done():
            own.set_result(await self._make(chunks))
        matrices = [await self._of(number, dealt, current) for number, dealt in enumerate(current.parts)]
        self._use(matrices)

    async def recompute(self, parts: Sequence[range]) -> None:
        """Make every part's matrix here, for a member that leads none."""
        self._use([await self._make(chunks) for chunks in parts])

    async def serve(self, part: int, wait_s: float) -> bytes:
        """The matrix of a part that this node leads, for a peer; waits until it is made.

        Raises:
            StudyError: there is no such part, or the merge is over.
            TimeoutError: it is not made in time.
        """
        if not 0 <= part < self.gatherer.roster.n_parts:
            raise StudyError(f"Round {self.gatherer.roster.round} has no part {part}.")
        async with asyncio.timeout(wait_s):
            matrix = await asyncio.shield(self._future(part))
        return encode_gram(matrix)

    def close(self) -> None:
        """Wake whoever waits for a matrix that will not be made."""
        for future in self._parts.values():
            if not future.done():
                future.set_exception(StudyError("This merge is over; its Gram matrices are made no more."))
                future.exception()  # seen: nobody may be waiting for it

    async def _make(self, chunks: range) -> np.ndarray:
        await self.gatherer.learn()
        buffers = self.gatherer.buffers()
        matrices = []
        for index in chunks:
            gathered = await self.gatherer.chunks(index, buffers)
            self.gatherer.require_finite(index, gathered)
            runs = self.gatherer.schema.runs(*self.gatherer.span(index))
            matrices.append(await asyncio.to_thread(gram_chunk, runs, gathered))
        return sum_grams(matrices)

    def _use(self, matrices: Sequence[np.ndarray]) -> None:
        total = sum_grams(matrices)
        self.digest = gram_digest(total)
        self.mixing = mixing(self.rule, total, self.gatherer.roster.weights)

    async def _of(self, part: int, dealt: Part, current: OpenRound) -> np.ndarray:
        future = self._future(part)
        if future.done() or dealt.leader == self.me:
            return await asyncio.shield(future)
        roster = self.gatherer.roster
        wait_s = max(1.0, self.gatherer.grace_s)
        request = GetGram(roster.study, roster.round, current.attempt, part, wait_s)
        try:
            _, received = await self.gatherer.puller.peers.ask(
                dealt.leader, request, timeout_s=wait_s + ANSWER_S, limit_bytes=MAX_GRAM_BYTES
            )
            matrix = decode_gram(received.body, len(roster.members))
        except TransportError as error:
            # Its leader restarted after it published, or lies: the updates are there, and say the same.
            _log.warning("a Gram matrix is made here", part=part, leader=dealt.leader, why=error.what)
            n_chunks = chunk_count(self.gatherer.schema.data_bytes)
            matrix = await self._make(part_range(part, roster.n_parts, n_chunks))
        if not future.done():
            future.set_result(matrix)
        return matrix

    def _future(self, part: int) -> asyncio.Future[np.ndarray]:
        if part not in self._parts:
            self._parts[part] = asyncio.get_running_loop().create_future()
        return self._parts[part]
