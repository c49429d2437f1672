"""What a member contributes: whether its node still has it, and how many examples stand behind it."""

from __future__ import annotations

from konsil.core.round.knowledge import NodeRound
from konsil.core.rules.state import OpenRound, Study

LEAST_EXAMPLES = 1
"""What a member says that stays active without ever having had an update: it is there, and moves nothing."""


def can_give(state: NodeRound, digest: str) -> bool:
    """Whether this node has the update that it committed: its training's, or the model that it began with."""
    if state.update is not None and state.update.digest == digest:
        return True
    return digest in state.held or (state.outer is not None and state.outer.model == digest)


def has_lost_its_update(state: NodeRound, current: OpenRound, *, missed: bool) -> bool:
    """Whether what this member committed is gone: its training made another one, or did not come with it.

    Args:
        state: what this node knows.
        current: the open round, with this member on its roster.
        missed: whether it has been waited for.
    """
    if can_give(state, current.commits[state.me].digest):
        return False
    update = state.update
    return missed or (update is not None and (update.round, update.base) == (current.number, current.base))


def still_contributes(state: NodeRound, study: Study) -> bool:
    """Whether a member that has finished has what it goes on contributing; without its snapshot the merge."""
    finished = study.participants[state.me].finished
    if finished == "snapshot" and state.update is not None:
        return True
    return finished in {"snapshot", "active"} and study.accepted in state.held


def examples_of(state: NodeRound, study: Study) -> int:
    """How many examples stand behind this member's last update; as few as may be if it never had one."""
    if state.update is not None:
        return state.update.examples
    counts = (
        record.roster[state.me].examples for record in reversed(study.history) if state.me in record.roster
    )
    return next(counts, LEAST_EXAMPLES)
