"""A member's node that lies: every chunk that it merges or recomputes has one bit turned.

lying_node.py DIRECTORY
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from konsil.node import daemon
from konsil.node.bench import Bench

honest_merge = Bench._merge


def lying_merge(bench: Bench, index: int, chunks: Sequence[memoryview], out: memoryview) -> None:
    honest_merge(bench, index, chunks, out)
    out[0] ^= 1


if __name__ == "__main__":
    Bench._merge = lying_merge  # type: ignore[method-assign]
    daemon.run(Path(sys.argv[1]))
