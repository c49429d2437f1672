"""A round's way from open to accepted: the mechanics that the calls and the tick set in motion.

Each function takes a study and the ledger's time and gives the study as it is then.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from konsil.core.merge import merge_weights
from konsil.core.rules.agreement import effective_quorum, settings_digest
from konsil.core.rules.deal import deal, part_count
from konsil.core.rules.final import best_of_old
from konsil.core.rules.pacing import next_interval
from konsil.core.rules.state import OpenRound, Part, Participant, RoundRecord, Study, StudyPhase
from konsil.core.rules.stopping import why_it_ends

FIRST_ATTEMPT = 1

RECENT_ROUNDS = 5
"""A merge's deadline comes from this many rounds, so that one slow day is forgotten."""

SLACK = 4
"""... and allows this many times the longest of them: networks vary, and a false alarm costs a merge."""

MAX_DOUBLINGS = 10
"""Each attempt doubles the time to merge, so that slow leaders come through, up to the study's patience and
at most so often: 30 s become 8.5 h."""

QUICK_ATTEMPTS = 3
"""So many rosters may be tried one right after the other: most often somebody was gone, and that is all."""

_LASTING = frozenset({"silent", "unreachable", "disputed", "left"})
"""Why a member is away that stays away until it enters again."""


def missing(current: OpenRound) -> tuple[str, ...]:
    """The members that the round waits for: expected, and without a commit."""
    return tuple(sorted(name for name in current.expected if name not in current.commits))


def weights_of(study: Study) -> dict[str, int]:
    """The integer merge weights of the open round's roster; empty while it collects."""
    current = study.open
    if current is None or not current.roster:
        return {}
    examples = {name: current.commits[name].examples for name in current.roster}
    settings = study.settings
    return merge_weights(settings.weighting, examples, settings.given, settings.cap_percent)


def next_deadline_s(study: Study) -> int | None:
    """The next moment (ledger time) at which a tick has consequences; None if there is none."""
    return study.open.deadline_s if study.open is not None else None


def merge_time_s(study: Study, attempt: int) -> int:
    """How long leaders and followers of the merge may take in this attempt.

    Rounds that not all of the roster accepted count for nothing here: they lasted as long as they were
    allowed to, and the time would grow from round to round. For the same reason no member can push it
    beyond the study's patience.
    """
    settings = study.settings
    took = [
        record.accepted_s - record.merging_s
        for record in study.history[-RECENT_ROUNDS:]
        if len(record.accepts) == len(record.roster)
    ]
    seen_s = min(SLACK * max(took, default=0), settings.patience_s)
    doublings = min(attempt - FIRST_ATTEMPT, MAX_DOUBLINGS)
    first_s = max(settings.merge_s, seen_s)
    return max(first_s, min(first_s << doublings, settings.patience_s))


def give_up_at_s(study: Study, current: OpenRound) -> int:
    """When a round that cannot be brought to its end fails the study."""
    return current.opened_s + study.settings.patience_s + study.settings.give_up_s


def contributes(participant: Participant) -> bool:
    """Whether rounds count on this participant's updates."""
    return participant.present and not participant.struck and participant.finished != "inactive"


def open_round(study: Study, number: int, now_s: int) -> Study:
    """Open a round that expects everyone who is present."""
    before = study.history[-1].absent if study.history else {}
    absent = {
        name: before[name]
        for name, participant in study.participants.items()
        if before.get(name) in _LASTING and not participant.present and not participant.struck
    }
    current = OpenRound(
        number=number,
        attempt=FIRST_ATTEMPT,
        phase="collecting",
        base=study.accepted,
        opened_s=now_s,
        phase_since_s=now_s,
        deadline_s=now_s,
        expected=_all_expected(study, number, now_s),
        absent=absent,
        interval=next_interval(study),
    )
    return settle(replace(study, open=current), now_s)


def _all_expected(study: Study, number: int, now_s: int) -> dict[str, int]:
    until_s = now_s + study.settings.silence_s
    return {
        name: until_s
        for name, participant in study.participants.items()
        if contributes(participant) and participant.from_round <= number
    }


def patient_until_s(study: Study, current: OpenRound) -> int:
    """Until when a round that collects waits for members that are alive.

    Who is let in by a later attempt has the patience that the others had; but a round that collects again
    and again waits no more than twice as long, and not beyond the time when it is given up.
    """
    settings = study.settings
    more_s = min(current.phase_since_s - current.opened_s, settings.patience_s, settings.give_up_s)
    return current.opened_s + settings.patience_s + more_s


