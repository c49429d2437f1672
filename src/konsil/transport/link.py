"""A peer of the directory: its connections, which of them is used, and who waits for one."""

from __future__ import annotations

import asyncio
import contextlib

from konsil.errors import PeerUnreachable
from konsil.transport.base import PeerAddress, PeerLink
from konsil.transport.connection import Connection

MAX_LEAVING = 4
"""Connections to one peer that may still finish their requests; the oldest goes first."""


class Link:
    """What a transport knows of one peer.

    Attributes:
        address: how to reach and recognise it.
        problem: why there is no connection, or why the last attempt failed.
        wake: set when a connection is needed now, or was lost.
        told: whether those who watch links were told last that there is one.
        dialler: the task that keeps the connection up, for a peer with addresses.
    """

    def __init__(self, own: str, address: PeerAddress) -> None:
        """Without a connection. ``own``: this side's member name."""
        self._own = own
        self._connections: list[Connection] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self.address = address
        self.problem = ""
        self.wake = asyncio.Event()
        self.told = False
        self.dialler: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The peer's member name."""
        return self.address.name

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Every connection that has not ended, oldest first."""
        return tuple(self._connections)

    def best(self) -> Connection | None:
        """The connection for new requests.

        Where both sides dialled, both must choose the same one: that of the smaller name, if newest.
        """
        usable = [connection for connection in self._connections if connection.usable]
        preferred = [connection for connection in usable if self.by_smaller_name(connection)] or usable
        return preferred[-1] if preferred else None

    def by_smaller_name(self, connection: Connection) -> bool:
        """Whether the member with the smaller name opened this connection."""
        return connection.dialled == (self._own < self.name)

    def adopt(self, connection: Connection) -> None:
        """A connection is ready: whoever waits may go on."""
        self._connections.append(connection)
        leaving = [other for other in self._connections if other.leaving]
        for other in leaving[:-MAX_LEAVING]:
            other.abort("Too many connections to this peer were ending at once.")
        self.problem = ""
        self._tell()

    def drop(self, connection: Connection) -> None:
        """A connection takes no new requests, or has ended: have another one made."""
        if connection not in self._connections:
            return
        if connection.ended:
            self._connections.remove(connection)
        if self.best() is None:
            if connection.reason is not None and connection.ended:
                self.problem = str(connection.reason)
            self.wake.set()

    async def connected(self) -> Connection:
        """Wait for a connection; the deadline is the caller's."""
        while (connection := self.best()) is None:
            self.wake.set()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await future
            finally:
                self._waiting.discard(future)
        return connection

    async def rest(self, seconds: float) -> None:
        """Wait so long, or until a connection is needed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()

    @property
    def wanted(self) -> bool:
        """Whether a request waits for a connection."""
        return bool(self._waiting)

    def _tell(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def cut(self, why: str) -> None:
        """End every connection now, and every wait for one."""
        for connection in self.connections:
            connection.abort(why)
        for future in self._waiting:
            if not future.done():
                future.set_exception(PeerUnreachable(why))

    def seen(self) -> PeerLink:
        """The peer as it is connected now."""
        connection = self.best()
        if connection is None:
            return PeerLink(self.name, connected=False, via="", rtt_ms=0.0, problem=self.problem)
        via = "dialled" if connection.dialled else "accepted"
        received = sum(each.bytes_in for each in self.connections)
        return PeerLink(self.name, True, via, connection.rtt_ms, self.problem, bytes_in=received)
