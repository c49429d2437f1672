"""Many universes, on all cores."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from konsil.simulation.laws import Outcome
from konsil.simulation.plans import WorldName
from konsil.simulation.worlds import world

AT_ONCE: dict[WorldName, int] = {"core": 250, "nodes": 10}
"""Universes that a process runs before it tells: some seconds' work."""


class Tally(NamedTuple):
    """Some universes. ``cpu_s``: what they took of one core; ``broken``: those in which a law was broken."""

    universes: int
    rounds: int
    calls: int
    cpu_s: float
    broken: tuple[Outcome[Any], ...]


def run_some(first: int, count: int, name: WorldName = "core") -> Tally:
    """The universes of so many seeds, one after the other."""
    draw, run = world(name).draw, world(name).run
    began_s = time.process_time()
    gc.disable()  # looking all the time for what holds itself costs a tenth, and a universe leaves little
    try:
        outcomes = [run(draw(seed), None) for seed in range(first, first + count)]
    finally:
        gc.enable()
    return Tally(
        count,
        sum(outcome.rounds for outcome in outcomes),
        sum(outcome.calls for outcome in outcomes),
        time.process_time() - began_s,
        tuple(outcome for outcome in outcomes if outcome.law),
    )


def run_many(first: int, count: int, processes: int = 0, name: WorldName = "core") -> Iterator[Tally]:
    """The universes of so many seeds, as they are done, in the order of their seeds.

    Args:
        first: the first seed.
        count: how many.
        processes: how many at once; 0 for as many as there are cores.
        name: of their world.
    """
    step, end = AT_ONCE[name], first + count
    spans = [(start, min(step, end - start), name) for start in range(first, end, step)]
    at_once = min(processes or os.cpu_count() or 1, len(spans))
    if at_once <= 1:
        yield from (run_some(*span) for span in spans)
        return
    with ProcessPoolExecutor(at_once) as pool:
        try:
            yield from _from_pool(pool, spans)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _from_pool(pool: ProcessPoolExecutor, spans: list[tuple[int, int, WorldName]]) -> Iterator[Tally]:
    """An interrupt from a terminal is for all its processes: those of the pool, which begin here, leave it to
    this one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        tallies = pool.map(run_some, *zip(*spans, strict=True))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from tallies
