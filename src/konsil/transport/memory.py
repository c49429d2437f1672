"""The transport's twin without sockets, for tests and simulations: same interface, same errors.

Links can be cut, slowed, made deaf in one direction, and lost when a node closes; a member without
addresses can only dial out, as in the directory. Streams are in ``memory_streams.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Self

import structlog

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError
from konsil.transport.ask import Ask, flat, writable
from konsil.transport.base import Handler, PeerAddress, PeerLink, Received, Reply
from konsil.transport.frames import HEADER_BYTES, Kind, encode
from konsil.transport.memory_streams import MemoryStreams
from konsil.transport.sentences import gone, handler_failed, lost, no_streams, not_asked, too_late, unknown
from konsil.transport.stream import Stream, StreamHandler
from konsil.transport.timings import MAX_IN_FLIGHT

log = structlog.get_logger("konsil.transport")

Pair = frozenset[str]


class MemoryNetwork:
    """What lies between the members of a test: who reaches whom, and how fast."""

    def __init__(self) -> None:
        """Everybody reaches everybody at once."""
        self._transports: dict[str, MemoryTransport] = {}
        self._cut: set[Pair] = set()
        self._deaf: set[tuple[str, str]] = set()
        self._delays_s: dict[tuple[str, str], float] = {}
        self._trips: dict[Pair, set[asyncio.Future[None]]] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self.streams = MemoryStreams(self.lag_s)

    def cut(self, one: str, other: str) -> None:
        """Break the link between two members; requests in flight fail at once."""
        self._cut.add(frozenset((one, other)))
        self.break_trips(one, other)
        self.tell()

    def isolate(self, name: str) -> None:
        """Cut a member off from everybody."""
        for other in self._transports:
            if other != name:
                self.cut(name, other)

    def mend(self, one: str, other: str) -> None:
        """Undo ``cut`` and ``block`` between two members."""
        self._cut.discard(frozenset((one, other)))
        self._deaf -= {(one, other), (other, one)}
        self.tell()

    def block(self, sender: str, receiver: str) -> None:
        """Lose what one member sends to another, silently: requests run into their deadline."""
        self._deaf.add((sender, receiver))

    def lag_s(self, sender: str, receiver: str) -> float | None:
        """How long something takes from one member to another; None if it is lost."""
        return None if (sender, receiver) in self._deaf else self._delays_s.get((sender, receiver), 0.0)

    def delay(self, sender: str, receiver: str, seconds: float) -> None:
        """Let everything from one member to another take so long."""
        self._delays_s[sender, receiver] = seconds

    def add(self, transport: MemoryTransport) -> None:
        """A node starts; one of the same name that was there before is gone."""
        before = self._transports.get(transport.name)
        self._transports[transport.name] = transport
        if before is not None:
            self.break_all(transport.name)
            self.streams.break_all(transport.name)
        self.tell()

    def remove(self, transport: MemoryTransport) -> None:
        """A node has closed."""
        if self._transports.get(transport.name) is transport:
            del self._transports[transport.name]
            self.break_all(transport.name)
            self.streams.break_all(transport.name)

    def find(self, one: str, other: str) -> MemoryTransport | None:
        """The other's transport if there is a link: both know each other, one can dial, nothing is cut."""
        near, far = self._transports.get(one), self._transports.get(other)
        if near is None or far is None or frozenset((one, other)) in self._cut:
            return None
        there, back = near.address(other), far.address(one)
        if there is None or back is None or not (there.addresses or back.addresses):
            return None
        return far

    async def travel(self, sender: str, receiver: str) -> None:
        """Take as long as a message takes, or for ever if it is lost; the deadline is the caller's."""
        await asyncio.sleep(self._delays_s.get((sender, receiver), 0.0))
        if (sender, receiver) in self._deaf:
            await asyncio.get_running_loop().create_future()

    def latency_s(self, one: str, other: str) -> float:
        """There and back."""
        return self._delays_s.get((one, other), 0.0) + self._delays_s.get((other, one), 0.0)

    def trip(self, one: str, other: str) -> asyncio.Future[None]:
        """A future that is done when the link breaks; to be given back with ``arrived``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._trips.setdefault(frozenset((one, other)), set()).add(future)
        return future

    def arrived(self, one: str, other: str, trip: asyncio.Future[None]) -> None:
        """A trip is over."""
        self._trips.get(frozenset((one, other)), set()).discard(trip)
        trip.cancel()

    def break_trips(self, one: str, other: str) -> None:
        """Fail what is in flight between two members."""
        for future in self._trips.pop(frozenset((one, other)), set()):
            if not future.done():
                future.set_result(None)
        self.streams.break_between(one, other)

    def break_all(self, name: str) -> None:
        """Fail what is in flight from and to a member."""
        for pair in [pair for pair in self._trips if name in pair]:
            self.break_trips(*pair)

    async def changed(self) -> None:
        """Wait until somebody may reach somebody else; the deadline is the caller's."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def tell(self) -> None:
        """Wake everybody who waits for a link, and tell who watches them."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        for transport in list(self._transports.values()):
            transport.look()


class MemoryTransport:
    """One member's end of a ``MemoryNetwork``; see ``base.StreamTransport``.

    Args:
        name: the member's name.
        handler: answers peers' requests.
        network: what lies between.
    """

    def __init__(self, name: str, handler: Handler, network: MemoryNetwork) -> None:
        """Join the network; nobody is known before ``set_peers``."""
        self.name = name
        self._handler = handler
        self._network = network
        self._peers: dict[str, PeerAddress] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stream_handler: StreamHandler | None = None
        self._watchers: list[Callable[[str, bool], None]] = []
        self._linked: set[str] = set()
        self._closed = False
        self._bytes_in = 0
        self._bytes_out = 0
        network.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def bytes_in(self) -> int:
        """Bytes received from peers since the start, a header for each message included."""
        return self._bytes_in

    @property
    def bytes_out(self) -> int:
        """Bytes sent to peers since the start, a header for each message included."""
        return self._bytes_out

    def address(self, peer: str) -> PeerAddress | None:
        """The peer as it stands in this side's directory."""
        return self._peers.get(peer)

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
            PeerUnreachable: no link, or it broke, or the deadline passed.
            PeerRefused: the peer's handler raised instead of answering.
            FrameError: the request or its answer breaks a limit.
        """
        if self._closed or peer not in self._peers:
            raise unknown(peer, closed=self._closed)
        encode(Kind.REQUEST, 1, message)  # for its limits
        into = writable(into)
        connected = False
        slots = self._slots.setdefault(peer, asyncio.Semaphore(MAX_IN_FLIGHT))
        try:
            async with asyncio.timeout(timeout_s), slots:
                far = await self._linked_to(peer)
                connected = True
                return await self._exchange(far, message, into, limit_bytes)
        except TimeoutError:
            address = self._peers.get(peer, PeerAddress(peer, "", ("",), b""))
            raise too_late(address, timeout_s, problem="", connected=connected) from None
        finally:
            if into is not None:
                into.release()  # whoever keeps the error does not keep the memory

    async def _linked_to(self, peer: str) -> MemoryTransport:
        while (far := self._network.find(self.name, peer)) is None:
            await self._network.changed()
            if self._closed or peer not in self._peers:
                raise unknown(peer, closed=self._closed)
        return far

    async def open_stream(self, peer: str, message: bytes, *, timeout_s: float) -> Stream:
        """Open a stream and wait until the peer has accepted it; see ``base.StreamTransport``.

        Raises:
            PeerUnreachable: no link, or it broke, or the deadline passed.
            PeerRefused: the peer does not accept it; the error has its reason.
            FrameError: the message is over its limit.
        """
        if self._closed or peer not in self._peers:
            raise unknown(peer, closed=self._closed)
        encode(Kind.OPEN, 1, message)  # for its limits
        connected = False
        try:
            async with asyncio.timeout(timeout_s):
                far = await self._linked_to(peer)
                connected = True
                return await self._network.streams.open(self.name, peer, message, far.take_stream)
        except TimeoutError:
            address = self._peers.get(peer, PeerAddress(peer, "", ("",), b""))
            raise too_late(address, timeout_s, problem="", connected=connected) from None

    def serve_streams(self, handler: StreamHandler | None) -> None:
        """Hand streams that peers open to this from now on; None refuses them."""
        self._stream_handler = handler

    def take_stream(self, work: Callable[[StreamHandler], Any]) -> None:
        """Have a stream served that a peer has opened, as a task that ends with this node."""
        self.serve(asyncio.get_running_loop().create_task(work(self._on_stream)))

    async def _on_stream(self, peer: str, message: bytes, stream: Stream) -> None:
        if self._stream_handler is None:
            raise no_streams(self.name)
        await self._stream_handler(peer, message, stream)

    def watch_links(self, told: Callable[[str, bool], None]) -> None:
        """Call this with a peer's name whenever it is linked, and whenever it is not any more."""
        self._watchers.append(told)

    def look(self) -> None:
        """See which links have come and gone, and tell who watches them."""
        before = self._linked
        self._linked = now = {peer for peer in self._peers if self._network.find(self.name, peer)}
        for peer in sorted(now ^ before):
            for told in self._watchers:
                told(peer, peer in now)

    def set_peers(self, peers: Iterable[PeerAddress]) -> None:
        """Take the directory as it is now; what is in flight to removed peers fails."""
        before = set(self._peers)
        self._peers = {peer.name: peer for peer in peers if peer.name != self.name}
        for name in before - set(self._peers):
            self._network.break_trips(self.name, name)
        self._network.tell()

    def links(self) -> tuple[PeerLink, ...]:
        """Every peer of the directory, by name, as it is linked now."""
        return tuple(self._seen(self._peers[name]) for name in sorted(self._peers))

    async def close(self) -> None:
        """Leave the network; what is in flight fails."""
        self._closed = True
        self._network.remove(self)
        self._network.tell()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _seen(self, peer: PeerAddress) -> PeerLink:
        far = self._network.find(self.name, peer.name)
        if far is None:
            return PeerLink(peer.name, connected=False, via="", rtt_ms=0.0, problem="There is no link.")
        back = far.address(self.name)
        dials = bool(peer.addresses) and (self.name < peer.name or back is None or not back.addresses)
        rtt_ms = self._network.latency_s(self.name, peer.name) * 1e3
        via = "dialled" if dials else "accepted"
        return PeerLink(peer.name, connected=True, via=via, rtt_ms=rtt_ms, problem="")

    async def _exchange(
        self, far: MemoryTransport, message: bytes, into: memoryview | None, limit_bytes: int
    ) -> Received:
        trip = self._network.trip(self.name, far.name)
        task = asyncio.get_running_loop().create_task(self._there_and_back(far, message))
        far.serve(task)
        try:
            both: set[asyncio.Future[Any]] = {task, trip}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if trip.done() or task.cancelled():
                raise lost(far.name, gone("The link was cut."))
            return self._take(task.result(), into, limit_bytes)
        except FrameError:
            self._network.break_trips(self.name, far.name)
            raise
        finally:
            if not task.cancel() and not task.cancelled():
                task.exception()  # the asker has been told of the break already
            self._network.arrived(self.name, far.name, trip)

    def serve(self, task: asyncio.Task[Any]) -> None:
        """Keep a request's or stream's task, to be ended when this node closes."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _there_and_back(self, far: MemoryTransport, message: bytes) -> Reply:
        self._bytes_out += HEADER_BYTES + len(message)
        await self._network.travel(self.name, far.name)
        reply = await far.answer(self.name, message)
        await self._network.travel(far.name, self.name)
        self._bytes_in += _size(reply)
        return reply

    async def answer(self, peer: str, message: bytes) -> Reply:
        """Serve a peer's request."""
        self._bytes_in += HEADER_BYTES + len(message)
        try:
            reply = await self._handler(peer, message)
            _check(reply)
            flat(reply.body)
        except Exception as error:  # as over a socket: the asker learns that it failed, the log why
            log.exception("a request could not be served", peer=peer)
            raise handler_failed(self.name) from error
        self._bytes_out += _size(reply)
        return reply

    @staticmethod
    def _take(reply: Reply, into: memoryview | None, limit_bytes: int) -> Received:
        """Hand the answer over under the same limits as a frame's."""
        view = flat(reply.body)
        ask = Ask(asyncio.get_running_loop().create_future(), into, limit_bytes)
        try:
            ask.announce(reply.message, len(view))
            if view:
                ask.segment(len(view))[:] = view
            ask.settle()
            return ask.future.result()
        finally:
            ask.let_go()


def _check(reply: Reply) -> None:
    if len(reply.message) > MAX_MESSAGE_BYTES:
        raise not_asked(f"An own answer of {len(reply.message)} bytes is over the limit.")


def _size(reply: Reply) -> int:
    return HEADER_BYTES + len(reply.message) + memoryview(reply.body).nbytes
