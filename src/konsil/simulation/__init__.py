"""Swarms in one process: many members with the real core, to try a study's settings before it is proposed.

``swarm`` has `simulate`, ``member`` what it needs to know of each hospital; the rest makes it go.
"""

from __future__ import annotations

from konsil.simulation.member import Member, Problem, Work
from konsil.simulation.result import Simulated
from konsil.simulation.swarm import simulate

__all__ = ["Member", "Problem", "Simulated", "Work", "simulate"]
