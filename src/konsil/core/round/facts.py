"""The first table of the round machine: each event and how it changes what a node knows."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from konsil.core.round.events import (
    Advanced,
    Attached,
    Deliver,
    Detached,
    Done,
    Effect,
    Event,
    Failed,
    Fetch,
    FinishWanted,
    Found,
    Held,
    Lead,
    Looked,
    Offered,
    PartMerged,
    Probe,
    ProgressMade,
    Recompute,
    ScoreReady,
    Submit,
    Suspected,
    UpdateReady,
)
from konsil.core.round.knowledge import NEVER_FAILED, NodeRound, Retry
from konsil.core.rules.calls import Commit, Leave, Score

RETRY_FIRST_S = 0.5
"""A failed effect is tried again after this; each further failure doubles it."""

RETRY_LAST_S = 15.0
"""... up to this, so that a peer that comes back after hours is noticed within seconds."""


def _looked(state: NodeRound, _event: Looked, _now_s: float) -> NodeRound:
    return state


def _attached(state: NodeRound, event: Attached, _now_s: float) -> NodeRound:
    return replace(
        state,
        attached=True,
        greeted=False,
        waiting=True,
        delivered=event.holds,
        trains_from="",
        leaving=False,
        finish=None,
        progress=0.0,
    )


def _offered(state: NodeRound, event: Offered, _now_s: float) -> NodeRound:
    return replace(state, offered=event, held=state.held | {event.digest})


def _detached(state: NodeRound, event: Detached, _now_s: float) -> NodeRound:
    return replace(state, attached=False, waiting=False, leaving=event.goodbye)


def _update_ready(state: NodeRound, event: UpdateReady, _now_s: float) -> NodeRound:
    first = state.update
    if (
        first is not None
        and (first.round, first.base) == (event.round, event.base)
        and _is_said(state, first)
    ):
        event = first  # training died and made another one: this node still has what the ledger heard of
    return replace(state, update=event, waiting=True, progress=1.0)


def _is_said(state: NodeRound, update: UpdateReady) -> bool:
    """Whether the ledger may have heard of an update, or is about to."""
    calls = (effect.call for effect in state.doing if isinstance(effect, Submit))
    under_way = any(isinstance(call, Commit) and call.digest == update.digest for call in calls)
    return under_way or state.said == update.digest


def _progress_made(state: NodeRound, event: ProgressMade, _now_s: float) -> NodeRound:
    return replace(state, progress=event.progress)


def _finish_wanted(state: NodeRound, event: FinishWanted, _now_s: float) -> NodeRound:
    return replace(state, finish=event.contribution)


def _score_ready(state: NodeRound, event: ScoreReady, _now_s: float) -> NodeRound:
    return replace(state, scores=(*state.scores, event.score))


def _held(state: NodeRound, event: Held, _now_s: float) -> NodeRound:
    return replace(state, held=state.held | {event.digest})


def _advanced(state: NodeRound, event: Advanced, _now_s: float) -> NodeRound:
    return replace(state, outer=event)


def _part_merged(state: NodeRound, event: PartMerged, _now_s: float) -> NodeRound:
    return replace(state, merged=state.merged | {(event.round, event.attempt, event.part): event})


def _suspected(state: NodeRound, event: Suspected, _now_s: float) -> NodeRound:
    return replace(state, suspects=(*state.suspects, event))


def _found(state: NodeRound, event: Found, _now_s: float) -> NodeRound:
    return replace(state, findings=state.findings | {event.at: event.wrong})


def _done(state: NodeRound, event: Done, _now_s: float) -> NodeRound:
    match event.effect:
        case Deliver(digest=digest, start=start):
            state = replace(
                state, delivered=digest, trains_from=start, greeted=True, waiting=False, progress=0.0
            )
        case Fetch(round=number, attempt=attempt, digest=digest) if attempt:
            state = replace(state, completed=(number, attempt, digest))
        case Probe() as probe:
            state = replace(state, probed=state.probed | {probe})
        case Submit(call=Score() as score):
            state = replace(state, scores=tuple(other for other in state.scores if other != score))
        case Submit(call=Leave()):
            state = replace(state, leaving=False)
    retries = state.retries
    if event.effect in retries:
        retries = {effect: retry for effect, retry in retries.items() if effect != event.effect}
    return replace(state, doing=_without(state.doing, event.effect), retries=retries)


def _failed(state: NodeRound, event: Failed, now_s: float) -> NodeRound:
    failures = state.retries.get(event.effect, NEVER_FAILED).failures + 1
    wait_s = min(RETRY_LAST_S, RETRY_FIRST_S * 2 ** min(failures - 1, 10))
    if event.wait_s is not None:
        wait_s = event.wait_s
    retries = state.retries | {event.effect: Retry(now_s + wait_s, failures)}
    if isinstance(event.effect, Submit) and isinstance(event.effect.call, Commit):
        state = replace(state, said="" if event.refused else event.effect.call.digest)
    if event.unreachable and isinstance(event.effect, Lead | Fetch | Probe | Recompute):
        known = state.unreachable[1] if state.unreachable[0] == event.effect.round else frozenset()
        state = replace(state, unreachable=(event.effect.round, known | set(event.unreachable)))
    return replace(state, doing=_without(state.doing, event.effect), retries=retries)


def _without(doing: tuple[Effect, ...], over: Effect) -> tuple[Effect, ...]:
    return tuple([effect for effect in doing if effect != over])


FACTS: dict[type[Event], Any] = {
    Looked: _looked,
    Attached: _attached,
    Offered: _offered,
    Detached: _detached,
    UpdateReady: _update_ready,
    ProgressMade: _progress_made,
    FinishWanted: _finish_wanted,
    ScoreReady: _score_ready,
    Held: _held,
    Advanced: _advanced,
    PartMerged: _part_merged,
    Suspected: _suspected,
    Found: _found,
    Done: _done,
    Failed: _failed,
}
"""Each handler takes the one event that stands beside it; the type system cannot say so."""
