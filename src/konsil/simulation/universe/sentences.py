"""A plan in sentences that a person can follow."""

from __future__ import annotations

from collections.abc import Iterator

from konsil.simulation.universe.plan import (
    AnyFault,
    Crash,
    Cut,
    DialsOut,
    DiskFull,
    Finishes,
    Late,
    LedgerHalt,
    Liar,
    Partition,
    Plan,
    Skew,
    Slow,
    TrainingDies,
)


def sentences(plan: Plan) -> Iterator[str]:
    """What a universe holds, then what goes wrong in it."""
    beginning = "in round 1, with everybody there" if plan.running else "with a study that all agreed to"
    rounds = f"{plan.rounds} round{'s' * (plan.rounds > 1)}"
    yield (
        f"Universe {plan.seed}: {', '.join(plan.names)} learn for {rounds} with a quorum of {plan.quorum}; "
        f"it begins {beginning}."
    )
    one = "one member leads each merge" if plan.parts == "leader" else "all lead parts"
    yield f"The model has {plan.chunks} chunk{'s' * (plan.chunks > 1)}; rule {plan.rule}; {one}."
    weather = plan.weather
    yield (
        f"Messages take up to {weather.delay_s:g} s, {weather.loss:.0%} are lost, {weather.again:.0%} come "
        f"twice; news of the ledger takes up to {weather.lag_s:g} s."
    )
    for fault in plan.faults:
        yield f"  {_sentence(fault)}"
    if not plan.faults:
        yield "  Nothing else goes wrong."


def _sentence(fault: AnyFault) -> str:  # noqa: PLR0911, C901 - one line a fault
    match fault:
        case Crash(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s node dies at {at_s:.1f} s{_back(back_s)}."
        case TrainingDies(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s training process dies at {at_s:.1f} s{_back(back_s)}."
        case Finishes(member=member, rounds=rounds, contribution=contribution):
            return f"{member}'s training has enough after {rounds}, and stays {contribution}."
        case Late(member=member, at_s=at_s):
            return f"{member}'s training comes at {at_s:.1f} s only."
        case Slow(member=member, times=times):
            return f"{member} trains {times:g} times longer than the others."
        case Skew(member=member, ahead_s=ahead_s):
            return f"{member}'s clock is {abs(ahead_s):g} s {'ahead' if ahead_s > 0 else 'behind'}."
        case DialsOut(member=member):
            return f"{member} can only dial out."
        case Partition(members=members, at_s=at_s, until_s=until_s):
            return f"{', '.join(members)}: cut off from the others and the ledger, {_span(at_s, until_s)}."
        case Cut(source=source, target=target, at_s=at_s, until_s=until_s):
            return f"Nothing gets from {source} to {target}, {_span(at_s, until_s)}."
        case DiskFull(member=member, at_s=at_s, until_s=until_s):
            return f"{member}'s disk is full, {_span(at_s, until_s)}."
        case LedgerHalt(members=members, at_s=at_s, until_s=until_s):
            return f"The ledger halts for {', '.join(members) or 'all'}, {_span(at_s, until_s)}."
        case Liar(member=member, lie=lie):
            return f"{member} is a liar that {lie}."


def _back(back_s: float) -> str:
    return f" and is back at {back_s:.1f} s" if back_s else " for good"


def _span(at_s: float, until_s: float) -> str:
    return f"from {at_s:.1f} s to {until_s:.1f} s"
