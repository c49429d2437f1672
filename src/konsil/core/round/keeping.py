"""Which models a node keeps, in memory and on disk, for its peers and for itself."""

from __future__ import annotations

from konsil.core.round.events import UpdateReady
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


def snapshot_of(study: Study, me: str) -> UpdateReady | None:
    """The update that a member which has finished goes on contributing, as the ledger knows it; None where
    there is none. After a restart its node takes that from its disk.
    """
    participant = study.participants.get(me)
    if participant is None or participant.finished != "snapshot" or study.phase in {"finished", "failed"}:
        return None
    for record in reversed(study.history):
        if me in record.roster:
            commitment = record.roster[me]
            return UpdateReady(record.number, record.base, commitment.digest, commitment.examples)
    return None


def to_keep(study: Study, me: str) -> frozenset[str]:
    """Models that stay on disk: the ledger may still send this node back to them, or choose them as best; and
    the update that this member goes on contributing.
    """
    keep = finalists(study) | {study.accepted}
    snapshot = snapshot_of(study, me)
    if snapshot is not None:
        keep |= {snapshot.digest}
    current = study.open
    return keep if current is None else keep | {current.base, current.digest}
