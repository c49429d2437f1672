"""Real nodes in a world of one seed: their code unchanged, on virtual time, lines, disks and ledger.

``world`` has ``run_universe``; ``plan`` says what goes wrong there, ``invariants`` what must hold all the
same.
"""

from __future__ import annotations

from konsil.simulation.nodes.plan import Plan, draw
from konsil.simulation.nodes.world import Outcome, run_universe

__all__ = ["Outcome", "Plan", "draw", "run_universe"]
