"""Looks at the local engine's operator from outside: what it has once told must stand there for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from konsil.core.rules import Genesis, State, apply, decode_entry, decode_signed, initial_state
from konsil.core.rules import state_digest as digest_of
from konsil.errors import KonsilError
from konsil.ledger.local import LocalLedger
from konsil.simulation.laws import Law
from konsil.simulation.nodes.ledger import Told
from konsil.simulation.nodes.loop import SimulatedLoop

if TYPE_CHECKING:
    from konsil.simulation.nodes.node import SimulatedNode

WAIT_S = 60.0


class Observer:
    """Replays the operator's history by itself.

    Args:
        genesis: of the swarm.
        told: hears of every call.
        broken: told what does not hold.
    """

    def __init__(self, genesis: Genesis, told: Told, broken: Callable[[Law, str], None]) -> None:
        """Nothing has been told yet."""
        self.state: State = initial_state(genesis)
        self._told = told
        self._broken = broken
        self._task: asyncio.Task[None] | None = None

    def look(self, node: SimulatedNode, loop: SimulatedLoop) -> None:
        """If this is the operator's node, look at its ledger from now on."""
        if isinstance(node.ledger, LocalLedger):
            if self._task is not None:
                self._task.cancel()
            self._task = loop.create_task(self._watch(node, node.ledger), name="observer")

    async def _watch(self, node: SimulatedNode, ledger: LocalLedger) -> None:
        if ledger.state.height < self.state.height:
            self._broken(
                "history only grows",
                f"the operator told {self.state.height} entries and now has {ledger.state.height}",
            )
            return
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                entries = await ledger.follow(self.state.height, WAIT_S)
            except KonsilError:
                return
            if not node.process.alive:
                return
            if not entries and loop.time() - began_s < WAIT_S:
                return  # it has been closed
            for data in entries:
                entry = decode_entry(data)
                if not node.world.disks[node.name].has("ledger.db", entry.state.encode()):
                    self._broken(
                        "entries are on disk before they are told",
                        f"the operator tells entry {entry.height} before it is on its disk",
                    )
                signed = decode_signed(entry.signed)
                before = self.state
                self.state = apply(before, signed.caller, signed.sequence, signed.call, entry.time_s)
                if digest_of(self.state) != entry.state:
                    self._broken(
                        "the ledger is what its calls give",
                        f"entry {entry.height} has another state than its calls give",
                    )
                self._told(signed.caller, signed.call, before, self.state)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
