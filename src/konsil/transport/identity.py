"""What a transport needs to know of identities; `konsil.identity` has it."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Protocol

from konsil.transport.base import PeerAddress


class Identity(Protocol):
    """Who this node is and how it recognises others. Asked anew for each connection, so that keys rotate."""

    def client_context(self, peer: PeerAddress) -> ssl.SSLContext:
        """For a connection to this peer: TLS 1.3, own certificate, trusts the peer's bundle only."""
        ...

    def server_context(self, peers: Iterable[PeerAddress]) -> ssl.SSLContext:
        """For a connection from any of these peers: TLS 1.3, own certificate, demands one of theirs."""
        ...

    def check_peer(self, connection: ssl.SSLSocket, peers: Mapping[str, PeerAddress]) -> tuple[str, float]:
        """After the handshake: which of these members it is, and the unix time at which its certificate ends.

        Raises:
            IdentityError: none of them, or not by its own bundle.
        """
        ...

    @property
    def expires_s(self) -> float:
        """Unix time at which the own certificate ends."""
        ...
