"""Carries a plan's faults out, each at its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from konsil.simulation.nodes.disk import BROKEN, FULL, Loss
from konsil.simulation.nodes.plan import Crash, Cut, DiskFull, Fault, LedgerHalt, Partition, Script

if TYPE_CHECKING:
    from konsil.simulation.nodes.world import World

__all__ = ["Loss", "arrange"]


def arrange(world: World) -> None:
    """Set a timer for the beginning and the end of every fault."""
    for fault in world.plan.faults:
        _arrange(world, fault)


def _arrange(world: World, fault: Fault) -> None:
    match fault:
        case Crash():
            _during(world, fault.at_s, fault.back_s, lambda: _down(world, fault), lambda: _back(world, fault))
        case Partition():
            pairs = [
                (one, other) for one in fault.side for other in world.plan.members if other not in fault.side
            ]
            _during(
                world,
                fault.at_s,
                fault.until_s,
                lambda: _part(world, fault, pairs),
                lambda: _join(world, fault, pairs),
            )
        case Cut():
            _during(world, fault.at_s, fault.until_s, lambda: _cut(world, fault), lambda: _mend(world, fault))
        case DiskFull():
            _during(
                world, fault.at_s, fault.until_s, lambda: _fill(world, fault), lambda: _empty(world, fault)
            )
        case LedgerHalt():
            _during(
                world, fault.at_s, fault.until_s, lambda: _halt(world, fault), lambda: _release(world, fault)
            )
        case Script():
            _during(world, fault.at_s, fault.back_s, lambda: _end(world, fault), lambda: _begin(world, fault))
        case _:  # the others hold from the beginning
            return


def _during(
    world: World, at_s: float, until_s: float, begin: Callable[[], None], end: Callable[[], None]
) -> None:
    world.loop.call_at(at_s, begin)
    if until_s > 0:
        world.loop.call_at(until_s, end)


def _down(world: World, fault: Crash) -> None:
    for name in fault.members:
        world.down[name] += 1
        world.crash(name, fault.loss)


def _back(world: World, fault: Crash) -> None:
    for name in fault.members:
        world.down[name] -= 1
        world.start(name)


def _part(world: World, fault: Partition, pairs: list[tuple[str, str]]) -> None:
    world.say(
        f"{', '.join(fault.side)} and the others {'lose' if fault.silent else 'are cut off from'} each other"
    )
    for one, other in pairs:
        if fault.silent:
            world.network.swallow(one, other)
            world.network.swallow(other, one)
        else:
            world.network.cut(one, other)


def _join(world: World, fault: Partition, pairs: list[tuple[str, str]]) -> None:
    world.say(f"{', '.join(fault.side)} and the others reach each other again")
    for one, other in pairs:
        if fault.silent:
            world.network.release(one, other)
            world.network.release(other, one)
        else:
            world.network.mend(one, other)


def _cut(world: World, fault: Cut) -> None:
    if fault.one_way:
        world.say(f"nothing arrives from {fault.sender} at {fault.receiver}")
        world.network.swallow(fault.sender, fault.receiver)
    else:
        world.say(f"the line of {fault.sender} and {fault.receiver} is cut")
        world.network.cut(fault.sender, fault.receiver)


def _mend(world: World, fault: Cut) -> None:
    world.say(f"the line of {fault.sender} and {fault.receiver} is whole again")
    if fault.one_way:
        world.network.release(fault.sender, fault.receiver)
    else:
        world.network.mend(fault.sender, fault.receiver)


def _fill(world: World, fault: DiskFull) -> None:
    world.say(f"{fault.member}'s disk {'fails' if fault.broken else 'is full'}")
    world.disks[fault.member].refuses = BROKEN if fault.broken else FULL


def _empty(world: World, fault: DiskFull) -> None:
    world.say(f"{fault.member}'s disk works again")
    world.disks[fault.member].refuses = 0
    if fault.broken:  # a journal that a disk has failed is not trusted before a new start: people do that
        world.crash(fault.member, "killed")
        world.start(fault.member)


def _halt(world: World, fault: LedgerHalt) -> None:
    if world.contract is not None:
        world.say(f"{', '.join(fault.members)} cannot reach the ledger")
        for name in fault.members:
            world.contract.halt(name)


def _release(world: World, fault: LedgerHalt) -> None:
    if world.contract is not None:
        world.say(f"{', '.join(fault.members)} can reach the ledger again")
        for name in fault.members:
            world.contract.release(name)


def _end(world: World, fault: Script) -> None:
    script = world.scripts[fault.member]
    match fault.how:
        case "dies":
            world.say(f"{fault.member}'s training dies")
            world.loop.create_task(script.die())
        case "goodbye":
            script.say_goodbye()
        case _:
            script.finish(fault.how)


def _begin(world: World, fault: Script) -> None:
    world.scripts[fault.member].start()
