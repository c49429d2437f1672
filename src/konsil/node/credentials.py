"""This node's identity as the transport wants it: contexts from the present SVID, peers from the ledger."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping

from konsil.errors import IdentityError
from konsil.identity.svid import Svid
from konsil.identity.tls import HasSvid, check_peer, client_context, server_context
from konsil.node.directory import by_spiffe_id
from konsil.transport.base import PeerAddress


class Credentials:
    """Asked anew for each connection, so that a rotated key is used from the next connection on."""

    def __init__(self, source: HasSvid) -> None:
        """Use a source that somebody else keeps open."""
        self.source = source
        self._accepting: tuple[Svid, tuple[bytes, ...], ssl.SSLContext] | None = None

    def client_context(self, peer: PeerAddress) -> ssl.SSLContext:
        """For a connection to this peer; trusts its bundle only."""
        return client_context(self.source, peer.bundle)

    def server_context(self, peers: Iterable[PeerAddress]) -> ssl.SSLContext:
        """For a connection from any of these peers.

        The same one until the SVID or a bundle changes: for dozens of peers, all of which connect when a node
        starts, it takes milliseconds to make.
        """
        svid, bundles = self.source.svid, tuple(peer.bundle for peer in peers)
        if self._accepting is None or self._accepting[0] is not svid or self._accepting[1] != bundles:
            self._accepting = svid, bundles, server_context(self.source, bundles)
        return self._accepting[2]

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
