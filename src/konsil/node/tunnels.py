"""The ledger engine's own traffic, inside the connections between the nodes.

The engine speaks with nobody but its own node, on loopback: for each peer there is a port here at which it
finds that peer's engine. So hospital IT opens the node's port or none, nobody meets an engine without having
shown a member's certificate, and a member that can only dial out takes part like all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import NamedTuple

import structlog

from konsil.core.messages import OpenTunnel, decode_opening, encode
from konsil.errors import KonsilError, NodeError, PeerRefused
from konsil.node.splice import READ_BYTES, Splice, cut
from konsil.transport.base import StreamTransport
from konsil.transport.stream import Stream

OPEN_S = 10.0
"""How long the peer may take to accept a tunnel, once there is a connection to it."""

GO_ON_S = 30.0
"""How long a tunnel waits for the connection that takes the place of the one that it goes over: half of what
is left of that one."""

ENGINE_S = 5.0
"""How long the own engine may take to accept a connection on loopback."""

_BACKLOG = 16
_NO_DESCRIPTORS_S = 1.0
_LOOPBACK = "127.0.0.1"

_log = structlog.get_logger(__name__)


class TunnelStats(NamedTuple):
    """The tunnels to one peer. ``problem``: why the last one could not be opened, or ""."""

    open: int
    bytes_in: int
    bytes_out: int
    problem: str


class Tunnels:
    """A port on loopback for each peer's engine, and the way from peers to the own engine.

    Args:
        transport: carries the tunnels.
        me: the own member name.
        on_reachable: told a peer's name whenever a connection to it has come (again) or a tunnel to it has
            ended, so that the engine may be told to dial.
    """

    def __init__(
        self, transport: StreamTransport, me: str, on_reachable: Callable[[str], None] | None = None
    ) -> None:
        """Take streams from now on; nobody is a peer before ``set_peers``."""
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._me = me
        self._on_reachable = on_reachable
        self._peers: frozenset[str] = frozenset()
        self._doors: dict[str, _Door] = {}
        self._splices: dict[tuple[str, str], Splice] = {}
        self._target: tuple[str, int] | None = None
        self._problems: dict[str, str] = {}
        self._bytes_in: Counter[str] = Counter()
        self._bytes_out: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._linked = {link.name for link in transport.links() if link.connected}
        transport.watch_links(self._link_changed)
        transport.serve_streams(self._incoming)

    # --- what a node uses ------------------------------------------------------------------------

    def set_target(self, host: str, port: int) -> None:
        """Where the own engine takes connections of other engines."""
        self._target = host, port

    def clear_target(self) -> None:
        """The own engine takes none now: peers are told so."""
        self._target = None

    def set_peers(self, names: Iterable[str]) -> None:
        """The active members: tunnels to and from all others are cut, and refused."""
        before, self._peers = self._peers, frozenset(names) - {self._me}
        for splice in self._splices.values():
            if splice.peer not in self._peers:
                splice.stop(f"'{splice.peer}' is not an active member any more.")
        for name in sorted(self._peers):
            if name not in self._doors:
                try:
                    self._doors[name] = _Door(partial(self._knocked, name))
                except NodeError as error:
                    self._note(name, str(error))  # tried again when the ledger moves
                    continue
            if name not in before and name in self._linked:
                self._tell_reachable(name)

    def port_of(self, name: str) -> int:
        """The port on 127.0.0.1 at which the own engine finds that member's; it stays until the node ends.

        Raises:
            KeyError: it has never been a peer.
        """
        return self._doors[name].port

    def ports(self) -> dict[str, int]:
        """Who has a port here, and which; as ``port_of``."""
        return {name: door.port for name, door in self._doors.items()}

    def stats(self) -> dict[str, TunnelStats]:
        """Every peer's tunnels; bytes since the start."""
        now = Counter(splice.peer for splice in self._splices.values())
        bytes_in, bytes_out = Counter(self._bytes_in), Counter(self._bytes_out)
        for splice in self._splices.values():
            bytes_in[splice.peer] += splice.bytes_in
            bytes_out[splice.peer] += splice.bytes_out
        return {
            name: TunnelStats(now[name], bytes_in[name], bytes_out[name], self._problems.get(name, ""))
            for name in sorted(self._doors)
        }

    async def close(self) -> None:
        """Close the ports and every tunnel."""
        self._closed = True
        self._transport.serve_streams(None)
        for door in self._doors.values():
            door.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    # --- links -----------------------------------------------------------------------------------

    def _link_changed(self, peer: str, connected: bool) -> None:
        if connected:
            self._linked.add(peer)
            if peer in self._peers:
                self._tell_reachable(peer)
        else:
            self._linked.discard(peer)

    def _tell_reachable(self, peer: str) -> None:
        if self._on_reachable is not None and not self._closed:
            self._on_reachable(peer)

    # --- from the own engine to a peer -------------------------------------------------------------

    def _knocked(self, peer: str, sock: socket.socket) -> None:
        if peer not in self._peers or peer not in self._linked or self._closed:
            sock.close()  # the engine dials again by itself
            return
        # Closed in the end also where the task never began.
        self._spawn(self._to_peer(peer, sock)).add_done_callback(lambda _: sock.close())

    async def _to_peer(self, peer: str, sock: socket.socket) -> None:
        tunnel = secrets.token_hex(8)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            try:
                stream = await self._open(peer, OpenTunnel(tunnel), OPEN_S)
            except KonsilError as error:
                self._note(peer, error.what)
                return
            undo.callback(stream.abort, "The ledger's engine has closed its connection.")
            reader, writer = await asyncio.open_connection(sock=sock, limit=READ_BYTES)
            undo.pop_all()
        self._note(peer, "")
        await self._run(
            (peer, tunnel),
            Splice(peer, stream, reader, writer),
            lambda: self._open(peer, OpenTunnel(tunnel, goes_on=True), GO_ON_S),
        )

    async def _open(self, peer: str, opening: OpenTunnel, timeout_s: float) -> Stream:
        return await self._transport.open_stream(peer, encode(opening), timeout_s=timeout_s)

    def _note(self, peer: str, problem: str) -> None:
        """Keep why there is no tunnel. The engine dials again and again: the log is told what is new."""
        if self._problems.get(peer, "") != problem:
            self._problems[peer] = problem
            if problem:
                _log.info("no tunnel to a peer's ledger engine", peer=peer, why=problem)
            else:
                _log.info("a tunnel to a peer's ledger engine is open", peer=peer)

    # --- from a peer to the own engine -------------------------------------------------------------

    async def _incoming(self, peer: str, message: bytes, stream: Stream) -> None:
        opening = decode_opening(message)
        if peer not in self._peers:
            raise PeerRefused("no_peer", f"'{self._me}' does not know '{peer}' as an active member.")
        key = (peer, opening.tunnel)
        splice = self._splices.get(key)
        if opening.goes_on != (splice is not None) or (splice is not None and splice.done):
            raise PeerRefused(
                "no_such_tunnel", "No tunnel of that name goes on here, or one is open already."
            )
        if splice is not None:
            stream.accept()
            splice.go_on_in(stream)
        else:
            await self._to_engine(key, stream)
        await stream.ended()

    async def _to_engine(self, key: tuple[str, str], stream: Stream) -> None:
        if self._target is None:
            raise no_engine(self._me, "has no ledger engine that takes connections now")
        try:
            async with asyncio.timeout(ENGINE_S):
                reader, writer = await asyncio.open_connection(*self._target, limit=READ_BYTES)
        except (OSError, TimeoutError) as error:
            raise no_engine(
                self._me, f"does not reach its own ledger engine ({error or 'no answer'})"
            ) from error
        stream.accept()
        # Not as part of this task, which ends with the connection: the tunnel may go on in another one.
        running = self._spawn(self._run(key, Splice(stream.peer, stream, reader, writer)))
        running.add_done_callback(lambda _: cut(writer))

    # --- both ways -------------------------------------------------------------------------------

    async def _run(
        self,
        key: tuple[str, str],
        splice: Splice,
        another: Callable[[], Coroutine[object, object, Stream]] | None = None,
    ) -> None:
        self._splices[key] = splice
        if splice.peer not in self._peers:
            splice.stop(f"'{splice.peer}' is not an active member any more.")
        try:
            await splice.run(another)
        finally:
            del self._splices[key]
            if splice.peer in self._linked and splice.peer in self._peers:
                self._tell_reachable(splice.peer)
            self._bytes_in[splice.peer] += splice.bytes_in
            self._bytes_out[splice.peer] += splice.bytes_out

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def no_engine(me: str, why: str) -> PeerRefused:
    """What a peer's engine cannot be let through to."""
    return PeerRefused("no_engine", f"'{me}' {why}.", safe="Nothing was sent.")


class _Door:
    """A listening socket on loopback, for the life of the node."""

    def __init__(self, knocked: Callable[[socket.socket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._knocked = knocked
        self._retry: asyncio.TimerHandle | None = None
        try:
            self._sock = socket.create_server((_LOOPBACK, 0), backlog=_BACKLOG)
        except OSError as error:
            raise NodeError(
                f"No port on {_LOOPBACK} can be had for a peer's ledger engine: {error.strerror or error}.",
                safe="Studies and other peers go on.",
                do="Look at this machine's limits: open files, and ports in use (`ss -ltn`).",
            ) from error
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self._start()

    def close(self) -> None:
        """Take no more connections."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        if self._retry is not None:
            self._retry.cancel()

    def _start(self) -> None:
        self._retry = None
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # Without free file descriptors this would fail at once, over and over.
            self._loop.remove_reader(self._sock)
            self._retry = self._loop.call_later(_NO_DESCRIPTORS_S, self._start)
            return
        sock.setblocking(False)
        self._knocked(sock)
