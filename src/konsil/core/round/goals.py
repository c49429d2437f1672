"""The second table of the round machine: what a node wants, given what it knows and what the ledger says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from konsil.core.round.contributing import can_give, examples_of, still_contributes
from konsil.core.round.events import (
    Advance,
    Deliver,
    Effect,
    Fetch,
    Lead,
    Submit,
)
from konsil.core.round.knowledge import NodeRound
from konsil.core.round.trouble import is_troubled, report_the_unreachable, see_for_oneself, settle_disputes
from konsil.core.rules.calls import (
    Accept,
    Alive,
    Commit,
    Enter,
    Finish,
    Initialise,
    Leave,
    Publish,
    Tick,
)
from konsil.core.rules.rounds import patient_until_s
from konsil.core.rules.starts import agreed_start
from konsil.core.rules.state import OpenRound, RoundPhase, Study, StudyPhase

FAILED_OFTEN = 3
"""A model that could not be had so often is not on its way, and nobody is asked to wait for it."""

TICK_STAGGER_S = 0.4
"""Members tick one after the other, in name order, so that one call does the work of all."""


def _offer_the_initial_parameters(state: NodeRound, study: Study) -> Iterable[Effect]:
    offer = state.offered
    if study.initial or study.proposer != state.me or offer is None:
        return ()
    return (Submit(Initialise(state.study, offer.schema, offer.digest, offer.data_bytes)),)


def _hold_the_accepted_model(state: NodeRound, study: Study) -> Iterable[Effect]:
    accepted = study.accepted
    if accepted and accepted not in state.held and state.me in study.participants:
        return (Fetch(len(study.history), accepted),)
    return ()


def _accept_the_merge(state: NodeRound, study: Study) -> Iterable[Effect]:
    current = study.open
    if current is None or not current.digest or state.me not in current.roster:
        return ()
    # Not by its digest alone: a leader may publish a model that everybody holds, such as the base.
    completed = state.completed == (current.number, current.attempt, current.digest)
    if not completed or current.digest not in state.held:
        return (Fetch(current.number, current.digest, current.attempt),)
    if state.me not in current.accepts:
        return (Submit(Accept(state.study, current.number, current.attempt, current.digest)),)
    return ()


def _have_the_outer_state(state: NodeRound, study: Study) -> Iterable[Effect]:
    if study.settings.outer is None or state.me not in study.participants:
        return ()
    if study.accepted not in state.held:
        return ()
    if state.outer is None:
        return (Advance(len(study.history), study.accepted),)
    if _is_contradicted(state.outer.start, study):
        return (Advance(len(study.history), study.accepted, agreed_start(study)),)
    return ()


def _is_contradicted(start: str, study: Study) -> bool:
    """Whether a majority of the open round trains from another outer state than this one."""
    return agreed_start(study) not in {"", start}


def _start(state: NodeRound, study: Study) -> str | None:
    """The outer state that this node goes on from, "" where there is no such thing; None if it lacks it."""
    if study.settings.outer is None:
        return ""
    if state.outer is None or _is_contradicted(state.outer.start, study):
        return None
    return state.outer.start


def _trained_from_another(state: NodeRound, study: Study) -> bool:
    """Whether the training process has a model of another outer state than a majority of the open round."""
    return (
        state.delivered == study.accepted
        and state.trains_from != ""
        and _is_contradicted(state.trains_from, study)
    )


def _deliver_it(state: NodeRound, study: Study) -> Iterable[Effect]:
    if not (state.attached and state.waiting):
        return ()
    accepted = study.accepted
    # A merge may have its base's digest: when training has changed nothing, it is news all the same.
    merged = state.update is not None and state.update.round <= len(study.history)
    other = not state.greeted or state.delivered != accepted
    has_news = other or merged or study.phase == "finished"
    if not has_news and study.phase != "failed":
        return ()
    start = _start(state, study)
    if accepted in state.held and start is not None:
        return (Deliver(len(study.history), accepted, start or ""),)
    if study.phase == "failed" and not _may_still_advance(state, study):
        return (Deliver(len(study.history), accepted),)
    return ()


def _may_still_advance(state: NodeRound, study: Study) -> bool:
    """Whether the model of a study that failed is about to be here; not if the first try has failed."""
    tried = any(isinstance(effect, Advance) for effect in state.retries)
    return study.settings.outer is not None and study.accepted in state.held and not tried


def _be_present(state: NodeRound, study: Study) -> Iterable[Effect]:
    participant = study.participants.get(state.me)
    if participant is None or participant.struck:
        return ()
    if participant.finished is not None or state.finish is not None:
        # It stays for what it goes on contributing; a node that was away says so once it is back.
        if not participant.present and still_contributes(state, study):
            return (Submit(Enter(state.study)),)
        return ()
    if state.leaving and not state.attached and participant.present:
        return (Submit(Leave(state.study)),)
    if study.settings.outer is not None and _trained_from_another(state, study):
        # It sits this round out, and nobody is to wait for it: it has no update that belongs here.
        open_without_it = study.open is not None and state.me not in study.open.commits
        return (Submit(Leave(state.study)),) if participant.present and open_without_it else ()
    if not participant.present and state.attached and state.delivered == study.accepted != "":
        return (Submit(Enter(state.study)),)
    return ()


def _commit_the_update(state: NodeRound, study: Study) -> Iterable[Effect]:
    current = study.open
    if current is None:
        return ()
    mine = current.commits.get(state.me)
    if mine is not None and can_give(state, mine.digest):
        return ()
    commit = _update_for(state, study, current)
    return () if commit is None else (Submit(commit),)


def _update_for(state: NodeRound, study: Study, current: OpenRound) -> Commit | None:
    """The update that this node can commit to the open round, if it has one."""
    update, participant, start = state.update, study.participants.get(state.me), _start(state, study)
    if participant is None or participant.struck or participant.finished == "inactive" or start is None:
        return None
    if study.accepted not in state.held:
        return None  # after a restart: who commits must hold what it goes on from

    def commit(digest: str, examples: int) -> Commit:
        return Commit(state.study, current.number, study.accepted, digest, examples, start)

    if update is not None and (update.round, update.base) == (current.number, study.accepted):
        return None if _trained_from_another(state, study) else commit(update.digest, update.examples)
    if not participant.present or participant.from_round > current.number:
        return None
    if participant.finished == "snapshot" and update is not None:
        return commit(update.digest, update.examples)
    if participant.finished is not None and study.accepted in state.held:
        # The model as training goes on from it: of this member's share the outer optimiser sees no change.
        # Also in the place of a snapshot that is gone, or was never made: others may be too few without it.
        digest = state.outer.model if state.outer is not None else study.accepted
        return commit(digest, examples_of(state, study))
    return None


def _lead_own_parts(state: NodeRound, study: Study) -> Iterable[Effect]:
    current, wanted = study.open, list[Effect]()
    if current is None:
        return wanted
    for part, dealt in enumerate(current.parts):
        if dealt.leader != state.me or dealt.digest:
            continue
        merged = state.merged.get((current.number, current.attempt, part))
        if merged is None:
            wanted.append(Lead(current.number, current.attempt, part))
        else:
            at = (state.study, current.number, current.attempt, part)
            wanted.append(Submit(Publish(*at, merged.digest, merged.gram)))
    return wanted


def _put_scores_on_record(state: NodeRound, study: Study) -> Iterable[Effect]:
    if not state.scores:
        return ()
    return [Submit(score) for score in state.scores if score.round <= len(study.history)]


def _finish(state: NodeRound, study: Study) -> Iterable[Effect]:
    if state.finish is None or state.scores:
        return ()
    participant = study.participants.get(state.me)
    if participant is None or participant.finished is not None:
        return ()
    return (Submit(Finish(state.study, state.finish)),)


def _say_that_training_goes_on(state: NodeRound, study: Study) -> Iterable[Effect]:
    current = study.open
    if current is None:
        return ()
    # One at a time: progress that moves on must not pile calls up before a slow ledger.
    for said in (*state.doing, *state.retries):
        if isinstance(said, Submit) and isinstance(said.call, Alive) and said.call.round == current.number:
            return (said,)
    progress = 0.0 if state.waiting else round(state.progress, 2)
    return (Submit(Alive(state.study, current.number, progress)),)


def _alive_due_s(state: NodeRound, study: Study) -> float | None:
    """When this node must next say that its training goes on, or is about to; None if nobody waits for it."""
    current = study.open
    if current is None or current.phase != "collecting" or state.me in current.commits:
        return None
    until_s = current.expected.get(state.me)
    if until_s is None or not state.attached or (state.waiting and not _model_is_on_its_way(state, study)):
        return None
    if until_s >= patient_until_s(study, current):
        return None
    return until_s - study.settings.silence_s / 2


def _model_is_on_its_way(state: NodeRound, study: Study) -> bool:
    """Whether the model that training is to start from is being fetched: over a slow line that takes long."""
    fetch = Fetch(len(study.history), study.accepted)
    failures = state.retries[fetch].failures if fetch in state.retries else 0
    return study.accepted not in state.held and failures < FAILED_OFTEN


def _tick(state: NodeRound, _study: Study) -> Iterable[Effect]:
    return (Submit(Tick(state.study)),)


def _tick_due_s(state: NodeRound, study: Study) -> float | None:
    current = study.open
    if current is None or state.me not in study.participants:
        return None
    due_s = current.deadline_s
    if current.dispute is not None:
        due_s = min(due_s, current.dispute.closes_s)
    before = [name for name in study.participants if name < state.me]
    return due_s + len(before) * TICK_STAGGER_S


Goal = Callable[[NodeRound, Study], Iterable[Effect]]


class Timed(NamedTuple):
    """A goal that waits for its moment. ``due_s``: when that is, ledger time; None if it never comes."""

    due_s: Callable[[NodeRound, Study], float | None]
    goal: Goal


_BEFORE: tuple[Goal, ...] = (
    _offer_the_initial_parameters,
    _hold_the_accepted_model,
    _have_the_outer_state,
    _deliver_it,
    _be_present,
    _put_scores_on_record,
    _finish,
)
_COLLECTING: tuple[Goal, ...] = (
    _hold_the_accepted_model,
    _have_the_outer_state,
    _deliver_it,
    _be_present,
    _commit_the_update,
    _put_scores_on_record,
    _finish,
)
_MERGING: tuple[Goal, ...] = (
    settle_disputes,
    _hold_the_accepted_model,
    _accept_the_merge,
    _have_the_outer_state,
    _deliver_it,
    _be_present,
    _lead_own_parts,
    report_the_unreachable,
    see_for_oneself,
    _put_scores_on_record,
    _finish,
)
_AFTER: tuple[Goal, ...] = (
    _hold_the_accepted_model,
    _have_the_outer_state,
    _deliver_it,
    _put_scores_on_record,
)
_OF_TROUBLE = {settle_disputes, report_the_unreachable, see_for_oneself}
_OF_THE_OUTER_STATE = {_have_the_outer_state}
_OF_TRAINING = {_put_scores_on_record, _finish}


def of_phase(study: Study) -> tuple[Goal, ...]:
    """All that a node may want in the study's present phase, in the order in which it begins."""
    return _of(study.phase if study.open is None else study.open.phase)


