"""The Gram matrix of a roster's updates, for rules that mix. Every member that needs it makes it itself.

A matrix from another member could not be checked without all updates, and a wrong one steers the
whole merge: what would be saved on the line would be paid in trust.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import numpy as np

from konsil.core.merge import Mixing, Rule, gram_chunk, gram_digest, mixing, sum_grams
from konsil.node.gather import Gatherer
from konsil.node.pull import in_thread


class Grams:
    """What follows from the Gram matrix of a roster's updates.

    ``mixing``: the rule's coefficients, once known. ``digest``: of the matrix, once known.
    """

    def __init__(self, gatherer: Gatherer) -> None:
        """For the roster of a gatherer."""
        self.gatherer = gatherer
        self.mixing: Mixing | None = None
        self.digest = ""
        self._making = asyncio.Lock()

    async def make(self, rule: Rule, parts: Sequence[range]) -> None:
        """Read every update once and derive the coefficients, where the rule mixes.

        Args:
            rule: the study's.
            parts: the chunks of each part; the matrix is summed in this order.

        Raises:
            UpdatesMissing: names the members whose update could not be had or is not finite.
            StudyError: a rule around the base lacks the base, or a rule of the members' own failed.
        """
        async with self._making:
            if rule.mix is None or self.mixing is not None:
                return
            await self.gatherer.learn()
            total = sum_grams([await self._of(chunks, rule.around_base) for chunks in parts])
            self.digest = gram_digest(total)
            self.mixing = mixing(rule, total, self.gatherer.roster.weights)

    async def _of(self, chunks: range, around_base: bool) -> np.ndarray:
        buffers = self.gatherer.buffers()
        matrices = []
        for index in chunks:
            gathered = await self.gatherer.chunks(index, buffers)
            self.gatherer.require_finite(index, gathered)
            runs = self.gatherer.schema.runs(*self.gatherer.span(index))
            base = self.gatherer.base(index) if around_base else None
            matrices.append(await in_thread(partial(gram_chunk, runs, gathered, base)))
        return sum_grams(matrices)
