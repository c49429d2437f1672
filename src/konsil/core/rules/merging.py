"""While a round merges: leaders publish parts, the roster accepts what it holds, the silent lose out."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from konsil.core.digest import root_from
from konsil.core.rules.agreement import effective_quorum, rule_mixes
from konsil.core.rules.calls import Accept, Publish, Report
from konsil.core.rules.refusing import in_open_round, require, require_digest, running, study_named
from konsil.core.rules.rounds import (
    QUICK_ATTEMPTS,
    accept_if_due,
    collect_again,
    deal_parts,
    doubt,
    give_up,
    give_up_at_s,
    leave_roster,
    merge_time_s,
)
from konsil.core.rules.state import OpenRound, Part, State, Study
from konsil.core.rules.studies import put
from konsil.errors import Refused


def merging(state: State, caller: str, study_name: str, number: int, attempt: int) -> tuple[Study, OpenRound]:
    """The study and its open round, if the call is about its present attempt at merging.

    Raises:
        Refused: "round_over", "round_not_open", "attempt_over" or "not_merging".
    """
    study, current = running(study_named(state, study_name))
    in_open_round(current, number, attempt)
    if current.phase != "merging":
        raise Refused(
            "not_merging",
            f"Round {number} is collecting updates; nothing is merged yet ('{caller}').",
            do="Wait until the ledger says that it merges.",
        )
    return study, current


def require_on_roster(current: OpenRound, caller: str) -> None:
    """See that the caller's update is in this merge.

    Raises:
        Refused: "not_on_roster".
    """
    if caller not in current.roster:
        raise Refused(
            "not_on_roster",
            f"'{caller}' is not on the roster of round {current.number}: {', '.join(current.roster[:20])}.",
        )


def publish(state: State, caller: str, call: Publish, now_s: int) -> State:
    """Put a leader's merged part on record; with the last one the merge's digest stands."""
    study, current = merging(state, caller, call.study, call.round, call.attempt)
    if not 0 <= call.part < len(current.parts):
        raise Refused(
            "unknown_part",
            f"There is no part {call.part}: round {call.round} has {len(current.parts)}, counted from 0.",
        )
    part = current.parts[call.part]
    if part.leader != caller:
        raise Refused(
            "not_leader",
            f"Part {call.part} of round {call.round} is led by '{part.leader}', not by '{caller}'.",
        )
    require_digest(call.digest, "digest of the part")
    if part.digest:
        if (part.digest, part.gram) != (call.digest, call.gram):
            raise Refused(
                "second_publish",
                f"'{caller}' has published another digest for part {call.part} already.",
                digest=part.digest,
            )
        return state
    mixes = rule_mixes(study.settings)
    if mixes or (mixes is None and call.gram):
        require_digest(call.gram, "digest of the Gram matrix")
    if mixes is False and call.gram:
        raise Refused(
            "no_gram",
            f"The rule {study.settings.rule} does not mix, so a part has no Gram matrix.",
        )
    parts = list(current.parts)
    parts[call.part] = Part(leader=caller, digest=call.digest, gram=call.gram)
    current = replace(current, parts=tuple(parts))
    if all(part.digest for part in parts):
        return put(state, _all_published(study, current, now_s))
    return put(state, replace(study, open=current))


def _all_published(study: Study, current: OpenRound, now_s: int) -> Study:
    grams = Counter(part.gram for part in current.parts)
    if len(grams) == 1:
        digest = root_from(study.schema, [part.digest for part in current.parts])
        return replace(study, open=replace(current, digest=digest))
    # Leaders mixed by different Gram matrices, so their parts are not of one merge.
    if now_s >= give_up_at_s(study, current):
        return give_up(study, current, now_s)
    winner, count = grams.most_common(1)[0]
    # Without a majority nobody knows who is wrong: others merge it all.
    agreed = winner if 2 * count > len(current.parts) else None
    odd = {part.leader for part in current.parts if part.gram != agreed}
    if set(current.roster) <= odd.union(current.silent):
        return replace(study, open=current)  # there are no others: at the deadline it begins again
    return replace(study, open=_without_parts_of(study, current, odd, now_s))


def _without_parts_of(study: Study, current: OpenRound, leaders: set[str], now_s: int) -> OpenRound:
    """A new attempt in which others lead the parts of these leaders; other published parts stay."""
    parts = tuple(Part(leader="") if part.leader in leaders else part for part in current.parts)
    silent = tuple(sorted({*current.silent, *leaders}))
    current = replace(current, attempt=current.attempt + 1, parts=parts, silent=silent)
    return deal_parts(study, current, now_s, keep=True)


def accept(state: State, caller: str, call: Accept, now_s: int) -> State:
    """Note that the caller holds the whole merge; accept the round once all of the roster do.

    Of a round that was accepted already with this digest, it is late but true: nothing changes.
    """
    history = study_named(state, call.study).history
    if 0 < call.round <= len(history) and history[call.round - 1].digest == call.digest:
        return state
    study, current = merging(state, caller, call.study, call.round, call.attempt)
    require_on_roster(current, caller)
    if not current.digest:
        raise Refused(
            "not_published",
            f"Not all parts of round {call.round} are published yet.",
        )
    if call.digest != current.digest:
        raise Refused(
            "other_digest",
            f"The merge of round {call.round} has another digest than '{caller}' holds.",
            do="Pull the parts that differ again.",
            digest=current.digest,
        )
    accepts = tuple(sorted({*current.accepts, caller}))
    study = replace(study, open=replace(current, accepts=accepts))
    return put(state, accept_if_due(study, now_s))


def report(state: State, caller: str, call: Report, now_s: int) -> State:
    """Note whom the caller cannot reach; who is out of a majority's reach leaves the roster at once.

    So does a caller that says of itself that its update is gone: nobody knows that better. Not while
    others look whether it merged wrongly, though: nobody slips away from that.
    """
    study, current = merging(state, caller, call.study, call.round, call.attempt)
    require_on_roster(current, caller)
    named = set(call.unreachable)
    accused = current.dispute is not None and current.dispute.leader == caller
    if caller in named and accused and current.dispute is not None:
        wait_s = max(0, current.dispute.closes_s - now_s)
        raise Refused(
            "under_dispute",
            f"What '{caller}' merged is disputed: it stays on the roster until that is settled.",
            do="Say it again then.",
            wait_s=wait_s,
        )
    strangers = sorted(named - set(current.roster))
    require(
        not strangers,
        "unknown_member",
        f"{', '.join(strangers)[:200]} is not on the roster of round {call.round}.",
    )
    current = replace(current, reports=current.reports | {caller: tuple(sorted(named))})
    counts = Counter(name for names in current.reports.values() for name in names)
    others = len(current.roster) - 1
    gone = {name for name, count in counts.items() if 2 * count > others}
    if caller in named:
        gone = {caller} if others == 1 else gone | {caller}
    study = replace(study, open=current)
    may_go_on_alone = effective_quorum(study.settings) == 1 and current.attempt >= QUICK_ATTEMPTS
    if gone - {caller} and others == 1 and not may_go_on_alone:  # no third can say who is right
        return put(state, doubt(study, current, gone, now_s))
    if gone:
        study = leave_roster(away(study, gone), current, gone, "unreachable", now_s)
    return put(state, study)


def tick_merging(study: Study, current: OpenRound, now_s: int) -> Study:
    """Take parts from silent leaders; accept with a majority; begin again if a merge cannot be pulled."""
    if not current.digest:
        if now_s >= give_up_at_s(study, current):
            return give_up(study, current, now_s)
        silent = {part.leader for part in current.parts if not part.digest}
        if not silent:  # all parts are here, and do not fit together
            return _begin_again(study, current, now_s)
        return _without_parts_of_the_silent(study, current, silent, now_s)
    study = accept_if_due(study, now_s)
    if study.open is None or study.open.number != current.number or study.phase != "running":
        return study
    if now_s >= give_up_at_s(study, current):
        return give_up(study, current, now_s)
    time_s = merge_time_s(study, current.attempt)
    if now_s < current.phase_since_s + 2 * time_s:
        return replace(study, open=replace(current, deadline_s=now_s + time_s))
    return _begin_again(study, current, now_s)


def _begin_again(study: Study, current: OpenRound, now_s: int) -> Study:
    """This roster did not come to a merge: the round collects again, so that members who were away come in.

    All updates on record stay at first, for slow is not dead: the next attempt has twice the time, and who
    cannot be had or withholds a part is a matter of the others' reports. But who has let a leader's deadline
    pass before, or several attempts, and has done nothing in this one (published, accepted, reported), is
    gone, and without it a majority may be had.
    """
    there = {*(part.leader for part in current.parts), *current.accepts, *current.reports}
    gone = set(current.roster) - there
    if current.attempt < QUICK_ATTEMPTS:
        gone &= set(current.silent)
    if gone and current.digest:
        return leave_roster(away(study, gone), current, gone, "silent", now_s)
    return collect_again(study, replace(current, attempt=current.attempt + 1, reports={}), now_s)


def away(study: Study, names: set[str]) -> Study:
    """The study with these members no longer present: they enter again when they are back."""
    participants = {
        name: replace(p, present=False) if name in names else p for name, p in study.participants.items()
    }
    return replace(study, participants=participants)


def _without_parts_of_the_silent(study: Study, current: OpenRound, silent: set[str], now_s: int) -> Study:
    """Others lead the parts of the silent; where nobody is left who could, others are let in."""
    silent_now = tuple(sorted({*current.silent, *silent}))
    current = replace(current, attempt=current.attempt + 1, silent=silent_now)
    if set(current.roster) <= set(silent_now):
        return collect_again(study, current, now_s)
    return replace(study, open=deal_parts(study, current, now_s, keep=True))
