"""A thing to be fuzzed, and what must hold whatever bytes it is given."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from konsil.errors import KonsilError

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that once broke something, a folder a target, each named for what it does."""

Shape = Literal["bytes", "json", "msgpack", "frame"]
"""What the mutator knows of a target's bytes. ``frame``: 4 bytes of length, big-endian, then MessagePack."""


class Broken(AssertionError):
    """Something came out that may never come out. ``AssertionError``: no parser may ever swallow it."""


@dataclass(frozen=True)
class Target:
    """A function that takes bytes of a stranger.

    ``run`` says whether the bytes were let through, and catches exactly the errors that the parser's
    docstring names: whatever else comes out of it is a finding. ``seeds`` are made by the project's own
    writers; one at least must be let through, else nothing that lies behind is tried. ``limit_s`` and
    ``limit_bytes`` bound the time of one input and the memory that is held at its peak.
    """

    name: str
    about: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], Sequence[bytes]]
    shape: Shape = "bytes"
    max_bytes: int = 16 * 1024
    limit_s: float = 2.0
    limit_bytes: int = 64 * 1024 * 1024

    def known(self) -> list[Path]:
        """Inputs that once broke it."""
        folder = CORPUS / self.name
        return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def timed(self, data: bytes) -> bool:
        """One input, within its time; whether it was let through.

        Raises:
            Broken: it took too long.
            BaseException: whatever came out of the target.
        """
        began_s = time.process_time()  # the machine may be busy; the engine ends what hangs
        through = self.run(data)
        took_s = time.process_time() - began_s
        if took_s > self.limit_s:
            raise Broken(f"{self.name}: {len(data)} bytes took {took_s:.1f} s, over {self.limit_s} s")
        return through

    def measured(self, data: bytes) -> None:
        """One input, within its time and its memory. Slower: every allocation is counted.

        Raises:
            Broken: it took too long, or held too much.
            BaseException: whatever came out of the target.
        """
        self.timed(data)
        tracemalloc.start()
        try:
            self.run(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak > self.limit_bytes:
            raise Broken(f"{self.name}: {len(data)} bytes made it hold {peak} bytes, over {self.limit_bytes}")


def must(held: bool, what: str) -> None:
    """What must hold of everything that a parser lets through.

    Raises:
        Broken: it does not.
    """
    if not held:
        raise Broken(what)


def refusal(error: KonsilError) -> None:
    """A refusal must be fit to be written into a log and sent to a peer."""
    str(error).encode()
    must(bool(error.what), f"a {error.kind} without a sentence")
