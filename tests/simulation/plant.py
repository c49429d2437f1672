"""Runs universes with a planted bug, in a process of its own: an exact text of one module is another one.

Started by the tests: module, old text, new text (both as JSON), first seed, how many. Prints after how many
universes an invariant broke, and what it said; 0 and nothing if none did.
"""

from __future__ import annotations

import json
import sys

from planter import Planter


def main():
    module, old, new, first, count = json.loads(sys.argv[1])
    planter = Planter(module, old, new)
    sys.meta_path.insert(0, planter)
    from konsil.simulation.nodes import draw_plan, run_universe  # noqa: PLC0415 - only once the bug is planted

    if not planter.planted:
        sys.exit(f"{module} is not imported by a world")
    for number in range(count):
        outcome = run_universe(draw_plan(first + number))
        if outcome.broken:
            sys.stdout.write(json.dumps([number + 1, outcome.broken[0]]))
            return
    sys.stdout.write(json.dumps([0, ""]))


main()
