"""The training process's side of the wall: ``join`` a study, ``step`` through its rounds, ``score`` merges.

This process sees patients and has no network: it speaks to its own node over a Unix socket and nothing else.
"""

from __future__ import annotations

from konsil.session.accepted import AcceptedRound
from konsil.session.joining import join
from konsil.session.swarm import Swarm

__all__ = ["AcceptedRound", "Swarm", "join"]
