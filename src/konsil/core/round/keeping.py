"""Which models a node keeps in memory for its peers and for itself."""

from __future__ import annotations

from konsil.core.round.knowledge import NodeRound
from konsil.core.rules.state import Study


def to_hold(state: NodeRound, study: Study) -> frozenset[str]:
    """The digests of the models that somebody may still ask for: the accepted merge, those of the open round,
    and this member's own update, which it alone can give.
    """
    hold = {study.accepted}
    if state.update is not None and study.phase not in {"finished", "failed"}:
        hold.add(state.update.digest)
    if state.offered is not None and study.phase == "proposed":
        hold.add(state.offered.digest)
    current = study.open
    if current is not None:
        hold |= {current.digest, current.base}
        if state.me in current.commits:
            hold.add(current.commits[state.me].digest)
    return frozenset(hold)
