"""A plan in sentences that a person can follow."""

from __future__ import annotations

from collections.abc import Iterator

from konsil.simulation.sentences import sentence
from konsil.simulation.universe.plan import AnyFault, Plan, Slow

BEYOND = "the others and the ledger"
"""What a partition takes away."""


def sentences(plan: Plan) -> Iterator[str]:
    """What a universe holds, then what goes wrong in it."""
    beginning = "in round 1, with everybody there" if plan.running else "with a study that all agreed to"
    rounds = f"{plan.hours:g} hours" if plan.hours else f"{plan.rounds} round{'s' * (plan.rounds > 1)}"
    yield (
        f"Universe {plan.seed}: {', '.join(plan.names)} learn for {rounds} with a quorum of {plan.quorum}; "
        f"it begins {beginning}."
    )
    one = "one member leads each merge" if plan.parts == "leader" else "all lead parts"
    yield f"The model has {plan.chunks} chunk{'s' * (plan.chunks > 1)}; rule {plan.rule}; {one}."
    weather = plan.weather
    lost = f", {weather.loss:.0%} are lost" if weather.loss else ""
    twice = f", {weather.again:.0%} come twice" if weather.again else ""
    yield (
        f"Messages take up to {weather.delay_s:g} s{lost}{twice}; news of the ledger takes up to "
        f"{weather.lag_s:g} s."
    )
    for fault in plan.faults:
        yield f"  {_sentence(fault)}"
    if not plan.faults:
        yield "  Nothing else goes wrong."
    yield "(Round 1.2 is the second attempt of round 1.)"


def _sentence(fault: AnyFault) -> str:
    if isinstance(fault, Slow):
        return f"{fault.member} trains {fault.times:g} times longer than the others."
    return sentence(fault, BEYOND)
