"""When a member that lets others wait is named: before those that wait seem to be silent themselves."""

from __future__ import annotations

from konsil.core.rules.rounds import merge_time_s
from konsil.core.rules.state import Study

BLAMED_FROM_ATTEMPT = 2
"""A member that lets others wait and sends nothing is reported from this attempt on."""

BLAMED_AFTER = 0.7
"""... once this share of the time that is left is gone: early enough for the report to count."""


def blamed_after_s(study: Study, now_s: float, grace_s: float) -> float | None:
    """How long work on the open round waits before it names who lets it hang; None for as long as it takes.

    Args:
        study: the study as it stands on the ledger now.
        now_s: the ledger's time.
        grace_s: how long anybody is waited for, however late the work began.
    """
    current = study.open
    if current is None or current.attempt < BLAMED_FROM_ATTEMPT:
        return None
    until_s = current.deadline_s
    if current.digest:  # all is published: the attempt lasts twice its time
        until_s = max(until_s, current.phase_since_s + 2 * merge_time_s(study, current.attempt))
    return max(grace_s, (until_s - now_s) * BLAMED_AFTER)
