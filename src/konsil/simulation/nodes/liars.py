"""Members whose nodes do not keep to the protocol: real nodes, with one part exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from konsil.simulation.nodes.node import SimulatedNode
    from konsil.simulation.nodes.plan import Plan


def disguise(node: SimulatedNode, plan: Plan) -> None:
    """Let a node lie, if its plan says so."""