def expect(study: Study, current: OpenRound, name: str, now_s: int) -> OpenRound:
    """Wait for a member (longer), within the study's patience."""
    patient_s = patient_until_s(study, current)
    until_s = max(min(now_s + study.settings.silence_s, patient_s), current.expected.get(name, 0))
    if until_s <= now_s or name in current.commits:
        return current
    absent = {other: why for other, why in current.absent.items() if other != name}
    return replace(current, expected=current.expected | {name: until_s}, absent=absent)


def settle(study: Study, now_s: int) -> Study:
    """Begin merging if nothing is missing; else set the next deadline of a collecting round."""
    current = study.open
    if current is None or current.phase != "collecting":
        return study
    waited_for = missing(current)
    enough = len(current.commits) >= effective_quorum(study.settings)
    begins_s = current.phase_since_s + _breath_s(study, current.attempt)
    if not waited_for and enough and now_s >= begins_s:
        return _begin_merging(study, current, now_s)
    if waited_for:
        deadline_s = min(current.expected[name] for name in waited_for)
    elif enough:
        deadline_s = begins_s
    else:
        deadline_s = min(now_s + study.settings.silence_s, max(now_s, give_up_at_s(study, current)))
    return replace(study, open=replace(current, deadline_s=deadline_s))


def _breath_s(study: Study, attempt: int) -> int:
    """How long a round that collects again waits at least: members that cannot reach each other would
    else report, leave and enter for ever, as fast as the ledger takes it.
    """
    if attempt <= QUICK_ATTEMPTS:
        return 0
    doublings = min(attempt - QUICK_ATTEMPTS - 1, MAX_DOUBLINGS)
    return min(study.settings.merge_s << doublings, study.settings.patience_s)


def _begin_merging(study: Study, current: OpenRound, now_s: int) -> Study:
    current = replace(current, phase="merging", roster=tuple(sorted(current.commits)))
    return replace(study, open=deal_parts(study, current, now_s))


def deal_parts(study: Study, current: OpenRound, now_s: int, *, keep: bool = False) -> OpenRound:
    """Start an attempt: deal the parts, or with ``keep`` only those that nobody has published."""
    silent = current.silent if set(current.silent) < set(current.roster) else ()
    leaders = tuple(name for name in current.roster if name not in silent)
    kept = current.parts if keep else ()
    parts = list(kept) or [Part(leader="")] * part_count(study.settings, len(leaders), study.data_bytes)
    open_parts = [index for index, part in enumerate(parts) if not part.digest]
    dealt = deal(current.base, current.number, current.attempt, leaders, len(open_parts))
    for index, leader in zip(open_parts, dealt, strict=True):
        parts[index] = Part(leader=leader)
    set_aside = (replace(current.dispute, outcome="undecided"),) if current.dispute is not None else ()
    return replace(
        current,
        phase_since_s=now_s,
        deadline_s=now_s + merge_time_s(study, current.attempt),
        parts=tuple(parts),
        digest="",
        accepts=(),
        silent=silent,
        dispute=None,
        disputes=current.disputes + set_aside,
    )


def leave_roster(study: Study, current: OpenRound, names: Collection[str], why: str, now_s: int) -> Study:
    """Go on without these members: all parts are dealt anew, or the round collects again."""
    current = replace(
        current,
        attempt=current.attempt + 1,
        commits={name: commit for name, commit in current.commits.items() if name not in names},
        absent=current.absent | dict.fromkeys(names, why),
        roster=tuple(name for name in current.roster if name not in names),
        reports={},
    )
    if len(current.roster) >= effective_quorum(study.settings):
        return replace(study, open=deal_parts(study, current, now_s))
    return collect_again(study, current, now_s)


def doubt(study: Study, current: OpenRound, names: Collection[str], now_s: int) -> Study:
    """One of a roster of two cannot reach the other, it says: collect again, and wait a moment for that one.

    If it is gone, it says nothing for the time of a merge, and the round goes on without it. If the first one
    is wrong, or lies, the other commits again at once, and whoever has come back is on the roster too.
    """
    left = {name: commit for name, commit in current.commits.items() if name not in names}
    current = replace(current, attempt=current.attempt + 1, commits=left, reports={})
    study = collect_again(study, current, now_s)
    collecting = study.open
    if collecting is None:
        return study
    until_s = now_s + min(study.settings.silence_s, study.settings.merge_s)
    waited_for = {name: min(until_s, s) if name in names else s for name, s in collecting.expected.items()}
    return settle(replace(study, open=replace(collecting, expected=waited_for)), now_s)


