"""What a transport gives a node: requests to peers by name, answers to theirs, and streams both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from konsil.transport.stream import Stream, StreamHandler

Buffer = bytes | bytearray | memoryview


class Reply(NamedTuple):
    """An answer: the message's bytes, and raw bytes that follow it (served without a copy)."""

    message: bytes
    body: Buffer = b""


class Received(NamedTuple):
    """An answer as it arrived. ``body`` is empty where it went into the caller's own memory."""

    message: bytes
    body: bytes | bytearray
    body_bytes: int


Handler = Callable[[str, bytes], Awaitable[Reply]]
"""(peer's name, request's bytes) -> reply. May raise a KonsilError: the transport's user encodes it."""


class PeerAddress(NamedTuple):
    """How to reach and recognise a peer. ``bundle``: PEM certificates of its trust domain.
    ``addresses``: "host:port"; empty for a member that can only dial out.
    """

    name: str
    spiffe_id: str
    addresses: tuple[str, ...]
    bundle: bytes


class PeerLink(NamedTuple):
    """A peer as the transport sees it now. ``via``: "dialled", "accepted" or "" without a connection.
    ``bytes_in``: received over its present connections.
    """

    name: str
    connected: bool
    via: str
    rtt_ms: float
    problem: str
    bytes_in: int = 0


class Transport(Protocol):
    """Connections to every peer in the directory, kept up by themselves."""

    @property
    def bytes_out(self) -> int:
        """Bytes sent to peers since the start, frames' headers included."""
        ...

    @property
    def bytes_in(self) -> int:
        """Bytes received from peers since the start, frames' headers included."""
        ...

    async def request(
        self,
        peer: str,
        message: bytes,
        *,
        timeout_s: float,
        into: memoryview | None = None,
        limit_bytes: int = 0,
    ) -> Received:
        """Send one request and wait for its answer.

        Args:
            peer: the peer's member name.
            message: the request's bytes.
            timeout_s: the deadline for the whole exchange, connecting included.
            into: memory for the answer's raw bytes; another length is an error, except none at all
                (``body_bytes`` is 0 then: the peer's message says why).
            limit_bytes: without ``into``: the most raw bytes that will be taken.

        Raises:
            PeerUnreachable: no connection, or it broke, or the deadline passed.
            PeerRefused: the peer's handler raised instead of answering.
            FrameError: the answer breaks a limit; the connection is closed.
        """
        ...

    def set_peers(self, peers: Iterable[PeerAddress]) -> None:
        """The directory, whenever the ledger changes it: connects to new peers, cuts off removed ones."""
        ...

    def links(self) -> tuple[PeerLink, ...]:
        """Every peer of the directory, as it is connected now."""
        ...

    async def close(self) -> None:
        """Close every connection and stop listening."""
        ...


class StreamTransport(Transport, Protocol):
    """A transport that carries streams beside requests, over the same connections, whoever dialled."""

    async def open_stream(self, peer: str, message: bytes, *, timeout_s: float) -> Stream:
        """Open a stream and wait until the peer has accepted it.

        Args:
            peer: the peer's member name.
            message: what the stream is for; at most 1 KiB.
            timeout_s: the deadline for that, connecting included.

        Raises:
            PeerUnreachable: no connection, or it broke, or the deadline passed.
            PeerRefused: the peer does not accept it, or too many are open; the error has the reason.
            FrameError: the message is over its limit.
        """
        ...

    def serve_streams(self, handler: StreamHandler | None) -> None:
        """Hand streams that peers open to this from now on; without one they are refused."""
        ...

    def watch_links(self, told: Callable[[str, bool], None]) -> None:
        """Call this with a peer's name whenever it is connected, and whenever it is not any more."""
        ...