Phase = StudyPhase | RoundPhase


def _of(phase: Phase) -> tuple[Goal, ...]:
    if phase in {"collecting", "merging"}:
        return _COLLECTING if phase == "collecting" else _MERGING
    return _BEFORE if phase == "proposed" else _AFTER


def goals(state: NodeRound, study: Study) -> tuple[Goal, ...]:
    """The goals of the phase without those that cannot want anything: most rounds go well."""
    current = study.open
    phase = study.phase if current is None else current.phase
    troubled = current is not None and is_troubled(state, current)
    has_said = bool(state.scores) or state.finish is not None
    return _GOALS[phase][4 * troubled + 2 * (study.settings.outer is not None) + has_said]


def _those(phase: Phase, troubled: bool, has_outer: bool, has_said: bool) -> tuple[Goal, ...]:
    left_out: set[Goal] = set()
    left_out |= set() if troubled else _OF_TROUBLE
    left_out |= set() if has_outer else _OF_THE_OUTER_STATE
    left_out |= set() if has_said else _OF_TRAINING
    return tuple(goal for goal in _of(phase) if goal not in left_out)


_GOALS: dict[Phase, list[tuple[Goal, ...]]] = {
    phase: [_those(phase, bool(n & 4), bool(n & 2), bool(n & 1)) for n in range(8)]
    for phase in ("proposed", "running", "collecting", "merging", "finished", "failed")
}
"""Chosen once: a node looks at its goals after everything that happens."""


_WHILE_COLLECTING = (Timed(_alive_due_s, _say_that_training_goes_on), Timed(_tick_due_s, _tick))
_WHILE_MERGING = (Timed(_tick_due_s, _tick),)


def timed(study: Study) -> tuple[Timed, ...]:
    """What a node may want once its moment has come, without any event."""
    if study.open is None:
        return ()
    return _WHILE_COLLECTING if study.open.phase == "collecting" else _WHILE_MERGING