def collect_again(study: Study, current: OpenRound, now_s: int) -> Study:
    """Open the round to updates once more: those on record stay, and whoever is there now is waited for.

    Who came while the round was merging may take part too: this roster got no merge, and another may.
    """
    if now_s >= give_up_at_s(study, current):
        return give_up(study, current, now_s)
    number = current.number
    participants = {
        name: replace(p, from_round=min(p.from_round, number)) if contributes(p) else p
        for name, p in study.participants.items()
    }
    study = replace(study, participants=participants)
    expected = _all_expected(study, number, now_s)
    set_aside = (replace(current.dispute, outcome="undecided"),) if current.dispute is not None else ()
    current = replace(
        current,
        phase="collecting",
        phase_since_s=now_s,
        expected=expected,
        absent={name: why for name, why in current.absent.items() if name not in expected},
        roster=(),
        parts=(),
        reports={},
        digest="",
        accepts=(),
        silent=(),
        dispute=None,
        disputes=current.disputes + set_aside,
    )
    return settle(replace(study, open=current), now_s)


def accept_if_due(study: Study, now_s: int) -> Study:
    """Accept the merge if all of the roster hold it, or a majority when its time is up."""
    current = study.open
    if current is None or not current.digest or current.dispute is not None:
        return study
    held, n = len(current.accepts), len(current.roster)
    time_is_up = now_s >= current.phase_since_s + merge_time_s(study, current.attempt)
    if held < n and not (time_is_up and 2 * held > n):
        return study
    record = RoundRecord(
        number=current.number,
        attempt=current.attempt,
        base=current.base,
        digest=current.digest,
        roster={name: current.commits[name] for name in current.roster},
        weights=weights_of(study),
        parts=current.parts,
        absent=_absences(study, current),
        opened_s=current.opened_s,
        merging_s=current.phase_since_s,
        accepted_s=now_s,
        accepts=current.accepts,
        disputes=current.disputes,
        struck=current.struck,
        interval=current.interval,
    )
    study = replace(study, history=(*study.history, record), open=None)
    return _go_on(replace(study, best_of_old=best_of_old(study)), now_s)


def _absences(study: Study, current: OpenRound) -> dict[str, str]:
    reasons = {name: _why_absent(p, current.number) for name, p in study.participants.items()}
    return {name: why for name, why in (reasons | current.absent).items() if name not in current.roster}


def _why_absent(participant: Participant, number: int) -> str:
    if participant.struck:
        return "struck"
    if participant.finished == "inactive":
        return "finished"
    if participant.from_round > number:
        return "joined later"
    return "joined later" if participant.present else "not entered"


def _go_on(study: Study, now_s: int) -> Study:
    if study.pending is not None:
        study = take_settings(study)
    end = why_it_ends(study, now_s)
    if end is not None:
        return end_study(study, *end, now_s)
    return open_round(study, study.history[-1].number + 1, now_s)


def give_up(study: Study, current: OpenRound, now_s: int) -> Study:
    """End the study because its round cannot be brought to an end; says who was missing."""
    names = sorted(set(study.participants) - set(current.commits))
    reasons = _absences(study, current)
    away = ", ".join(f"{name} ({reasons.get(name, 'present')})" for name in names) or "nobody"
    there = ", ".join(sorted(current.commits)) or "nobody"
    lacks = (
        f"lacked its quorum of {effective_quorum(study.settings)} commits"
        if current.phase == "collecting"
        else "was not merged"
    )
    why = (
        f"Round {current.number} was given up {now_s - current.opened_s} s after it opened: it {lacks}. "
        f"Committed: {there}. Missing: {away}."
    )
    return end_study(study, "failed", why, now_s)


def end_study(study: Study, phase: StudyPhase, why: str, now_s: int) -> Study:
    """End the study; what was accepted stays."""
    return replace(study, phase=phase, ended=why, ended_s=now_s, open=None, pending=None)


def take_settings(study: Study) -> Study:
    """Let the settings that were voted for hold from here on."""
    settings = study.pending or study.settings
    return replace(study, settings=settings, settings_digest=settings_digest(settings), pending=None)
