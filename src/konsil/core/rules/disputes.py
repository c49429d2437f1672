"""A disputed chunk: the roster recomputes it, and a majority decides.

A majority of the roster takes a leader off the roster. To strike it for good takes more than half of the
study's participants: while some are away, liars can be a majority of a roster, and what they say must not
last longer than that.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from konsil.core.digest import chunk_count, part_range
from konsil.core.rules.calls import Dispute, Verdict
from konsil.core.rules.merging import away, merging, require_on_roster
from konsil.core.rules.refusing import participant_of, require
from konsil.core.rules.rounds import accept_if_due, leave_roster, merge_time_s
from konsil.core.rules.state import DisputeRecord, OpenRound, State, Study
from konsil.core.rules.studies import put
from konsil.errors import Refused


def dispute(state: State, caller: str, call: Dispute, now_s: int) -> State:
    """Open a dispute over a chunk; until it is closed the round cannot be accepted."""
    study, current = merging(state, caller, call.study, call.round, call.attempt)
    participant_of(study, caller)
    require(
        0 <= call.part < len(current.parts),
        "unknown_part",
        f"There is no part {call.part}: round {call.round} has {len(current.parts)}, counted from 0.",
    )
    part = current.parts[call.part]
    require(
        bool(part.digest), "not_published", f"Part {call.part} of round {call.round} is not published yet."
    )
    require(part.leader != caller, "own_part", f"'{caller}' disputes a part that it merged itself.")
    chunks = part_range(call.part, len(current.parts), chunk_count(study.data_bytes))
    require(
        call.chunk in chunks,
        "unknown_chunk",
        f"Chunk {call.chunk} is not in part {call.part}, which has {chunks.start} to {chunks.stop - 1}.",
    )
    require(
        current.dispute is None,
        "dispute_open",
        f"Another dispute in round {call.round} is open.",
        do="Raise this one when that is closed.",
    )
    require(
        all(d.by != caller or d.attempt != current.attempt for d in current.disputes),
        "second_dispute",
        f"'{caller}' has disputed a chunk of this attempt already.",
    )
    opened = DisputeRecord(
        by=caller,
        leader=part.leader,
        attempt=current.attempt,
        part=call.part,
        chunk=call.chunk,
        closes_s=now_s + merge_time_s(study, current.attempt),
        verdicts={caller: True} if caller in current.roster else {},
    )
    current = replace(current, dispute=opened, deadline_s=opened.closes_s)
    return put(state, decide(replace(study, open=current), now_s))


def verdict(state: State, caller: str, call: Verdict, now_s: int) -> State:
    """Count what a member of the roster found."""
    study, current = merging(state, caller, call.study, call.round, call.attempt)
    require_on_roster(current, caller)
    opened = current.dispute
    if opened is None or (opened.part, opened.chunk) != (call.part, call.chunk):
        raise Refused(
            "no_dispute",
            f"No dispute over chunk {call.chunk} of part {call.part} is open in round {call.round}.",
        )
    if caller in opened.verdicts:
        if opened.verdicts[caller] != call.wrong:
            raise Refused("second_verdict", f"'{caller}' has found otherwise on this chunk already.")
        return state
    opened = replace(opened, verdicts=opened.verdicts | {caller: call.wrong})
    return put(state, decide(replace(study, open=replace(current, dispute=opened)), now_s))


def decide(study: Study, now_s: int) -> Study:
    """Close the open dispute if a majority, everyone, or its time has decided it."""
    current = study.open
    if current is None or current.dispute is None:
        return study
    opened, n = current.dispute, len(current.roster)
    wrong = sum(opened.verdicts.values())
    right = len(opened.verdicts) - wrong
    if 2 * wrong > n:
        able = sum(not participant.struck for participant in study.participants.values())
        return _wrong(study, current, opened, now_s, for_good=2 * wrong > able)
    if 2 * right > n:
        return _close(study, current, opened, "right", now_s)
    if len(opened.verdicts) == n or now_s >= opened.closes_s:
        return _close(study, current, opened, "undecided", now_s)
    return study


def _close(
    study: Study,
    current: OpenRound,
    opened: DisputeRecord,
    outcome: Literal["right", "undecided"],
    now_s: int,
) -> Study:
    current = replace(
        current,
        dispute=None,
        disputes=(*current.disputes, replace(opened, outcome=outcome)),
        deadline_s=now_s + merge_time_s(study, current.attempt),
    )
    return accept_if_due(replace(study, open=current), now_s)


def _wrong(study: Study, current: OpenRound, opened: DisputeRecord, now_s: int, *, for_good: bool) -> Study:
    leader = opened.leader
    participant = study.participants.get(leader)
    if not for_good:
        closed = replace(opened, outcome="wrong")
        current = replace(current, dispute=None, disputes=(*current.disputes, closed))
        return leave_roster(away(study, {leader}), current, {leader}, "disputed", now_s)
    if participant is not None:
        struck = study.participants | {leader: replace(participant, struck=True)}
        study = replace(study, participants=struck)
    current = replace(
        current,
        dispute=None,
        disputes=(*current.disputes, replace(opened, outcome="wrong")),
        struck=(*current.struck, leader),
    )
    return leave_roster(study, current, {leader}, "struck", now_s)
