"""What goes wrong in a universe, in sentences that a person can follow."""

from __future__ import annotations

from konsil.simulation.faults import (
    Crash,
    Cut,
    DialsOut,
    DiskFull,
    Finishes,
    Late,
    LedgerHalt,
    Liar,
    Partition,
    Shared,
    Skew,
    TrainingDies,
)


def sentence(fault: Shared, beyond: str) -> str:  # noqa: PLR0911, C901 - one line a fault
    """A fault in words. ``beyond``: what a partition takes away in this world."""
    match fault:
        case Crash(member=member, at_s=at_s, back_s=back_s, loss=loss):
            ends = "is killed" if loss == "killed" else "dies"
            return f"{member}'s node {ends} at {at_s:.1f} s{back(back_s)}."
        case TrainingDies(member=member, at_s=at_s, back_s=back_s):
            return f"{member}'s training process dies at {at_s:.1f} s{back(back_s)}."
        case Finishes(member=member, rounds=rounds, contribution=contribution, at_s=at_s):
            done = (
                f"{rounds} round{'s' * (rounds > 1)}" if rounds else f"the round that is open at {at_s:.1f} s"
            )
            return f"{member}'s training has finished after {done}; it stays {contribution}."
        case Late(member=member, at_s=at_s):
            return f"{member} comes at {at_s:.1f} s only."
        case Skew(member=member, ahead_s=ahead_s):
            return f"{member}'s clock is {abs(ahead_s):g} s {'ahead' if ahead_s > 0 else 'behind'}."
        case DialsOut(member=member):
            return f"{member} can only dial out."
        case Partition(members=members, at_s=at_s, until_s=until_s, silent=silent):
            untold = " and nobody is told" * silent
            return f"{', '.join(members)}: cut off from {beyond}{untold}, {span(at_s, until_s)}."
        case Cut(source=source, target=target, at_s=at_s, until_s=until_s, both_ways=True):
            return f"The line of {source} and {target} is cut, {span(at_s, until_s)}."
        case Cut(source=source, target=target, at_s=at_s, until_s=until_s):
            return f"Nothing gets from {source} to {target}, {span(at_s, until_s)}."
        case DiskFull(member=member, at_s=at_s, until_s=until_s, broken=broken):
            return f"{member}'s disk {'fails' if broken else 'is full'}, {span(at_s, until_s)}."
        case LedgerHalt(members=members, at_s=at_s, until_s=until_s):
            return f"The ledger halts for {', '.join(members) or 'all'}, {span(at_s, until_s)}."
        case Liar(member=member, lie=lie):
            return f"{member} is a liar that {lie}."


def back(back_s: float) -> str:
    """When something that has gone is there again."""
    return f" and is back at {back_s:.1f} s" if back_s else " for good"


def span(at_s: float, until_s: float) -> str:
    """From when to when."""
    return f"from {at_s:.1f} s to {until_s:.1f} s"


Passing = Partition | Cut | DiskFull | LedgerHalt


def begins(fault: Passing, beyond: str) -> str:
    """That a fault which passes has begun. ``beyond``: as above."""
    match fault:
        case Partition(members=members, silent=silent):
            return f"{', '.join(members)}: now cut off from {beyond}{' and nobody is told' * silent}"
        case Cut(source=source, target=target, both_ways=True):
            return f"the line of {source} and {target} is cut"
        case Cut(source=source, target=target):
            return f"nothing gets from {source} to {target} any more"
        case DiskFull(member=member, broken=broken):
            return f"{member}'s disk {'fails' if broken else 'is full'}"
        case LedgerHalt(members=members):
            return f"the ledger halts for {', '.join(members) or 'all'}"


def ends(fault: Passing) -> str:
    """That it has passed."""
    match fault:
        case Partition(members=members):
            return f"{', '.join(members)}: together with the others again"
        case Cut(source=source, target=target, both_ways=True):
            return f"the line of {source} and {target} is whole again"
        case Cut(source=source, target=target):
            return f"messages get from {source} to {target} again"
        case DiskFull(member=member, broken=broken):
            return f"{member}'s disk {'works' if broken else 'has room'} again"
        case LedgerHalt(members=members):
            return f"the ledger goes on for {', '.join(members) or 'all'}"
