"""A dozen real members at once, and four for long: all take part in every round, and nothing grows.

The short version of `benchmarks/load.py`, whose bounds are finer.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEGABYTE = 1_000_000


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("load")


def test_twelve_members_merge_every_round_together(load):
    run = load.Load(load.Work(members=12, rounds=5, megabytes=1, every=2))
    facts = run.run()  # every member checks every value and every roster
    assert sorted(run.firsts) == [1, 2, 3, 4, 5, 6]
    others, looks = 11, run.looks[4]
    for name in run.names:
        # A line to each of the others, and what a node has open besides; lines made twice would be 53 files.
        assert looks[name].files < 34 + 1.4 * others, looks[name]
        assert looks[name].threads <= most_threads(), looks[name]
        assert looks[name].pss_bytes < 200 * MEGABYTE, looks[name]
    assert facts["log_bytes"] < 100_000, "a line a stage and a peer, not one an attempt and a message"


def test_sixty_rounds_leave_memory_files_and_threads_as_they_were(load):
    run = load.Load(load.Work(members=4, rounds=60, megabytes=1, every=4, score=True), held_alone=True)
    run.run()
    early = [looks for number, looks in run.looks.items() if 8 <= number <= 20]
    late = [looks for number, looks in run.looks.items() if number >= 50]
    assert (len(early), len(late)) == (4, 2)
    for name in early[0]:
        # A model, an update or a chunk's buffer that is forgotten each round would be 32 MB between the two.
        # What is let go of leaves the heap here, so that it grows by what still fills up alone: 0.9 MB.
        for kind, most in (("heap_bytes", 2 * MEGABYTE), ("shared_bytes", 8 * MEGABYTE), ("files", 3)):
            before = max(getattr(looks[name], kind) for looks in early)
            after = min(getattr(looks[name], kind) for looks in late)
            assert after - before < most, f"{kind} of {name}: from {before} to {after}"
        assert max(looks[name].threads for looks in late) <= most_threads()


@pytest.mark.parametrize(
    ("each_round", "said"), [(2900, ""), (3600, ""), (4500, "heap grows by 4500 bytes a round, not 3969")]
)
def test_what_grows_beyond_the_history_is_a_leak(load, each_round, said):
    looking = importlib.import_module("looking")
    run = load.Load(load.Work(members=4, rounds=500, megabytes=1, every=10))
    for number in range(10, 500, 10):
        filling = 10_000 * min(number, load.SETTLED_ROUNDS)  # bounded, so it counts for nothing
        heap = 40 * MEGABYTE + filling + each_round * number
        look = looking.Look(60 * MEGABYTE, heap, 2 * MEGABYTE, files=34, threads=13, cpu_s=1.0)
        run.looks[number] = {"m01": look}
    growth = {name: dataclasses.asdict(each) for name, each in run.growths().items()}
    found = load.leaks({"members": 4, "growth": growth, "history_bytes": 2945})
    assert found == ([f"m01: {said}"] if said else [])


def most_threads():
    """The loop, asyncio's own pool, the ledger's thread, and those that gRPC keeps for the Workload API."""
    cores = os.cpu_count() or 1
    return 1 + min(32, cores + 4) + 1 + 8 + 2 * min(cores, 16)
