"""Real nodes in a world of one seed: their code unchanged, on virtual time, lines, disks and ledger.

``world`` has ``run_universe``; ``plan`` says what goes wrong there, ``draw`` makes plans from seeds,
``invariants`` has what must hold all the same.
"""

from __future__ import annotations

from konsil.simulation.nodes.draw import draw_plan
from konsil.simulation.nodes.plan import Plan, decode_plan
from konsil.simulation.nodes.world import Outcome, run_universe
from konsil.simulation.plans import encode_plan

__all__ = ["Outcome", "Plan", "decode_plan", "draw_plan", "encode_plan", "run_universe"]
