"""Rounds a second of a simulated swarm, and what they cost beside the least that there is to do.

Training at member i adds i to every parameter, the rule is the mean; the contract, every update's finite
check and digest, the merge and its digest are those of a real swarm. A run counts only if every member ends
with the values that follow from the settings.

    python benchmarks/simulate.py [--members 32] [--megabytes 10] [--rounds 10] [--tensors 10] [--profile]

- wall, CPU: seconds a round; the CPU's without the members' additions
- floor: CPU seconds of BLAKE3 over all updates, the finite check, the mean, and a copy of the merge into
  every model, each measured on one core in this run
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import time
from collections.abc import Callable

import numpy as np

import konsil
from konsil.core.digest import chunk_count, chunk_range, leaf
from konsil.core.merge import merge_chunk, rule
from konsil.core.parameters import Schema, check_finite


class Training:
    """Adds a member's number to everything, and says how long that took."""

    seconds = 0.0

    def __init__(self, place: int) -> None:
        self.number = place + 1

    def __call__(self, model: dict[str, np.ndarray], _work: konsil.Work) -> int:
        """Train."""
        began_s = time.thread_time()
        for name in model:
            model[name] += self.number
        Training.seconds += time.thread_time() - began_s
        return 1


def run(members: int, megabytes: float, rounds: int, tensors: int) -> tuple[float, float]:
    """Wall and CPU seconds of the whole run, training taken off the CPU's."""
    elements = int(megabytes * 1_000_000 / 4 / tensors)

    def make(place: int) -> konsil.Member:
        model = {f"t{i}": np.zeros(elements, np.float32) for i in range(tensors)}
        return konsil.Member(model, Training(place))

    Training.seconds = 0.0
    began_s, cpu_s = time.perf_counter(), time.process_time()
    done = konsil.simulate(
        make, members=members, study={"every_steps": 1, "rounds": rounds, "weighting": "equal"}
    )
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    expected = rounds * (members + 1) / 2
    for model in done.models.values():
        assert all(array.min() == array.max() == expected for array in model.values())
    assert len(done.rounds) == rounds
    return wall_s, cpu_s - Training.seconds


def timed(work: Callable[[], object]) -> float:
    """CPU seconds, the least of three."""
    least = float("inf")
    for _ in range(3):
        began_s = time.thread_time()
        work()
        least = min(least, time.thread_time() - began_s)
    return least


def floor(members: int, megabytes: float) -> dict[str, float]:
    """CPU seconds of what a round cannot do without."""
    elements = int(megabytes * 1_000_000 / 4)
    schema = Schema.of({"weight": np.empty(elements, np.float32)})
    updates = [np.full(elements, i, np.float32) for i in range(members)]
    chunks = [update.view(np.uint8).data for update in updates]
    spans = [chunk_range(i, schema.data_bytes) for i in range(chunk_count(schema.data_bytes))]
    merged = np.empty(elements, np.float32)
    out = merged.view(np.uint8).data

    def mean() -> None:
        for a, b in spans:
            merge_chunk(
                rule("mean", {}), schema.runs(a, b), [each[a:b] for each in chunks], [1] * members, out[a:b]
            )

    return {
        "digests": timed(lambda: [leaf(each[a:b]) for each in chunks for a, b in spans]),
        "finite checks": timed(lambda: [check_finite(schema, each) for each in chunks]),
        "mean": timed(mean),
        "loads": timed(lambda: [np.copyto(update, merged) for update in updates]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tensors", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = (options.members, options.megabytes)

    run(*sizes, 1, options.tensors)  # imports, and memory that was never touched
    if options.profile:
        with cProfile.Profile() as profile:
            run(*sizes, options.rounds, options.tensors)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(35)
        return
    first = run(*sizes, 1, options.tensors)
    whole = run(*sizes, options.rounds + 1, options.tensors)
    wall_s, cpu_s = ((more - less) / options.rounds for more, less in zip(whole, first, strict=True))
    least = floor(*sizes)
    result = {
        "members": options.members,
        "megabytes": options.megabytes,
        "tensors": options.tensors,
        "cores": os.cpu_count(),
        "rounds_a_second": round(1 / wall_s, 2),
        "wall_s_a_round": round(wall_s, 4),
        "cpu_s_a_round_without_training": round(cpu_s, 4),
        "floor_cpu_s": round(sum(least.values()), 4),
        "floor": {name: round(seconds, 4) for name, seconds in least.items()},
    }
    print(json.dumps(result, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
