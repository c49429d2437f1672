"""How many of the chunks that others merged a member recomputes."""

from __future__ import annotations

AUDITS_A_ROUND = 3.0
"""Where a share of a small model is less than a chunk, the roster together recomputes about so many: a chunk
each would be all of the model, by all, in every round of a large swarm."""


def audits(foreign: int, fraction: float, others: int, drawn: float) -> int:
    """How many chunks to choose, so that each is chosen with a chance of ``fraction`` at least.

    Args:
        foreign: how many chunks others merged.
        fraction: the study's ``audit_fraction``.
        others: how many members are in the roster besides this one.
        drawn: a number that only this member knows, uniform from 0 to 1: what is less than a chunk is one in
            so many rounds.
    """
    if not foreign or fraction <= 0:
        return 0
    mean = max(foreign * fraction, min(1.0, AUDITS_A_ROUND / max(1, others)))
    whole = int(mean)
    return whole + (drawn < mean - whole)
