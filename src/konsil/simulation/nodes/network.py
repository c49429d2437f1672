"""What lies between simulated nodes: lines that are slow, lose, repeat, overtake, break or swallow.

A pair of nodes has one connection or none, as over sockets: it takes time to come about, it breaks at both
ends when it is cut, and a hole in it is noticed by the pings only after a while. Until then requests hang.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from konsil.errors import FrameError, KonsilError
from konsil.simulation.nodes.loop import Process, SimulatedLoop
from konsil.transport.ask import Ask, fail, flat, writable
from konsil.transport.base import Handler, PeerAddress, PeerLink, Received, Reply
from konsil.transport.frames import HEADER_BYTES
from konsil.transport.sentences import gone, handler_failed, lost, too_late, unknown

NOTICED_S = 5.0
"""How long a hole in a connection stays unnoticed. Over sockets it is 20 s; the rest of this world is as much
faster than real studies."""

RECONNECT_S = 1.0
"""At most so long until a connection that is possible again is there again."""

Pair = tuple[str, str]


@dataclass
class Conditions:
    """What the lines are like. ``delay_s``: one way, on average; ``slow``: member -> how many times slower.

    ``repeated``: share of the requests that arrive twice. ``bytes_per_s``: of model bytes.
    """

    delay_s: float = 0.01
    repeated: float = 0.0
    bytes_per_s: float = 2e9
    slow: dict[str, float] = field(default_factory=dict)


class Connection:
    """What two nodes have while they reach each other."""

    def __init__(self) -> None:
        self.asks: dict[asyncio.Future[Received], str] = {}
        self.bytes_in: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[Reply]] = set()

    def end(self, why: str) -> None:
        """Fail what is in flight, and stop working on it."""
        for future, peer in list(self.asks.items()):
            fail(future, lost(peer, gone(why)))
        for task in self.tasks:
            task.cancel()


class Network:
    """All lines. ``scale``: what one model byte counts as, where models are small copies of real ones."""

    def __init__(self, loop: SimulatedLoop, seed: str, conditions: Conditions, scale: float = 1.0) -> None:
        """Everybody reaches everybody, once there is somebody."""
        self.loop = loop
        self.conditions = conditions
        self.scale = scale
        self._seed = seed
        self._lots: dict[Pair, random.Random] = {}
        self._transports: dict[str, SimulatedTransport] = {}
        self._connections: dict[Pair, Connection] = {}
        self._coming: set[Pair] = set()
        self._cuts: Counter[Pair] = Counter()
        self._holes: Counter[Pair] = Counter()

    # --- faults ----------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Break the connection; both notice at once."""
        self._cuts[_pair(one, other)] += 1
        self._break(_pair(one, other), "The line was cut.")

    def mend(self, one: str, other: str) -> None:
        """Undo one ``cut``."""
        self._cuts[_pair(one, other)] -= 1
        self.review(_pair(one, other))

    def swallow(self, sender: str, receiver: str) -> None:
        """From now on nothing from the one arrives at the other, and nobody is told."""
        self._holes[sender, receiver] += 1
        self.loop.call_later(NOTICED_S, self._notice, sender, receiver)

    def release(self, sender: str, receiver: str) -> None:
        """Undo one ``swallow``."""
        self._holes[sender, receiver] -= 1
        self.review(_pair(sender, receiver))

    def _notice(self, sender: str, receiver: str) -> None:
        if self._holes[sender, receiver] > 0:
            self._break(_pair(sender, receiver), f"The peer has been silent for {NOTICED_S:g} s.")

    # --- connections -----------------------------------------------------------------------------

    def add(self, transport: SimulatedTransport) -> None:
        """A node starts."""
        self._transports[transport.name] = transport

    def remove(self, transport: SimulatedTransport, why: str) -> None:
        """A node has ended, in whatever way."""
        if self._transports.get(transport.name) is transport:
            del self._transports[transport.name]
            for pair in [pair for pair in self._connections if transport.name in pair]:
                self._break(pair, why)

    def review_all(self, name: str) -> None:
        """A node's directory has changed."""
        for other in sorted(self._transports):
            if other != name:
                self.review(_pair(name, other))

    def review(self, pair: Pair) -> None:
        """Connect two nodes that may be connected, in a moment; part those that may not."""
        if pair in self._connections:
            if not self._may_be(pair):
                self._break(pair, "The peer was removed from the directory.")
        elif pair not in self._coming and self._may_be(pair):
            self._coming.add(pair)
            self.loop.call_later(self._draw(pair, RECONNECT_S), self._come, pair)

    def _come(self, pair: Pair) -> None:
        self._coming.discard(pair)
        if self._may_be(pair) and pair not in self._connections:
            self._connections[pair] = Connection()
            for name in pair:
                self._transports[name].connected_to()

    def _may_be(self, pair: Pair) -> bool:
        one, other = pair
        near, far = self._transports.get(one), self._transports.get(other)
        if near is None or far is None or self._cuts[pair] > 0:
            return False
        if self._holes[one, other] > 0 or self._holes[other, one] > 0:
            return False
        there, back = near.address(other), far.address(one)
        return there is not None and back is not None and bool(there.addresses or back.addresses)

    def _break(self, pair: Pair, why: str) -> None:
        connection = self._connections.pop(pair, None)
        if connection is not None:
            connection.end(why)
            self.review(pair)

    def connection(self, one: str, other: str) -> Connection | None:
        """The connection of two nodes, if they have one."""
        return self._connections.get(_pair(one, other))

    def is_open(self, connection: Connection, one: str, other: str) -> bool:
        """Whether a connection is still the one that two nodes have."""
        return self.connection(one, other) is connection

    def close_for(self, one: str, other: str, why: str) -> None:
        """One side ends the connection, since the other broke the format."""
        self._break(_pair(one, other), why)

    # --- on the way ------------------------------------------------------------------------------

    def transport(self, name: str) -> SimulatedTransport | None:
        """The node of a name, if it is up."""
        return self._transports.get(name)

    def swallows(self, sender: str, receiver: str) -> bool:
        """Whether what one sends to the other is lost now."""
        return self._holes[sender, receiver] > 0

    def takes_s(self, sender: str, receiver: str, body_bytes: float = 0) -> float:
        """How long a message is on its way. Drawn for each, so that later ones overtake earlier ones."""
        slow = max(self.conditions.slow.get(sender, 1.0), self.conditions.slow.get(receiver, 1.0))
        lots = self._lots_of((sender, receiver))
        sent_s = body_bytes / self.conditions.bytes_per_s
        return slow * (lots.expovariate(1 / self.conditions.delay_s) + sent_s)

    def comes_twice(self, sender: str, receiver: str) -> bool:
        """Whether a request is delivered twice."""
        return self._lots_of((sender, receiver)).random() < self.conditions.repeated

    def _draw(self, pair: Pair, at_most_s: float) -> float:
        return self._lots_of(pair).uniform(0.01, at_most_s)

    def _lots_of(self, way: Pair) -> random.Random:
        if way not in self._lots:  # one for each way: what goes on elsewhere does not change its luck
            self._lots[way] = random.Random(f"{self._seed}, {way[0]} to {way[1]}")  # noqa: S311
        return self._lots[way]


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


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)
