"""How fast one core merges: GB of input a second for every rule, beside a plain copy and BLAKE3.

Run: python benchmarks/merge.py [--members 4] [--megabytes 100] [--dtype F32]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from konsil.core import merge
from konsil.core.digest import CHUNK_BYTES, chunk_count, chunk_range, leaf
from konsil.core.parameters import ARRAY_DTYPES, Schema, check_finite

REPEATS = 5

MIXING = ("geometric_median", "multi_krum", "nnm_trimmed_mean", "norm_clipping")

Work = Callable[[], object]


def gigabytes_a_second(work: Work, input_bytes: int) -> float:
    """The best of some repeats: what the machine can do when its neighbours are quiet."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return input_bytes / best / 1e9


class Inputs:
    """Updates of some members and the model that they started from, in chunks."""

    def __init__(self, members: int, megabytes: int, dtype: str) -> None:
        """Make them from a seed."""
        kind = ARRAY_DTYPES[dtype]
        elements = megabytes * 1_000_000 // kind.itemsize
        generator = np.random.default_rng(0)
        made = [generator.standard_normal(elements, np.float32).astype(kind) for _ in range(members + 1)]
        *self.updates, self.base = (memoryview(each).cast("B") for each in made)
        self.schema = Schema.of({"weight": np.empty(elements, kind)})
        n_bytes = self.schema.data_bytes
        self.ranges = [chunk_range(index, n_bytes) for index in range(chunk_count(n_bytes))]
        self.runs = [self.schema.runs(*each) for each in self.ranges]
        self.target = memoryview(bytearray(n_bytes))
        self.weights = [101 + 57 * member for member in range(members)]
        self.equal = [1] * members
        self.grams = {around_base: self.gram(around_base) for around_base in (False, True)}

    def each_chunk(self, work: Callable[[list[memoryview], int], object]) -> Work:
        """Work on every chunk of all updates, one after the other."""
        return lambda: [work([u[a:b] for u in self.updates], i) for i, (a, b) in enumerate(self.ranges)]

    def gram(self, around_base: bool) -> NDArray[np.float64]:
        """The Gram matrix of the updates, or of their differences to the base."""
        return merge.sum_grams(
            [
                merge.gram_chunk(
                    self.runs[i], [u[a:b] for u in self.updates], self.base[a:b] if around_base else None
                )
                for i, (a, b) in enumerate(self.ranges)
            ]
        )

    def merged(self, rule: merge.Rule, weights: list[int]) -> Work:
        """A merge of everything; where the rule mixes, what follows the Gram matrix."""
        mixed = merge.mixing(rule, self.grams[rule.around_base], weights)

        def one(chunks: list[memoryview], index: int) -> None:
            start, stop = self.ranges[index]
            base = self.base[start:stop] if rule.around_base else None
            merge.merge_chunk(rule, self.runs[index], chunks, weights, self.target[start:stop], mixed, base)

        return self.each_chunk(one)

    def copy(self) -> None:
        """What memory alone takes."""
        for update in self.updates:
            self.target[:] = update

    def check(self) -> None:
        """The finite check of every update."""
        for update in self.updates:
            check_finite(self.schema, update)


def measured(inputs: Inputs) -> dict[str, Work]:
    """What is measured, by name."""
    members = len(inputs.updates)
    table: dict[str, Work] = {
        "copy": inputs.copy,
        "BLAKE3 leaves": inputs.each_chunk(lambda chunks, _: [leaf(chunk) for chunk in chunks]),
        "finite check": inputs.check,
        "mean": inputs.merged(merge.rule("mean", {}), inputs.weights),
        "median, equal weights": inputs.merged(merge.rule("median", {}), inputs.equal),
        "median": inputs.merged(merge.rule("median", {}), inputs.weights),
    }
    trimmed = merge.rule("trimmed_mean", {"f": (members - 1) // 2 or 1})
    if members >= merge.required_members(trimmed):
        table["trimmed mean, equal weights"] = inputs.merged(trimmed, inputs.equal)
        table["trimmed mean"] = inputs.merged(trimmed, inputs.weights)
    table["Gram matrix"] = lambda: inputs.gram(False)
    table["Gram matrix around the base"] = lambda: inputs.gram(True)
    for name in MIXING:
        rule = merge.rule(name, {})
        if members >= merge.required_members(rule):
            table[f"{name.replace('_', ' ')}, after it"] = inputs.merged(rule, inputs.weights)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--dtype", choices=("F64", "F32", "F16"), default="F32")
    chosen = parser.parse_args()
    inputs = Inputs(chosen.members, chosen.megabytes, chosen.dtype)
    print(
        f"{chosen.members} members x {chosen.megabytes} MB of {chosen.dtype}, chunks of "
        f"{CHUNK_BYTES >> 20} MiB, one core, best of {REPEATS}; GB of input a second"
    )
    for name, work in measured(inputs).items():
        speed = gigabytes_a_second(work, inputs.schema.data_bytes * chosen.members)
        print(f"  {name:<30}{speed:6.2f}")


if __name__ == "__main__":
    main()
