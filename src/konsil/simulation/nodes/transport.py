"""A simulated node's end of the network: requests by name, answers to theirs, under the limits of frames."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from konsil.errors import FrameError, KonsilError
from konsil.simulation.nodes.loop import Process
from konsil.simulation.nodes.network import Connection, Network
from konsil.transport.ask import Ask, fail, flat, writable
from konsil.transport.base import Handler, PeerAddress, PeerLink, Received, Reply
from konsil.transport.frames import HEADER_BYTES
from konsil.transport.sentences import handler_failed, too_late, unknown


class SimulatedTransport:
    """One node's end of a ``Network``; see ``konsil.transport.base.Transport``.

    Args:
        process: the node's; requests are answered as part of it.
        handler: answers peers' requests.
        network: what lies between.
    """

    def __init__(self, process: Process, handler: Handler, network: Network) -> None:
        """Join the network; nobody is known before ``set_peers``."""
        self.name = process.name
        self.bytes_in = 0
        self.bytes_out = 0
        self.broken: list[str] = []
        self._process = process
        self._handler = handler
        self._network = network
        self._peers: dict[str, PeerAddress] = {}
        self._news = asyncio.Event()
        self._closed = False
        network.add(self)

    def answer_by(self, handler: Handler) -> None:
        """Answer otherwise from now on."""
        self._handler = handler

    def address(self, peer: str) -> PeerAddress | None:
        """The peer as it stands in this side's directory."""
        return self._peers.get(peer)

    def connected_to(self) -> None:
        """A connection is there: whoever waits for one looks."""
        self._news.set()
        self._news = asyncio.Event()

    def set_peers(self, peers: Iterable[PeerAddress]) -> None:
        """Take the directory as it is now."""
        self._peers = {peer.name: peer for peer in peers if peer.name != self.name}
        self._network.review_all(self.name)

    def links(self) -> tuple[PeerLink, ...]:
        """Every peer of the directory, by name, as it is connected now."""
        return tuple(self._seen(name) for name in sorted(self._peers))

    def _seen(self, peer: str) -> PeerLink:
        connection = self._network.connection(self.name, peer)
        if connection is None:
            return PeerLink(peer, connected=False, via="", rtt_ms=0.0, problem="There is no connection.")
        bytes_in = connection.bytes_in[self.name]
        return PeerLink(peer, connected=True, via="dialled", rtt_ms=1.0, problem="", bytes_in=bytes_in)

    async def close(self) -> None:
        """Leave the network; what is in flight fails."""
        self.leave("The peer closed the connection.")

    def leave(self, why: str) -> None:
        """Be gone at once, as in a crash."""
        self._closed = True
        self._network.remove(self, why)
        self.connected_to()

    async def request(
        self,
        peer: str,
        message: bytes,
        *,
        timeout_s: float,
        into: memoryview | None = None,
        limit_bytes: int = 0,
    ) -> Received:
        """Send one request and wait for its answer; see ``base.Transport``.

        Raises:
            PeerUnreachable: no connection, or it broke, or the deadline passed.
            PeerRefused: the peer's handler raised instead of answering.
            FrameError: the answer breaks a limit.
        """
        into = writable(into)
        address = self._peers.get(peer)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self._closed or peer not in self._peers:
                        raise unknown(peer, closed=self._closed)
                    connection = self._network.connection(self.name, peer)
                    if connection is not None:
                        return await _Trip(self, self._network, connection, peer).make(
                            message, into, limit_bytes
                        )
                    await self._news.wait()
        except TimeoutError:
            address = address or PeerAddress(peer, "", ("",), b"")
            raise too_late(address, timeout_s, problem="", connected=connection is not None) from None
        finally:
            if into is not None:
                into.release()

    async def answer(self, peer: str, message: bytes) -> Reply:
        """Serve a peer's request.

        Raises:
            PeerRefused: the handler broke; the peer learns no more than that.
        """
        self.bytes_in += HEADER_BYTES + len(message)
        try:
            reply = await self._handler(peer, message)
            flat(reply.body)
        except Exception as error:
            self.broken.append(f"{self.name} could not answer {peer}: {error!r}")
            raise handler_failed(self.name) from error
        self.bytes_out += HEADER_BYTES + len(reply.message) + memoryview(reply.body).nbytes
        return reply

    def serve(self, peer: str, message: bytes, connection: Connection) -> asyncio.Task[Reply]:
        """Answer as part of this node's process, for as long as the connection lasts."""
        task = self._network.loop.spawn(self._process, self.answer(peer, message), f"answer {peer}")
        connection.tasks.add(task)
        task.add_done_callback(connection.tasks.discard)
        return task


class _Trip:
    """One request on its way there and back."""

    def __init__(self, near: SimulatedTransport, network: Network, connection: Connection, peer: str) -> None:
        self._near = near
        self._network = network
        self._connection = connection
        self._peer = peer
        self._serving: list[asyncio.Task[Reply]] = []
        self._answered: asyncio.Future[Received] = network.loop.create_future()

    async def make(self, message: bytes, into: memoryview | None, limit_bytes: int) -> Received:
        me, network = self._near.name, self._network
        self._message, self._into, self._limit_bytes = message, into, limit_bytes
        self._connection.asks[self._answered] = self._peer
        self._near.bytes_out += HEADER_BYTES + len(message)
        times = 2 if network.comes_twice(me, self._peer) else 1
        for _ in range(times):
            network.loop.call_later(network.takes_s(me, self._peer), self._arrive)
        try:
            return await self._answered
        except FrameError:
            network.close_for(me, self._peer, "An answer broke the format.")
            raise
        finally:
            del self._connection.asks[self._answered]
            self._answered.cancel()
            self._into = None  # what comes too late must not hold the asker's memory
            for task in self._serving:  # as a CANCEL frame does
                task.cancel()

    @property
    def _scale(self) -> float:
        """Of what is asked for, only a model's chunk goes straight into memory."""
        return self._network.scale if self._into is not None else 1.0

    @property
    def _over(self) -> bool:
        is_open = self._network.is_open(self._connection, self._near.name, self._peer)
        return self._answered.done() or not is_open

    def _arrive(self) -> None:
        me = self._near.name
        far = self._network.transport(self._peer)
        if self._over or far is None or self._network.swallows(me, self._peer):
            return
        self._connection.bytes_in[self._peer] += HEADER_BYTES + len(self._message)
        task = far.serve(me, self._message, self._connection)
        self._serving.append(task)
        task.add_done_callback(self._answer_leaves)

    def _answer_leaves(self, task: asyncio.Task[Reply]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if self._over:
            return
        reply = None if error is not None else task.result()
        body_bytes = memoryview(reply.body).nbytes if reply is not None else 0
        takes_s = self._network.takes_s(self._peer, self._near.name, body_bytes * self._scale)
        self._network.loop.call_later(takes_s, self._answer_arrives, reply, error)

    def _answer_arrives(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._over or self._network.swallows(self._peer, self._near.name):
            return
        if reply is None:
            self._answered.set_exception(error or RuntimeError("no answer"))
            return
        view = flat(reply.body)
        came = HEADER_BYTES + len(reply.message) + int(self._scale * len(view))
        self._connection.bytes_in[self._near.name] += came
        self._near.bytes_in += HEADER_BYTES + len(reply.message) + len(view)
        ask = Ask(self._answered, self._into, self._limit_bytes)
        try:
            ask.announce(reply.message, len(view))
            if view:
                ask.segment(len(view))[:] = view
            ask.settle()
        except KonsilError as problem:
            fail(self._answered, problem)
        finally:
            ask.let_go()
