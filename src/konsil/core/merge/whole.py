"""A whole merge at once, for who holds every update: chunk by chunk as the leaders of a round make it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from konsil.core.digest import Buffer, chunk_count, chunk_range, leaf, part_range
from konsil.core.merge.chunk import merge_chunk
from konsil.core.merge.gram import Floats, gram_chunk, gram_digest, sum_grams
from konsil.core.merge.rule import Rule, mixing
from konsil.core.parameters import Schema

T = TypeVar("T")


class Each(Protocol):
    """How the chunks are worked on: ``map``, or what does the same in several threads, in order."""

    def __call__(self, work: Callable[[int], T], over: Iterable[int], /) -> Iterable[T]:
        """The work's results, in the order of ``over``."""
        ...


@dataclass(frozen=True)
class Whole:
    """What stands for a merge. ``groups``: the leaves, part by part. ``gram``: digest of the updates'
    Gram matrix, "" where the rule does not mix.
    """

    groups: tuple[tuple[bytes, ...], ...]
    gram: str = ""


def merge_whole(
    rule: Rule,
    schema: Schema,
    updates: Sequence[Sequence[Buffer]],
    weights: Sequence[int],
    n_parts: int,
    out: memoryview,
    each: Each = map,
    base: Sequence[Buffer] | None = None,
) -> Whole:
    """Merge a roster's updates to a model.

    Args:
        rule: the study's rule.
        schema: of the updates and the merge.
        updates: the chunks of each member's data section, in roster order, checked to be finite.
        weights: merge weights [n], from 1 to 2^29 - 1.
        n_parts: into how many parts the round deals the chunks.
        out: ``schema.data_bytes`` writable bytes, in none of the updates: the merge's data section.
        each: how to go through the chunks.
        base: for a rule around the base, the chunks of the model that the round started from.

    Returns:
        The leaves and the Gram matrix's digest, bit for bit those of the round's leaders.

    Raises:
        ConfigError: too few members for the rule, weights out of range, or no base where one is needed.
        ParametersError: a chunk has another length than the schema says.
    """
    spans = [chunk_range(index, schema.data_bytes) for index in range(chunk_count(schema.data_bytes))]
    parts = [part_range(part, n_parts, len(spans)) for part in range(n_parts)]

    def chunks(index: int) -> list[Buffer]:
        return [update[index] for update in updates]

    def origin(index: int) -> Buffer | None:
        return base[index] if base is not None and rule.around_base else None

    def products(index: int) -> Floats:
        return gram_chunk(schema.runs(*spans[index]), chunks(index), origin(index))

    mixed, gram = None, ""
    if rule.mix is not None:
        grams = list(each(products, range(len(spans))))
        total: Floats = sum_grams([sum_grams([grams[index] for index in part]) for part in parts])
        mixed, gram = mixing(rule, total, weights), gram_digest(total)

    def merged(index: int) -> bytes:
        start, stop = spans[index]
        with out[start:stop] as target:
            merge_chunk(rule, schema.runs(start, stop), chunks(index), weights, target, mixed, origin(index))
            return leaf(target)

    leaves = list(each(merged, range(len(spans))))
    return Whole(tuple(tuple(leaves[index] for index in part) for part in parts), gram)
