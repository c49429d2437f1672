"""One step of the round machine: record the fact, then want what the goals say."""

from __future__ import annotations

import math
from typing import Any

from msgspec.structs import replace

from konsil.core.round.events import Advance, Cancel, Effect, Event, Fetch, Lead, Probe, Recompute
from konsil.core.round.facts import FACTS
from konsil.core.round.goals import goals, timed
from konsil.core.round.knowledge import NEVER_FAILED, NOBODY_MISSED, NodeRound
from konsil.core.rules.state import Study

CANCELLED = (Lead, Fetch, Recompute, Probe, Advance)
"""Effects that end when they are no longer wanted; what goes to the ledger or to training is on its way."""


Step = tuple[NodeRound, tuple[Effect, ...], float]
"""A machine's answer: the new state, what to do now, and when to look again (unix time)."""


def step(state: NodeRound, event: Event, study: Study, now_s: float) -> Step:
    """Record what happened, then want what the goals say.

    Args:
        state: what this node knows.
        event: what happened.
        study: the study as it stands on the ledger now.
        now_s: unix time on this node's clock.
    """
    recorded: NodeRound = FACTS[type(event)](state, event, now_s)
    state = _forget_what_is_over(_knowing_what_is_on_record(recorded, study), study)
    wanted, wake_s = _want(state, study, now_s)
    doing, retries = state.doing, state.retries
    if not (wanted or doing or retries):
        return state, (), wake_s
    given_up = [effect for effect in doing if effect not in wanted and isinstance(effect, CANCELLED)]
    if given_up:
        doing = tuple(effect for effect in doing if effect not in given_up)
    starts = [effect for effect in wanted if effect not in doing]
    if retries:
        retries = {effect: retry for effect, retry in retries.items() if effect in wanted}
        starts = [effect for effect in starts if retries.get(effect, NEVER_FAILED).at_s <= now_s]
    if starts or given_up or len(retries) < len(state.retries):
        state = replace(state, doing=(*doing, *starts), retries=retries)
    for effect, retry in retries.items():
        if now_s < retry.at_s < wake_s and effect not in state.doing:
            wake_s = retry.at_s
    return state, (*map(Cancel, given_up), *starts), wake_s


def _want(state: NodeRound, study: Study, now_s: float) -> tuple[list[Effect], float]:
    """What the goals ask for now, and the next moment at which one may want something new; inf if none."""
    wanted: list[Effect] = []
    for goal in goals(state, study):
        wanted += goal(state, study)
    wake_s = math.inf
    for due, goal in timed(study):
        due_s = due(state, study)
        if due_s is None:
            continue
        if due_s <= now_s:
            wanted += goal(state, study)
        elif due_s < wake_s:
            wake_s = due_s
    return list(dict.fromkeys(wanted)) if len(wanted) > 1 else wanted, wake_s


def _knowing_what_is_on_record(state: NodeRound, study: Study) -> NodeRound:
    """Note that the update which training handed over stands on the ledger, perhaps since an earlier life."""
    if state.update is None or study.open is None or state.said == state.update.digest:
        return state
    mine = study.open.commits.get(state.me)
    return replace(state, said=mine.digest) if mine and mine.digest == state.update.digest else state


def _forget_what_is_over(state: NodeRound, study: Study) -> NodeRound:
    """Drop what belongs to attempts that are past."""
    current = study.open
    at = (current.number, current.attempt) if current is not None else (0, 0)
    over: dict[str, Any] = {}
    # Where a round collects again, who comes back is looked at anew: else it would be reported for ever.
    if state.unreachable[0] and (current is None or current.phase != "merging"):
        over["unreachable"] = NOBODY_MISSED
    held = _still_held(state, study)
    if len(held) < len(state.held):
        over["held"] = held
    if state.outer is not None and state.outer.digest != study.accepted:
        over["outer"] = None
    if state.merged and any(key[:2] != at for key in state.merged):
        over["merged"] = {key: part for key, part in state.merged.items() if key[:2] == at}
    if state.suspects:
        settled = {(d.attempt, d.part, d.chunk) for d in current.disputes} if current is not None else set()
        over["suspects"] = tuple(
            suspect
            for suspect in state.suspects
            if (suspect.round, suspect.attempt) == at
            and (suspect.attempt, suspect.part, suspect.chunk) not in settled
        )
    if state.probed:
        over["probed"] = frozenset(probe for probe in state.probed if (probe.round, probe.attempt) == at)
    if state.findings:
        over["findings"] = {
            key: wrong for key, wrong in state.findings.items() if (key.round, key.attempt) == at
        }
    return replace(state, **over) if over else state


def _still_held(state: NodeRound, study: Study) -> frozenset[str]:
    """The models that count as had: the accepted one, the open round's merge, what was offered."""
    current = study.open
    accepted, merge = (study.accepted, "") if current is None else (current.base, current.digest)
    offered = state.offered.digest if study.phase == "proposed" and state.offered is not None else ""
    wanted = (accepted, merge, offered)
    for digest in state.held:
        if digest not in wanted:
            return state.held.intersection(wanted)
    return state.held


def stage(state: NodeRound, study: Study) -> str:
    """What this node is doing, in one or two words, for people."""
    if study.phase in {"finished", "failed"}:
        return study.phase
    if any(isinstance(effect, Lead) for effect in state.doing):
        return "merging"
    if any(isinstance(effect, Fetch) for effect in state.doing):
        return "fetching"
    if not state.attached:
        return "no training"
    if study.open is None:
        return "waiting to start"
    if state.me in study.open.commits:
        return "committed"
    return "waiting" if state.waiting else "training"
