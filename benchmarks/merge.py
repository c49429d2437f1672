"""How fast one core merges: GB of input a second for every rule, beside a plain copy and BLAKE3.

Run: python benchmarks/merge.py [--members 4] [--megabytes 100] [--dtype F32]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from konsil.core import merge
from konsil.core.digest import CHUNK_BYTES, chunk_count, chunk_range, leaf
from konsil.core.parameters import ARRAY_DTYPES, Schema, check_finite

REPEATS = 5


def gigabytes_a_second(work: Callable[[], object], input_bytes: int) -> float:
    """The best of some repeats: what the machine can do when its neighbours are quiet."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return input_bytes / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--dtype", choices=("F64", "F32", "F16"), default="F32")
    chosen = parser.parse_args()

    kind = ARRAY_DTYPES[chosen.dtype]
    elements = chosen.megabytes * 1_000_000 // kind.itemsize
    generator = np.random.default_rng(0)
    updates = [
        memoryview(generator.standard_normal(elements, np.float32).astype(kind)).cast("B")
        for _ in range(chosen.members)
    ]
    schema = Schema.of({"weight": np.empty(elements, kind)})
    n_bytes = schema.data_bytes
    ranges = [chunk_range(index, n_bytes) for index in range(chunk_count(n_bytes))]
    runs = [schema.runs(*each) for each in ranges]
    target = memoryview(bytearray(n_bytes))
    weights = [101 + 57 * member for member in range(chosen.members)]

    def each_chunk(work: Callable[[list[memoryview], int], object]) -> Callable[[], object]:
        return lambda: [work([update[a:b] for update in updates], i) for i, (a, b) in enumerate(ranges)]

    def merged(rule: merge.Rule, weights: list[int], mixed: merge.Mixing | None) -> Callable[[], object]:
        def one(chunks: list[memoryview], index: int) -> None:
            start, stop = ranges[index]
            merge.merge_chunk(rule, runs[index], chunks, weights, target[start:stop], mixed)

        return each_chunk(one)

    def copy() -> None:
        for update in updates:
            target[:] = update

    def check_all() -> None:
        for update in updates:
            check_finite(schema, update)

    gram = merge.sum_grams(
        [merge.gram_chunk(runs[i], [u[a:b] for u in updates]) for i, (a, b) in enumerate(ranges)]
    )
    geometric = merge.rule("geometric_median", {})
    equal = [1] * chosen.members
    trimmed = merge.rule("trimmed_mean", {"f": (chosen.members - 1) // 2 or 1})
    table: dict[str, Callable[[], object]] = {
        "copy": copy,
        "BLAKE3 leaves": each_chunk(lambda chunks, _: [leaf(chunk) for chunk in chunks]),
        "finite check": check_all,
        "mean": merged(merge.rule("mean", {}), weights, None),
        "median, equal weights": merged(merge.rule("median", {}), equal, None),
        "median": merged(merge.rule("median", {}), weights, None),
        "Gram matrix": each_chunk(lambda chunks, index: merge.gram_chunk(runs[index], chunks)),
        "geometric median, after it": merged(geometric, weights, merge.mixing(geometric, gram, weights)),
    }
    if chosen.members >= merge.required_members(trimmed):
        table["trimmed mean, equal weights"] = merged(trimmed, equal, None)
        table["trimmed mean"] = merged(trimmed, weights, None)
    print(
        f"{chosen.members} members x {chosen.megabytes} MB of {chosen.dtype}, chunks of "
        f"{CHUNK_BYTES >> 20} MiB, one core, best of {REPEATS}; GB of input a second"
    )
    for name, work in table.items():
        print(f"  {name:<30}{gigabytes_a_second(work, n_bytes * chosen.members):6.2f}")


if __name__ == "__main__":
    main()
