"""Runs universes with a planted bug, in a process of its own: an exact text of one module is another one.

Started by the tests: module, old text, new text, the name of a plan in ``found/nodes`` or "", how many universes
(all as one JSON). Prints after how many universes a law broke, and what was said; 0 and nothing if none did.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from msgspec.structs import replace
from planter import Planter

FOUND = Path(__file__).with_name("found") / "nodes"


def main():
    module, old, new, name, count = json.loads(sys.argv[1])
    planter = Planter(module, old, new)
    sys.meta_path.insert(0, planter)
    from konsil.simulation.nodes import decode_plan, draw_plan, run_universe  # noqa: PLC0415 - only once the bug is planted

    if not planter.planted:
        sys.exit(f"{module} is not imported by a world")
    if name:
        known = decode_plan((FOUND / f"{name}.json").read_bytes())
        plans = [known, *(replace(known, seed=seed) for seed in range(count - 1))]
    else:
        plans = map(draw_plan, range(count))
    for number, plan in enumerate(plans, start=1):
        outcome = run_universe(plan)
        if outcome.law:
            sys.stdout.write(json.dumps([number, f"{outcome.law}: {outcome.what}"]))
            return
    sys.stdout.write(json.dumps([0, ""]))


main()
