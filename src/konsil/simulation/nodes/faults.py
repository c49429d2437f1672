"""Carries a plan's faults out, each at its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from konsil.simulation.faults import Crash, Cut, DiskFull, Finishes, LedgerHalt, Partition, TrainingDies
from konsil.simulation.nodes.disk import BROKEN, FULL
from konsil.simulation.nodes.plan import AnyFault, SaysGoodbye
from konsil.simulation.nodes.sentences import BEYOND
from konsil.simulation.sentences import begins, ends

if TYPE_CHECKING:
    from konsil.simulation.nodes.world import World

Change = Callable[[], None]


def arrange(world: World) -> None:
    """Set a timer for the beginning and the end of every fault. At one moment they come as in the plan."""
    moments: dict[float, list[Change]] = {}
    for fault in world.plan.faults:
        for when_s, change in _changes(world, fault):
            moments.setdefault(when_s, []).append(change)
    for when_s, changes in moments.items():
        world.loop.call_at(when_s, _all, changes)


def _all(changes: list[Change]) -> None:
    for change in changes:
        change()


def _changes(world: World, fault: AnyFault) -> Iterator[tuple[float, Change]]:
    match fault:
        case Crash():
            yield from _from_to(
                fault.at_s, fault.back_s, partial(_down, world, fault), partial(_back, world, fault)
            )
        case Partition():
            yield fault.at_s, partial(_part, world, fault)
            yield fault.until_s, partial(_join, world, fault)
        case Cut():
            yield fault.at_s, partial(_cut, world, fault)
            yield fault.until_s, partial(_mend, world, fault)
        case DiskFull():
            yield fault.at_s, partial(_fill, world, fault)
            yield fault.until_s, partial(_empty, world, fault)
        case LedgerHalt():
            yield fault.at_s, partial(_halt, world, fault)
            yield fault.until_s, partial(_release, world, fault)
        case TrainingDies() | SaysGoodbye():
            start = world.scripts[fault.member].start
            yield from _from_to(fault.at_s, fault.back_s, partial(_end, world, fault), start)
        case Finishes():
            yield fault.at_s, partial(world.scripts[fault.member].finish, fault.contribution)
        case _:  # the others hold from the beginning
            return


def _from_to(at_s: float, back_s: float, begin: Change, end: Change) -> Iterator[tuple[float, Change]]:
    """What may last for ever."""
    yield at_s, begin
    if back_s:
        yield back_s, end


def _down(world: World, fault: Crash) -> None:
    world.down[fault.member] += 1
    world.crash(fault.member, fault.loss)


def _back(world: World, fault: Crash) -> None:
    world.down[fault.member] -= 1
    world.start(fault.member)


def _part(world: World, fault: Partition) -> None:
    world.say(begins(fault, BEYOND))
    for one, other in _apart(world, fault):
        if fault.silent:
            world.network.swallow(one, other)
            world.network.swallow(other, one)
        else:
            world.network.cut(one, other)


def _join(world: World, fault: Partition) -> None:
    world.say(ends(fault))
    for one, other in _apart(world, fault):
        if fault.silent:
            world.network.release(one, other)
            world.network.release(other, one)
        else:
            world.network.mend(one, other)


def _apart(world: World, fault: Partition) -> Iterator[tuple[str, str]]:
    for one in fault.members:
        for other in world.plan.members:
            if other not in fault.members:
                yield one, other


def _cut(world: World, fault: Cut) -> None:
    world.say(begins(fault, BEYOND))
    if fault.both_ways:
        world.network.cut(fault.source, fault.target)
    else:
        world.network.swallow(fault.source, fault.target)


def _mend(world: World, fault: Cut) -> None:
    world.say(ends(fault))
    if fault.both_ways:
        world.network.mend(fault.source, fault.target)
    else:
        world.network.release(fault.source, fault.target)


def _fill(world: World, fault: DiskFull) -> None:
    world.say(begins(fault, BEYOND))
    world.disks[fault.member].refuses = BROKEN if fault.broken else FULL


def _empty(world: World, fault: DiskFull) -> None:
    world.say(ends(fault))
    world.disks[fault.member].refuses = 0
    if fault.broken:  # a journal that a disk has failed is not trusted before a new start: people do that
        world.crash(fault.member, "killed")
        world.start(fault.member)


def _halt(world: World, fault: LedgerHalt) -> None:
    if world.contract is not None:
        world.say(begins(fault, BEYOND))
        for name in _halted(world, fault):
            world.contract.halt(name)


def _release(world: World, fault: LedgerHalt) -> None:
    if world.contract is not None:
        world.say(ends(fault))
        for name in _halted(world, fault):
            world.contract.release(name)


def _halted(world: World, fault: LedgerHalt) -> tuple[str, ...]:
    return fault.members or world.plan.members


def _end(world: World, fault: TrainingDies | SaysGoodbye) -> None:
    script = world.scripts[fault.member]
    if isinstance(fault, SaysGoodbye):
        script.say_goodbye()
        return
    world.say(f"{fault.member}'s training dies")
    world.loop.create_task(script.die())
