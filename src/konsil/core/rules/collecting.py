"""While a round collects: updates go on record, and members say that they are still training."""

from __future__ import annotations

import math

from msgspec.structs import replace

from konsil.core.rules.calls import Alive, Commit
from konsil.core.rules.refusing import (
    in_open_round,
    participant_of,
    require,
    require_digest,
    running,
    study_named,
)
from konsil.core.rules.rounds import expect, give_up, give_up_at_s, missing, patient_until_s, settle
from konsil.core.rules.state import Commitment, OpenRound, Participant, State, Study
from konsil.core.rules.studies import put
from konsil.errors import Refused

MAX_EXAMPLES = 10**12
"""More examples than any hospital has pixels; a merge weight is below 2^29 anyway."""


def commit(state: State, caller: str, call: Commit, now_s: int) -> State:
    """Put a member's update on record; begin merging if it was the last one waited for.

    Until the roster is fixed another one may take its place: of a member that has lost what it committed.
    """
    study, current = running(study_named(state, call.study))
    participant = participant_of(study, caller)
    in_open_round(current, call.round)
    known = current.commits.get(caller)
    if known is not None and (known.digest, known.examples) == (call.digest, call.examples):
        return state
    if known is not None and current.phase == "merging":
        raise Refused(
            "second_commit",
            f"'{caller}' has committed another update for round {call.round}, which merges it now.",
            do="The first one stands; train on from the round's merge.",
            digest=known.digest,
        )
    _require_collecting(current)
    _require_contributing(participant, caller, call.study)
    if call.base != study.accepted:
        raise Refused(
            "other_base",
            f"The update was trained from another model than round {call.round} starts from.",
            do="Fetch the last accepted merge and train from it.",
            base=study.accepted,
        )
    require_digest(call.digest, "digest of the update")
    least = 0 if study.settings.weighting == "equal" else 1
    if not least <= call.examples <= MAX_EXAMPLES:
        raise Refused(
            "bad_examples",
            f"The example count {call.examples} must be from {least} to 10^12.",
        )
    if study.settings.outer is not None:
        require_digest(call.start, "digest of the outer optimiser's state")
    else:
        require(not call.start, "no_outer", f"Study '{call.study}' has no outer optimiser.")
    commitment = Commitment(digest=call.digest, examples=call.examples, at_s=now_s, start=call.start)
    current = replace(
        current,
        commits=current.commits | {caller: commitment},
        absent={name: why for name, why in current.absent.items() if name != caller},
    )
    return put(state, settle(_present(replace(study, open=current), caller), now_s))


def alive(state: State, caller: str, call: Alive, now_s: int) -> State:
    """Wait longer for a member that says that it is still training, within the study's patience."""
    study, current = running(study_named(state, call.study))
    participant = participant_of(study, caller)
    in_open_round(current, call.round)
    require(
        math.isfinite(call.progress) and 0 <= call.progress <= 1,
        "bad_progress",
        "The progress must be from 0 to 1.",
    )
    _require_collecting(current)
    _require_contributing(participant, caller, call.study)
    if participant.from_round > current.number:
        return state  # nobody waits for it in this round, so it cannot make them
    study = _present(study, caller)
    return put(state, settle(replace(study, open=expect(study, current, caller, now_s)), now_s))


def tick_collecting(study: Study, current: OpenRound, now_s: int) -> Study:
    """Stop waiting for those whose time is up; give up a round that lacks its quorum for too long."""
    settings = study.settings
    patient_s = patient_until_s(study, current)
    reasons = {
        name: "too slow" if until_s >= patient_s and settings.patience_s > settings.silence_s else "silent"
        for name, until_s in current.expected.items()
        if until_s <= now_s and name not in current.commits
    }
    current = replace(
        current,
        expected={name: until_s for name, until_s in current.expected.items() if name not in reasons},
        absent=current.absent | reasons,
    )
    # The silent are not expected in later rounds either, until they say something: a dead node costs
    # the others one round's silence, not one each round.
    silent = {name for name, why in reasons.items() if why == "silent"}
    participants = {
        name: replace(p, present=False) if name in silent else p for name, p in study.participants.items()
    }
    study = settle(replace(study, open=current, participants=participants), now_s)
    still = study.open
    if still is None or still.phase != "collecting" or missing(still):
        return study
    return give_up(study, still, now_s) if now_s >= give_up_at_s(study, still) else study


def _require_collecting(current: OpenRound) -> None:
    if current.phase != "collecting":
        raise Refused(
            "not_collecting",
            f"Round {current.number} is merging the updates of {', '.join(current.roster[:20])}.",
            do="Take part from the next round on: it starts from this one's merge.",
        )


def _require_contributing(participant: Participant, caller: str, study: str) -> None:
    if participant.finished == "inactive":
        raise Refused(
            "finished",
            f"'{caller}' has finished study '{study}' and contributes nothing more.",
        )


def _present(study: Study, name: str) -> Study:
    participant = study.participants[name]
    if participant.present:
        return study
    return replace(study, participants=study.participants | {name: replace(participant, present=True)})
