"""Mutual TLS 1.3 between nodes: contexts made from an SVID in memory, and the check of who is there.

The library's own verification keeps strangers out at the handshake; ``check_peer`` then binds the peer to
exactly one member and that member's own bundle. Both must pass.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from konsil.errors import IdentityError
from konsil.identity.svid import Svid, der_from_pem, load_certificate, uri_name
from konsil.identity.verify import verify_chain

ALPN = "konsil/1"
"""The one protocol that is spoken over these connections."""


class HasSvid(Protocol):
    """Anything that has the node's present SVID: a source, or a fixed one in a test."""

    @property
    def svid(self) -> Svid:
        """The SVID now."""
        ...


def server_context(source: HasSvid, bundles: Iterable[bytes]) -> ssl.SSLContext:
    """A context for connections that peers open.

    It holds the SVID and the bundles of this moment: make one for each connection, or after a change call
    ``refresh``. A bundle that is gone still passes the handshake of an old context, but not ``check_peer``.

    Args:
        source: has the node's SVID.
        bundles: PEM trust bundles of all peers.

    Raises:
        IdentityError: a bundle or the SVID cannot be read.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, source, bundles)
    # Resumption would skip the peer's certificate, and so its expiry and its removal by vote.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def client_context(source: HasSvid, bundle: bytes) -> ssl.SSLContext:
    """A context for a connection to the one peer that has this bundle.

    Raises:
        IdentityError: the bundle or the SVID cannot be read.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, source, [bundle])


def refresh(context: ssl.SSLContext, source: HasSvid) -> None:
    """Give a context the present SVID; connections that are open keep theirs.

    Raises:
        IdentityError: the SVID cannot be used.
    """
    _load_svid(context, source.svid)


def trust(context: ssl.SSLContext, bundles: Iterable[bytes]) -> None:
    """Let a context trust further bundles; ``check_peer`` still decides who each certificate may name.

    Raises:
        IdentityError: a bundle cannot be read.
    """
    authorities = b"".join(der for bundle in bundles for der in der_from_pem(bundle))
    if authorities:
        context.load_verify_locations(cadata=authorities)


def peer_chain(connection: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """The certificates that the peer presented, DER, leaf first; empty if it presented none."""
    leaf = connection.getpeercert(binary_form=True)
    if leaf is None:
        return []
    chain = _unverified_chain(connection)
    return chain if chain and chain[0] == leaf else [leaf, *chain]


def check_peer(
    connection: ssl.SSLObject | ssl.SSLSocket, directory: Mapping[str, bytes], now_s: float | None = None
) -> tuple[str, int]:
    """Who is at the other end? To be called right after the handshake, before a byte is exchanged.

    Args:
        connection: a connection whose handshake is done.
        directory: SPIFFE ID -> PEM bundle of that member; with one entry, when only one may answer.
        now_s: unix time; by default this machine's.

    Returns:
        The peer's SPIFFE ID, and the unix time at which its certificate ends.

    Raises:
        IdentityError: not TLS 1.3, another protocol, no certificate, a stranger, or a certificate that
            does not lead to the bundle of the member it names.
    """
    if connection.version() != "TLSv1.3" or connection.selected_alpn_protocol() != ALPN:
        raise IdentityError(
            f"The other end speaks {connection.version()} and {connection.selected_alpn_protocol()!r}, "
            f"not TLSv1.3 and {ALPN!r}.",
            safe="Nothing was exchanged with it.",
            do="Something else than a Konsil node is at this address, or between the two.",
        )
    chain = peer_chain(connection)
    if not chain:
        raise IdentityError("The other end showed no certificate.", safe="Nothing was exchanged with it.")
    spiffe_id = uri_name(load_certificate(chain[0]))
    bundle = directory.get(spiffe_id)
    if bundle is None:
        raise IdentityError(
            f"A stranger is at the other end: {spiffe_id[:200]!r} is not the node that is expected here.",
            safe="Nothing was exchanged with it.",
            do="If it should be a member, compare its card with the ledger: `konsil swarm members`.",
            spiffe_id=spiffe_id,
        )
    return spiffe_id, verify_chain(chain, bundle, spiffe_id, time.time() if now_s is None else now_s)


def _context(protocol: int, source: HasSvid, bundles: Iterable[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # an SVID names a SPIFFE ID, not a host; check_peer looks at it
    context.verify_mode = ssl.CERT_REQUIRED
    # A bundle may hold an authority that another one signed: it is an anchor all the same.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    trust(context, bundles)
    _load_svid(context, source.svid)
    return context


def _load_svid(context: ssl.SSLContext, svid: Svid) -> None:
    """The ssl module takes keys from files only: this one is in memory and has no name."""
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(svid.key_pem + svid.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise IdentityError(
            f"The SVID of {svid.spiffe_id} cannot be used for TLS: {error}.",
            safe="The key stayed in memory; no connection was opened.",
            do="Ask whoever runs the Workload API to issue a new SVID.",
        ) from error
    finally:
        os.close(descriptor)


def _unverified_chain(connection: Any) -> list[bytes]:
    """Python 3.13 has a method for it; before, the same one stands on the object within."""
    if hasattr(connection, "get_unverified_chain"):
        return list(connection.get_unverified_chain())
    inner = connection._sslobj  # noqa: SLF001 - the only way to the intermediates before Python 3.13
    return [certificate.public_bytes(_ENCODING_DER) for certificate in inner.get_unverified_chain() or ()]


_ENCODING_DER = 2  # X509_FILETYPE_ASN1 of OpenSSL, as the _ssl module knows it
