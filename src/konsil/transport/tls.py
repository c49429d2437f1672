"""The transport of a node: mutual TLS connections to every peer in the directory, kept up by themselves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Self

import structlog

from konsil.errors import IdentityError, KonsilError, PeerUnreachable
from konsil.transport.ask import writable
from konsil.transport.base import Handler, PeerAddress, PeerLink, Received
from konsil.transport.connection import Connection, Owner
from konsil.transport.dialler import Dialler
from konsil.transport.identity import Identity
from konsil.transport.link import Link
from konsil.transport.listener import Listener, split_address
from konsil.transport.sentences import no_streams, own_expired, too_late, two_nodes, unknown
from konsil.transport.sockets import connect, explain, linger, shake_hands, until_readable
from konsil.transport.stream import Stream, StreamHandler
from konsil.transport.timings import Timings
from konsil.transport.tunnel import Dial

log = structlog.get_logger("konsil.transport")

_REFUSALS_S = 60.0
"""The same refusal again and again is logged this often."""


class TlsTransport:
    """Connections over mutual TLS 1.3; see ``base.StreamTransport`` for what they do.

    Use as ``async with``, or ``await start()`` and ``await close()``.

    Args:
        name: the own member name.
        identity: certificates and their check.
        make_hello: the own Hello, for each connection anew.
        check_hello: takes a peer's name and Hello, gives the instance (which run of the peer's node);
            raises a KonsilError whose text the peer will see.
        handler: answers peers' requests.
        listen: "host:port" to accept connections at; None for a node that only dials out.
        timings: deadlines.
        dial: opens connections to peers: by itself, or through a proxy (``tunnel.dialling``).
    """

    def __init__(
        self,
        name: str,
        *,
        identity: Identity,
        make_hello: Callable[[], bytes],
        check_hello: Callable[[str, bytes], str],
        handler: Handler,
        listen: str | None = None,
        timings: Timings | None = None,
        dial: Dial = connect,
    ) -> None:
        self._name = name
        self._identity = identity
        self._make_hello = make_hello
        self._check_hello = check_hello
        self._listen = listen
        self._timings = timings or Timings()
        self._open_line = dial
        self._owner = Owner(handler, self._on_stream, self._timings, self._changed, self._spawn)
        self._dialler = Dialler(name, self._timings, self._dial_one, listens=listen is not None)
        self._stream_handler: StreamHandler | None = None
        self._link_watchers: list[Callable[[str, bool], None]] = []
        self._links: dict[str, Link] = {}
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._started = False
        self._closed = False
        self._refusal = "", 0.0
        self._bytes_in = self._bytes_out = 0

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen, and connect to the directory's peers.

        Raises:
            ConfigError: the address to listen at cannot be used.
        """
        if self._listen is not None:
            self._listener = Listener(self._listen, lambda sock: self._spawn(self._accept(sock)))
            self._listener.start()
        self._started = True
        for link in self._links.values():
            self._dial_for(link)

    async def close(self) -> None:
        """Stop listening and close every connection in order; requests in flight fail."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        for link in self._links.values():
            if link.dialler is not None:
                link.dialler.cancel()
        why = f"The node of '{self._name}' is stopping."
        await asyncio.gather(*(connection.close(why) for connection in list(self._connections)))
        for link in self._links.values():
            link.cut("This node is stopping.")
        # A task that ends may leave another one behind it, such as a refusal that is being sent.
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for connection in list(self._connections):
            connection.abort("This node is stopping.")

    @property
    def port(self) -> int:
        """The port that is listened at; 0 for a node that only dials out."""
        return self._listener.port if self._listener is not None else 0

    @property
    def bytes_in(self) -> int:
        """Bytes received from peers since the start, frames' headers included."""
        return self._bytes_in + sum(connection.bytes_in for connection in self._connections)

    @property
    def bytes_out(self) -> int:
        """Bytes sent to peers since the start, frames' headers included."""
        return self._bytes_out + sum(connection.bytes_out for connection in self._connections)

    # --- what a node uses ------------------------------------------------------------------------

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
            FrameError: the request or its answer breaks a limit.
        """
        link = self._link(peer)
        into = writable(into)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = link.best() or await link.connected()
                    received = await connection.ask(message, into, limit_bytes)
                    if received is not None:
                        return received
        except TimeoutError:
            raise too_late(
                link.address, timeout_s, problem=link.problem, connected=connection is not None
            ) from None
        finally:
            if into is not None:
                into.release()  # whoever keeps the error does not keep the memory

    async def open_stream(self, peer: str, message: bytes, *, timeout_s: float) -> Stream:
        """Open a stream and wait until the peer has accepted it; see ``base.StreamTransport``.

        Raises:
            PeerUnreachable: no connection, or it broke, or the deadline passed.
            PeerRefused: the peer does not accept it; the error has its reason.
            FrameError: the message is over its limit.
        """
        link = self._link(peer)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = link.best() or await link.connected()
                    stream = await connection.open_stream(message)
                    if stream is not None:
                        return stream
        except TimeoutError:
            raise too_late(
                link.address, timeout_s, problem=link.problem, connected=connection is not None
            ) from None

    def serve_streams(self, handler: StreamHandler | None) -> None:
        """Hand streams that peers open to this from now on; None refuses them."""
        self._stream_handler = handler

    async def _on_stream(self, peer: str, message: bytes, stream: Stream) -> None:
        if self._stream_handler is None:
            raise no_streams(self._name)
        await self._stream_handler(peer, message, stream)

    def watch_links(self, told: Callable[[str, bool], None]) -> None:
        """Call this with a peer's name whenever it is connected, and whenever it is not any more."""
        self._link_watchers.append(told)

    def set_peers(self, peers: Iterable[PeerAddress]) -> None:
        """Take the directory as it is now: connect to new peers, cut off removed ones."""
        wanted = {address.name: address for address in peers if address.name != self._name}
        for name in [name for name in self._links if name not in wanted]:
            link = self._links.pop(name)
            if link.dialler is not None:
                link.dialler.cancel()
            link.cut(f"'{name}' is not in the directory any more.")
            self._tell(link)
        for name, address in wanted.items():
            if name in self._links:
                self._readdress(self._links[name], address)
            else:
                self._links[name] = Link(self._name, address)
            self._dial_for(self._links[name])

    def links(self) -> tuple[PeerLink, ...]:
        """Every peer of the directory, by name, as it is connected now."""
        return tuple(self._links[name].seen() for name in sorted(self._links))

    def _link(self, peer: str) -> Link:
        link = self._links.get(peer)
        if link is None or self._closed:
            raise unknown(peer, closed=self._closed)
        return link

    def _readdress(self, link: Link, address: PeerAddress) -> None:
        before, link.address = link.address, address
        if address.spiffe_id != before.spiffe_id:
            link.cut(f"'{link.name}' has another identity now.")
        elif address.bundle != before.bundle:
            # Who it is must be shown again, by the new bundle; what is in flight may finish.
            for connection in link.connections:
                connection.leave(f"'{link.name}' has another trust bundle now; the connection is made anew.")
        if address.addresses != before.addresses:
            link.wake.set()

    # --- dialling --------------------------------------------------------------------------------

    def _dial_for(self, link: Link) -> None:
        if self._started and not self._closed and link.dialler is None:
            link.dialler = self._spawn(self._dialler.keep_up(link))

    async def _dial_one(self, link: Link, address: str) -> None:
        if self._identity.expires_s <= time.time():
            raise own_expired()
        context = self._identity.client_context(link.address)
        sock = await self._open_line(*split_address(address))
        connection = await self._secure(sock, context, {link.name: link.address}, dialled=True)
        try:
            connection.start()
            connection.greet(self._make_hello())
            await self._admit(link, connection, await connection.hello)
        except KonsilError as error:
            self._spawn(connection.refuse(str(error)))
            raise
        except BaseException:
            connection.abort("The connection was given up before it was complete.")
            raise

    async def _secure(
        self, sock: socket.socket, context: ssl.SSLContext, peers: Mapping[str, PeerAddress], *, dialled: bool
    ) -> Connection:
        """TLS on a connected socket, and who is there. The socket is closed if that fails."""
        try:
            tls = context.wrap_socket(sock, server_side=not dialled, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            await shake_hands(tls)
            name, expires_s = self._identity.check_peer(tls, peers)
        except IdentityError as error:
            stranger = Connection(tls, "a stranger", self._owner, dialled=dialled, expires_s=0.0)
            self._connections.add(stranger)
            self._spawn(stranger.refuse(str(error)))
            raise
        except (OSError, ValueError):
            # What TLS has to say to the other side must not be lost to a reset.
            raw = socket.socket(fileno=tls.detach())
            task = self._spawn(linger(raw, self._timings.close_s))
            task.add_done_callback(lambda _: raw.close())  # also if it never began
            raise
        except BaseException:
            tls.close()
            raise
        connection = Connection(
            tls, name, self._owner, dialled=dialled, expires_s=min(expires_s, self._identity.expires_s)
        )
        self._connections.add(connection)
        return connection

    # --- accepting -------------------------------------------------------------------------------

    async def _accept(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._timings.handshake_s):
                await self._accept_in_time(sock)
        except (OSError, KonsilError, ValueError) as error:
            self._note_refusal(explain(error) if isinstance(error, OSError) else str(error))
        except Exception:  # a mistake of ours must cost one connection only
            log.exception("a connection could not be accepted")

    def _note_refusal(self, why: str) -> None:
        """Log it, but let nobody fill the log by knocking all day."""
        now_s = asyncio.get_running_loop().time()
        last, since_s = self._refusal
        if why != last or now_s - since_s > _REFUSALS_S:
            self._refusal = why, now_s
            log.info("a connection was refused", why=why or "it took too long")

    async def _accept_in_time(self, sock: socket.socket) -> None:
        try:
            await until_readable(sock)  # a context costs too much for somebody who says nothing
            peers = {name: link.address for name, link in self._links.items()}
            context = self._identity.server_context(peers.values())
        except BaseException:
            sock.close()
            raise
        connection = await self._secure(sock, context, peers, dialled=False)
        try:
            connection.start()
            hello = await connection.hello
            await self._admit(self._link(connection.peer), connection, hello)
        except KonsilError as error:
            self._spawn(connection.refuse(str(error)))
            raise
        except BaseException:
            connection.abort("The connection was given up before it was complete.")
            raise

    # --- one connection a peer -------------------------------------------------------------------

    async def _admit(self, link: Link, connection: Connection, hello: bytes) -> None:
        """Take a connection into use, unless another node with the same identity is alive."""
        connection.instance = self._check_hello(link.name, hello)
        while (rival := link.best()) is not None and rival.instance != connection.instance:
            if await rival.ping(self._timings.rival_s):
                error = two_nodes(link.name)
                link.problem = str(error)
                raise error
            rival.abort("It did not answer, and its node has come again.")
        if connection.ended:
            raise connection.reason or PeerUnreachable("The connection has ended.")
        if self._link(link.name) is not link:
            raise unknown(link.name, closed=False)
        rival = link.best()
        if not connection.dialled:
            connection.greet(self._make_hello())
        connection.open()
        link.adopt(connection)
        self._tell(link)
        if rival is not None:
            self._spawn(self._choose(link, rival, connection))

    async def _choose(self, link: Link, old: Connection, new: Connection) -> None:
        """Keep one of two connections between the same two nodes; both sides choose alike."""
        if link.by_smaller_name(old) and not link.by_smaller_name(new):
            if await old.ping(self._timings.rival_s):
                new.leave("Both sides dialled; the other connection is kept.")
            else:
                old.abort("It did not answer, and a new connection has come.")
        else:
            old.leave("A newer connection took its place.")

    def _changed(self, connection: Connection) -> None:
        if connection.ended and connection in self._connections:
            self._connections.remove(connection)
            self._bytes_in += connection.bytes_in
            self._bytes_out += connection.bytes_out
        link = self._links.get(connection.peer)
        if link is not None:
            link.drop(connection)
            self._tell(link)

    def _tell(self, link: Link) -> None:
        """Say if a link has just come or gone; one that is made anew while the old one lasts has not."""
        up = any(not connection.ended for connection in link.connections)
        if up != link.told:
            link.told = up
            for told in self._link_watchers:
                told(link.name, up)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
