"""Seeded universes: the real contract, round machine, merges and digests, with everything that goes wrong.

``plan`` says what a universe holds, ``draw`` makes plans from seeds, ``world`` runs one, ``watch`` has what
must hold in all of them.
"""

from konsil.simulation.plans import encode_plan
from konsil.simulation.universe.draw import draw_long, draw_plan
from konsil.simulation.universe.outcome import Outcome, run_universe
from konsil.simulation.universe.plan import Plan, decode_plan

__all__ = ["Outcome", "Plan", "decode_plan", "draw_long", "draw_plan", "encode_plan", "run_universe"]
