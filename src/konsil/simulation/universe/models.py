"""Small models with everything that proves them: a chunk is one number, its digests are the real ones."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from konsil.core.digest import (
    CHUNK_BYTES,
    Manifest,
    check_leaf,
    group_digest,
    leaf,
    part_range,
    schema_digest,
)
from konsil.core.merge import gram_chunk, gram_digest, merge_chunk, mixing, rule, sum_grams
from konsil.errors import DigestMismatch

HEADER = b"a universe's model: one float64 a chunk"
SCHEMA = schema_digest(HEADER)
_RUNS = (("F64", 0, 8),)
_NUMBER = struct.Struct("<d")


REMEMBERED = 256
"""Models of which the digests are not computed again: members of one universe make the same ones."""


def data_bytes(chunks: int) -> int:
    """What a model of so many chunks says of its size on the ledger."""
    return chunks * CHUNK_BYTES


@dataclass(frozen=True)
class Content:
    """What is behind a digest: an update, a merge, or a part of one."""

    manifest: Manifest
    chunks: tuple[bytes, ...]
    digest: str

    @property
    def numbers(self) -> tuple[float, ...]:
        """The parameters."""
        return tuple(_NUMBER.unpack(chunk)[0] for chunk in self.chunks)

    @cached_property
    def wrong_chunk(self) -> DigestMismatch | None:
        """What is wrong with the first chunk that its leaf does not stand for, found once for all."""
        try:
            for index, (chunk, expected) in enumerate(zip(self.chunks, self.manifest.leaves, strict=True)):
                check_leaf(chunk, expected, index=index)
        except DigestMismatch as error:
            return error
        return None

    @cached_property
    def finite(self) -> bool:
        """Whether every parameter is a number."""
        return all(math.isfinite(number) for number in self.numbers)


def model_of(numbers: Sequence[float]) -> Content:
    """An update or an initial model."""
    return whole(tuple(_NUMBER.pack(number) for number in numbers), 1)


@lru_cache(REMEMBERED)
def whole(chunks: tuple[bytes, ...], n_parts: int) -> Content:
    """A model whose chunks were merged in so many parts."""
    leaves = tuple(leaf(chunk) for chunk in chunks)
    spans = (part_range(part, n_parts, len(chunks)) for part in range(n_parts))
    manifest = Manifest(HEADER, tuple(leaves[span.start : span.stop] for span in spans))
    return Content(manifest, chunks, manifest.digest)


@lru_cache(REMEMBERED)
def part_of(chunks: tuple[bytes, ...]) -> Content:
    """A part alone, as its leader publishes it."""
    leaves = tuple(leaf(chunk) for chunk in chunks)
    return Content(Manifest(b"", (leaves,)), chunks, group_digest(leaves))


def spoiled(chunk: bytes) -> bytes:
    """Another chunk than this one."""
    return _NUMBER.pack(_NUMBER.unpack(chunk)[0] + 1000.0)


Merged = tuple[tuple[bytes, ...], str]
"""A merge's chunks, and the digest of the Gram matrix, "" where the rule does not mix."""


class Merges:
    """What rosters' updates give by a rule, each computed once: it is a function of nothing else."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Merged] = {}

    def merged(
        self, rule_name: str, updates: Sequence[Content], weights: Mapping[str, int], n_parts: int
    ) -> Merged:
        """The merge of updates in roster order, bit for bit that of real nodes.

        Args:
            rule_name: a built-in rule with its default options.
            updates: of the roster.
            weights: member -> merge weight, in roster order.
            n_parts: into how many parts the chunks are dealt: the order in which Gram matrices are summed.
        """
        key = (rule_name, tuple(update.digest for update in updates), tuple(weights.values()), n_parts)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = _merge(rule_name, updates, tuple(weights.values()), n_parts)
        return found


def _merge(rule_name: str, updates: Sequence[Content], weights: Sequence[int], n_parts: int) -> Merged:
    chosen = rule(rule_name, {})
    n_chunks = len(updates[0].chunks)
    mixed, gram = None, ""
    if chosen.mix is not None:
        columns = [[update.chunks[index] for update in updates] for index in range(n_chunks)]
        grams = [gram_chunk(_RUNS, column, None) for column in columns]
        parts = (part_range(part, n_parts, n_chunks) for part in range(n_parts))
        total = sum_grams([sum_grams([grams[index] for index in part]) for part in parts])
        mixed, gram = mixing(chosen, total, weights), gram_digest(total)
    # A built-in rule merges each parameter alone: all chunks at once, and then apart again.
    size = _NUMBER.size
    out = bytearray(n_chunks * size)
    runs = ((*_RUNS[0][:2], len(out)),)
    merge_chunk(
        chosen, runs, [b"".join(update.chunks) for update in updates], weights, memoryview(out), mixed, None
    )
    return tuple(bytes(out[at : at + size]) for at in range(0, len(out), size)), gram
