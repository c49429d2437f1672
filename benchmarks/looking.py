"""What processes take, as the kernel sees it, and whether it grows. For benchmarks/load.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PEAK_S = 1.0
"""Between two looks for the peak: a look at 64 processes takes a tenth of it."""

STEP_BYTES = 16
"""Python's allocator hands memory out in multiples of this."""


@dataclass(frozen=True)
class Look:
    """A process at one moment, as the kernel sees it.

    ``pss_bytes``: all, shared pages divided by those who share them, who may change; of it ``heap_bytes``
    what is its own alone, and ``shared_bytes`` its part of memory files: the models that cross the wall.
    """

    pss_bytes: int
    heap_bytes: int
    shared_bytes: int
    files: int
    threads: int
    cpu_s: float

    @classmethod
    def at(cls, pid: int) -> Look:
        """Look at a process that runs."""
        place = Path(f"/proc/{pid}")
        sizes = dict.fromkeys(("Pss", "Pss_Anon", "Pss_Shmem"), 0)
        for line in (place / "smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return cls(
            sizes["Pss"],
            sizes["Pss_Anon"],
            sizes["Pss_Shmem"],
            files=len(list((place / "fd").iterdir())),
            threads=int(fields[17]),
            cpu_s=ticks / os.sysconf("SC_CLK_TCK"),
        )


class Peak(threading.Thread):
    """Looks at processes in the middle of their work, and keeps the most that all took. Use ``with``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.pids: tuple[int, ...] = ()
        self.bytes = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Look until the end of the ``with``."""
        while not self._over.wait(PEAK_S):
            with contextlib.suppress(OSError):  # one has just ended
                self.bytes = max(self.bytes, sum(Look.at(pid).pss_bytes for pid in self.pids))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def slope(numbers: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's: the median of the slopes of all pairs, which a few outliers do not turn."""
    pairs = itertools.combinations(zip(numbers, values, strict=True), 2)
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def deep_bytes(value: Any, seen: set[int]) -> int:
    """What a value of the ledger's state takes in a Python process, with all that hangs on it."""
    if id(value) in seen or value is None or isinstance(value, bool):
        return 0
    seen.add(id(value))
    size = -(-sys.getsizeof(value) // STEP_BYTES) * STEP_BYTES
    if isinstance(value, dict):
        return size + sum(deep_bytes(k, seen) + deep_bytes(v, seen) for k, v in value.items())
    if isinstance(value, list | tuple):
        return size + sum(deep_bytes(each, seen) for each in value)
    fields = getattr(value, "__struct_fields__", getattr(value, "__slots__", ()))
    return size + sum(deep_bytes(getattr(value, field), seen) for field in fields)


@dataclass(frozen=True)
class Growth:
    """What grew in a process. ``heap_bytes``, ``shared_bytes``: a round, by the fitted line."""

    heap_bytes: float
    shared_bytes: float
    files: int
    threads: int

    @classmethod
    def over(cls, numbers: Sequence[int], looks: Sequence[Look]) -> Growth:
        """Through looks at the same process after these rounds.

        Files and threads may vary by what happens just then: what counts is whether the least of the second
        half is more than the most of the first.
        """
        half = len(looks) // 2

        def beyond(of: Callable[[Look], int]) -> int:
            return max(0, min(map(of, looks[half:])) - max(map(of, looks[:half])))

        return cls(
            slope(numbers, [look.heap_bytes for look in looks]),
            slope(numbers, [look.shared_bytes for look in looks]),
            files=beyond(lambda look: look.files),
            threads=beyond(lambda look: look.threads),
        )
