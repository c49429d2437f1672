"""Planted bugs: each a change of one place in the code that runs in production, which universes must find.

    python tests/simulation/mutants.py NAME [FIRST [MOST]]   how many universes it takes from a seed on
    python tests/simulation/mutants.py --medians             the table of all, from five seeds each

A change is applied to the module's source when it is imported, in a process of its own. The old text must
occur exactly once: a mutant that no longer fits is an error, not a mutant that nobody found.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from planter import Planter

FOUND = Path(__file__).with_name("found")

MOST = 8000
"""Universes in which a mutant must be found."""


@dataclass(frozen=True)
class Mutant:
    """``module``: under ``konsil``; ``old`` becomes ``new``. ``plan``: of a universe in ``found`` in which it
    shows, with other seeds, where drawn universes hold what it takes too rarely.
    """

    name: str
    module: str
    old: str
    new: str
    plan: str = ""


def hunt(mutant: Mutant, first: int, most: int) -> tuple[int, str]:
    """How many universes it takes to find a planted bug, and the law that it breaks; 0 if it is not found."""
    planter = Planter(f"konsil.{mutant.module}", mutant.old, mutant.new)
    sys.meta_path.insert(0, planter)
    from konsil.simulation.universe import decode_plan, draw_plan, run_universe  # noqa: PLC0415 - with the bug

    assert planter.planted, f"{mutant.module} was not imported"
    known = decode_plan((FOUND / f"{mutant.plan}.json").read_bytes()) if mutant.plan else None
    for seed in range(first, first + most):
        try:
            law = run_universe(replace(known, seed=seed) if known else draw_plan(seed)).law
        except Exception as error:  # noqa: BLE001 - a universe that breaks down has found something too
            law = f"{type(error).__name__}: {error}"[:80]
        if law:
            return seed - first + 1, law
    return 0, ""


def found_by(name: str, first: int = 0, most: int = MOST) -> tuple[int, str]:
    """``hunt`` in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, name, str(first), str(most)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if run.returncode:
        raise AssertionError(run.stderr[-2000:])
    count, law = run.stdout.rstrip("\n").split(" ", 1)
    return int(count), law


def medians() -> None:
    """Print the table: the median number of universes from five seeds, and the law that was broken."""
    for name in MUTANTS:
        counts, laws = [], set()
        for first in range(0, 50_000, 10_000):
            count, law = found_by(name, first)
            counts.append(count or MOST + 1)
            laws.add(law)
        row = f"| {name} | {statistics.median(counts):g} | {max(counts)} | {'; '.join(sorted(laws))} |"
        sys.stdout.write(row + "\n")
        sys.stdout.flush()


def main() -> None:
    if sys.argv[1] == "--medians":
        medians()
        return
    first, most = [*map(int, sys.argv[2:]), *([0, MOST][len(sys.argv) - 2 :])]
    count, law = hunt(MUTANTS[sys.argv[1]], first, most)
    sys.stdout.write(f"{count} {law}\n")


from planted import ALL  # noqa: E402 - the list is long, and this file says what it is for

MUTANTS = {mutant.name: mutant for mutant in (Mutant(*each) for each in ALL)}

if __name__ == "__main__":
    main()
