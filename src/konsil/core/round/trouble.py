"""What a node wants where a round that merges goes wrong: to report, to look for itself, to dispute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from konsil.core.round.contributing import can_give, has_lost_its_update
from konsil.core.round.events import Effect, Probe, Recompute, Submit
from konsil.core.round.knowledge import NodeRound
from konsil.core.rules.calls import Dispute, Report, Verdict
from konsil.core.rules.state import OpenRound, Study


def is_troubled(state: NodeRound, current: OpenRound) -> bool:
    """Whether there is anything to report, to look at or to dispute in a round that merges."""
    if current.phase == "collecting":
        return False
    if current.dispute or current.reports or state.suspects or state.unreachable[1]:
        return True
    mine = current.commits.get(state.me)
    return mine is not None and not can_give(state, mine.digest)


def report_the_unreachable(state: NodeRound, study: Study) -> Iterable[Effect]:
    """Say whose update cannot be had here; that its own is gone, a member says of itself."""
    current = study.open
    if current is None or state.me not in current.roster:
        return ()
    names = set(state.unreachable[1]) if state.unreachable[0] == current.number else set()
    if has_lost_its_update(state, current, missed=state.me in names):
        names.add(state.me)
    else:
        names.discard(state.me)
    named = tuple(sorted(names & set(current.roster)))
    if named and set(named) - set(current.reports.get(state.me, ())):
        return (Submit(Report(state.study, current.number, current.attempt, named)),)
    return ()


def see_for_oneself(state: NodeRound, study: Study) -> Iterator[Effect]:
    """Only a majority's report counts: where one member reports another, each looks."""
    current = study.open
    if current is None or not current.reports or state.me not in current.roster:
        return
    known = set(current.reports.get(state.me, ()))
    if can_give(state, current.commits[state.me].digest):
        known.add(state.me)
    if state.unreachable[0] == current.number:
        known |= state.unreachable[1]
    reported = {name for names in current.reports.values() for name in names}
    for name in sorted(reported & set(current.roster) - known):
        probe = Probe(current.number, current.attempt, name)
        if probe not in state.probed:
            yield probe


def settle_disputes(state: NodeRound, study: Study) -> Iterator[Effect]:
    """Dispute what an audit found wrong, and recompute what others dispute."""
    current = study.open
    if current is None or state.me not in current.roster:
        return
    dispute = current.dispute
    if dispute is None:
        had_its_say = any(d.by == state.me and d.attempt == current.attempt for d in current.disputes)
        for suspect in state.suspects[: 0 if had_its_say else 1]:
            yield Submit(Dispute(state.study, suspect.round, suspect.attempt, suspect.part, suspect.chunk))
        return
    if state.me in dispute.verdicts:
        return
    at = Recompute(current.number, current.attempt, dispute.part, dispute.chunk)
    if at in state.findings:
        wrong = state.findings[at]
        yield Submit(Verdict(state.study, at.round, at.attempt, at.part, at.chunk, wrong))
    else:
        yield at
