"""A plan in sentences that a person can follow."""

from __future__ import annotations

from collections.abc import Iterator

from konsil.simulation.faults import LedgerHalt
from konsil.simulation.nodes.plan import AnyFault, Plan, SaysGoodbye, SlowLine
from konsil.simulation.sentences import back, sentence

BEYOND = "the others"
"""What a partition takes away."""


def sentences(plan: Plan) -> Iterator[str]:
    """What a universe holds, then what goes wrong in it."""
    settings, rounds = plan.settings, plan.settings.rounds
    yield (
        f"Universe {plan.seed} of real nodes: {', '.join(plan.members)} learn for {rounds} "
        f"round{'s' * (rounds > 1)} with a quorum of {settings.quorum}; {settings.min_members} begin."
    )
    one = "one member leads each merge" if settings.parts == "leader" else "all lead parts"
    outer = f" and {settings.outer.method} over rounds" if settings.outer is not None else ""
    yield f"Rule {settings.rule}{outer}, weights {settings.weighting}; {one}."
    takes = ", ".join(f"{name} {takes_s:.1f} s" for name, takes_s in plan.trains_s.items())
    yield f"A round's training takes {takes}."
    twice = f", {plan.repeated:.0%} come twice" if plan.repeated else ""
    ledger = f"{plan.members[0]}'s node keeps the ledger"
    if not plan.engine:
        lost = f", {plan.lost_calls:.0%} are lost" if plan.lost_calls else ""
        ledger = f"calls take about {plan.ledger_delay_s:g} s to a ledger that all share{lost}"
    yield f"Messages take about {plan.delay_s:g} s{twice}; {ledger}."
    for fault in plan.faults:
        yield f"  {_sentence(fault, plan)}"
    if not plan.faults:
        yield "  Nothing else goes wrong."
    yield "(Round 1.2 is the second attempt of round 1.)"


def _sentence(fault: AnyFault, plan: Plan) -> str:
    match fault:
        case LedgerHalt() if plan.engine:
            return f"The ledger does not halt: {plan.members[0]}'s node keeps it."
        case SaysGoodbye(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s training says goodbye after {at_s:.1f} s{back(back_s)}."
        case SlowLine(member=member, times=times):
            return f"Everything to and from {member} takes {times:g} times longer."
        case _:
            return sentence(fault, BEYOND)
