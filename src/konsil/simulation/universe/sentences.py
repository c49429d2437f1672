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


def _sentence(fault: AnyFault) -> str:  # noqa: PLR0911, C901 - one line a fault
    match fault:
        case Crash(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s node dies at {at_s:.1f} s{_back(back_s)}."
        case TrainingDies(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s training process dies at {at_s:.1f} s{_back(back_s)}."
        case Finishes(member=member, rounds=rounds, contribution=contribution):
            done = f"{rounds} round{'s' * (rounds > 1)}"
            return f"{member}'s training has finished after {done}; it stays {contribution}."
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


Passing = Partition | Cut | DiskFull | LedgerHalt


def begins(fault: Passing) -> str:
    """That a fault which passes has begun."""
    match fault:
        case Partition(members=members):
            return f"{', '.join(members)}: now cut off from the others and the ledger"
        case Cut(source=source, target=target):
            return f"nothing gets from {source} to {target} any more"
        case DiskFull(member=member):
            return f"{member}'s disk is full"
        case LedgerHalt(members=members):
            return f"the ledger halts for {', '.join(members) or 'all'}"


def ends(fault: Passing) -> str:
    """That it has passed."""
    match fault:
        case Partition(members=members):
            return f"{', '.join(members)}: together with the others again"
        case Cut(source=source, target=target):
            return f"messages get from {source} to {target} again"
        case DiskFull(member=member):
            return f"{member}'s disk has room again"
        case LedgerHalt(members=members):
            return f"the ledger goes on for {', '.join(members) or 'all'}"


def _back(back_s: float) -> str:
    return f" and is back at {back_s:.1f} s" if back_s else " for good"


def _span(at_s: float, until_s: float) -> str:
    return f"from {at_s:.1f} s to {until_s:.1f} s"
