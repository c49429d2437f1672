"""Which models a node keeps, in memory and on disk, for its peers and for itself."""

from __future__ import annotations

from konsil.core.round.knowledge import NodeRound
from konsil.core.rules.final import choosable
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


def finalists(study: Study) -> frozenset[str]:
    """The merges of which one is the final model; with an outer optimiser that is in its states."""
    rounds = choosable(study) if study.settings.outer is None else ()
    return frozenset(study.history[number - 1].digest for number in rounds)


def to_keep(state: NodeRound, study: Study) -> frozenset[str]:
    """Models that stay on disk: the ledger may still send this node back to them, or choose them as best; and
    the last update of a member that has finished and goes on contributing it.
    """
    keep = finalists(study) | {study.accepted}
    participant = study.participants.get(state.me)
    finish = state.finish if participant is None else participant.finished or state.finish
    if finish == "snapshot" and state.update is not None and study.phase not in {"finished", "failed"}:
        keep |= {state.update.digest}
    current = study.open
    return keep if current is None else keep | {current.base, current.digest}
