"""This node's identity as the transport wants it: contexts from the present SVID, peers from the ledger."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping

from konsil.errors import IdentityError
from konsil.identity.source import SvidSource
from konsil.identity.tls import check_peer, client_context, server_context
from konsil.node.directory import by_spiffe_id
from konsil.transport.base import PeerAddress


class Credentials:
    """Asked anew for each connection, so that a rotated key is used from the next connection on."""

    def __init__(self, source: SvidSource) -> None:
        """Use a source that somebody else keeps open."""
        self.source = source

    def client_context(self, peer: PeerAddress) -> ssl.SSLContext:
        """For a connection to this peer; trusts its bundle only."""
        return client_context(self.source, peer.bundle)

    def server_context(self, peers: Iterable[PeerAddress]) -> ssl.SSLContext:
        """For a connection from any of these peers."""
        return server_context(self.source, [peer.bundle for peer in peers])

    def check_peer(self, connection: ssl.SSLSocket, peers: Mapping[str, PeerAddress]) -> tuple[str, float]:
        """Which of these members is at the other end, and until when its certificate is valid.

        Raises:
            IdentityError: none of them.
        """
        spiffe_id, not_after_s = check_peer(connection, by_spiffe_id(peers))
        for name, peer in peers.items():
            if peer.spiffe_id == spiffe_id:
                return name, float(not_after_s)
        raise IdentityError(f"{spiffe_id} is no member of this swarm.", safe="Nothing was exchanged with it.")

    @property
    def expires_s(self) -> float:
        """Unix time at which the own certificate ends."""
        return float(self.source.svid.not_after_s)
