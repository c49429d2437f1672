"""Which engines of other members this member's engine is connected to, and dialling those that it is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from konsil.core.rules import State
from konsil.errors import LedgerUnreachable
from konsil.ledger.cometbft.application import key_address
from konsil.ledger.cometbft.rpc import Rpc

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
"""Between two attempts to connect the same engines: doubled up to the longest."""

_log = structlog.get_logger(__name__)


class Mesh(Protocol):
    """How an engine reaches the others: through ports of its own machine, which its node leads to them."""

    def set_members(self, names: Iterable[str]) -> None:
        """The active members: nobody else's engine is let through."""
        ...

    def take_at(self, port: int) -> None:
        """Lead what comes from peers' engines to this port of the loopback interface."""
        ...

    def ports(self) -> Mapping[str, int]:
        """Member -> the loopback port that leads to its engine; those that can be reached now."""
        ...

    async def changed(self) -> None:
        """Wait until a member can be reached that could not be, or a line to an engine has ended."""
        ...


class Peering:
    """Keeps CometBFT connected with every member's that can be reached."""

    def __init__(self, rpc: Rpc, mesh: Mesh, whole: Callable[[], None]) -> None:
        """Nothing is dialled until ``start``. ``whole``: called when nobody who can be reached is missing."""
        self._whole = whole
        self._rpc = rpc
        self._mesh = mesh
        self._again = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._members: dict[str, str] = {}
        self.connected: tuple[str, ...] = ()

    def start(self) -> None:
        """Dial, and again whenever something has changed."""
        self._task = asyncio.create_task(self._keep(), name="konsil-engine-peers")

    def look(self, state: State) -> None:
        """The members may have changed."""
        members = {
            name: key_address(member.record.ledger_key).hex()
            for name, member in state.members.items()
            if member.active
        }
        self._mesh.set_members(members)
        if members != self._members:
            self._members = members
            self._again.set()

    def again(self) -> None:
        """The engine has just been started: it knows nobody."""
        self._again.set()

    async def close(self) -> None:
        """Dial no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        reachable: frozenset[str] = frozenset()
        loop = asyncio.get_running_loop()
        while True:
            self._again.clear()
            dialled_s = loop.time()
            whole = False
            with contextlib.suppress(LedgerUnreachable):  # it is just starting
                whole = await self._dial()
            if whole:
                self._whole()
            before, reachable = reachable, frozenset(self._mesh.ports())
            wait_s = FIRST_WAIT_S if whole or reachable - before else min(2 * wait_s, LONGEST_WAIT_S)
            await self._news(None if whole else wait_s)
            # What was just dialled in vain is not dialled again at once, whatever is heard of it.
            await asyncio.sleep(dialled_s + wait_s - loop.time())

    async def _news(self, timeout_s: float | None) -> None:
        """Wait for a reason to look again, or until the time is up."""
        waiting = {
            asyncio.ensure_future(self._again.wait()),
            asyncio.ensure_future(self._mesh.changed()),
        }
        try:
            await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)

    async def _dial(self) -> bool:
        """Dial the engines that are missing; whether none is."""
        ids = self._members
        here = _connected(await self._rpc.ask("net_info"))
        self.connected = tuple(sorted(name for name, node in ids.items() if node in here))
        missing = [
            f"{ids[name]}@127.0.0.1:{port}"
            for name, port in sorted(self._mesh.ports().items())
            if name in ids and ids[name] not in here
        ]
        if missing:
            _log.debug("dialling other members' engines", peers=len(missing))
            await self._rpc.ask("dial_peers", peers=missing, persistent=True, private=True)
        return not missing


def _connected(told: Any) -> set[str]:
    """The ids of the engines that CometBFT says it is connected to."""
    try:
        return {peer["node_info"]["id"] for peer in told["peers"] or ()}
    except (LookupError, TypeError) as error:
        raise LedgerUnreachable(
            f"The ledger's engine does not say who it is connected to: {error!r}.",
            safe="Nothing was lost.",
            do="It is asked again by itself.",
        ) from error
