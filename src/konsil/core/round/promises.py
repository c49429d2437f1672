"""What a node writes down before it says so: a call binds it, and it may die right after."""

from __future__ import annotations

from konsil.core.round.knowledge import Farewell, NodeRound, Promise
from konsil.core.rules.calls import Accept, Call, Commit, Contribution, Initialise, Publish
from konsil.core.rules.state import Study


def farewell_of(state: NodeRound, contribution: Contribution) -> Farewell:
    """What is written down when a training process has finished."""
    return Farewell(contribution, state.update if contribution == "snapshot" else None)


def promise_of(call: Call) -> Promise | None:
    """What goes into the journal before the ledger hears of a call; None for a call that binds nobody.

    A commit is none: the contract takes one of a member for a roster, and a promise that it never heard of
    would keep the member out for nothing.
    """
    if isinstance(call, Publish):
        return Promise(call.study, call.round, _of_part(call.attempt, call.part), call.digest)
    return None


def may_have_promised(me: str, study: Study) -> tuple[Promise, ...]:
    """What a node whose journal is gone may have promised: the parts that it leads now and nobody has seen.

    What was promised in an attempt that is over nobody asks for again, and what is published stands on the
    ledger.
    """
    current = study.open
    if current is None:
        return ()
    return tuple(
        Promise(study.settings.name, current.number, _of_part(current.attempt, part), "")
        for part, dealt in enumerate(current.parts)
        if dealt.leader == me and not dealt.digest
    )


def _of_part(attempt: int, part: int) -> str:
    return f"publish {attempt} {part}"


def durable_before(call: Call) -> tuple[str, ...]:
    """The models that must be on this node's disk before the ledger hears of a call.

    Who accepts a merge, or gives the initial parameters, says that it holds them, whatever happens to it.
    Who commits goes on from the accepted merge: were it lost, the next round could lose it for all.
    """
    match call:
        case Initialise(digest=digest) | Accept(digest=digest):
            return (digest,)
        case Commit(base=base):
            return (base,)
        case _:
            return ()
