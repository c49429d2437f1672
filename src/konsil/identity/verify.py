"""Is this peer who it says it is? A chain is checked against the bundle of its own member, and no other."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy

from konsil.core.digest import bytes_digest
from konsil.errors import IdentityError
from konsil.identity.spiffe_id import SpiffeId
from konsil.identity.svid import (
    BAD_CERTIFICATE,
    MAX_CHAIN,
    der_from_pem,
    load_certificate,
    pem_from_der,
    unix_s,
    uri_name,
    uri_names,
)


def bundle_digest(pem: bytes) -> str:
    """BLAKE3 of a trust bundle, as hex: over its set of certificates, so order and layout do not matter.

    Raises:
        IdentityError: not a trust bundle.
    """
    return bytes_digest(b"".join(_bundle_der(pem)), "bundle")


def canonical_bundle(pem: bytes) -> bytes:
    """The same bundle in the one form in which it is written down: sorted, without doubles or comments.

    Raises:
        IdentityError: not a trust bundle.
    """
    return pem_from_der(_bundle_der(pem))


def verify_chain(chain_der: Sequence[bytes], bundle: bytes, expected_spiffe_id: str, now_s: float) -> int:
    """Check a chain (leaf first) against the trust bundle of the member that it should belong to.

    The path is validated as RFC 5280 says, up to a certificate of this bundle. A certificate that another
    member's authority signed in this trust domain does not lead there, and is refused.

    Args:
        chain_der: leaf and intermediates as the peer sent them; anything after the leaf is only a hint.
        bundle: PEM of the member's own trust bundle: the only anchors.
        expected_spiffe_id: the ID that the leaf must carry.
        now_s: unix time at which all must be valid.

    Returns:
        Unix time at which the first certificate of the path ends.

    Raises:
        IdentityError: anything else than a valid SVID of that ID, issued under that bundle.
    """
    expected = SpiffeId.parse(expected_spiffe_id)
    if not expected.path:
        raise _untrusted(expected_spiffe_id, "an ID without a path names a trust domain, not a node")
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise _untrusted(expected_spiffe_id, f"it came with {len(chain_der)} certificates")
    leaf, *others = (load_certificate(der) for der in chain_der)
    found = uri_name(leaf)
    if found != expected_spiffe_id:
        raise _untrusted(expected_spiffe_id, f"the certificate is that of {found[:200]!r}")
    anchors = [load_certificate(der) for der in _bundle_der(bundle)]
    _check_times(leaf, expected_spiffe_id, now_s)
    try:
        path = _verifier(anchors, now_s).verify(leaf, others).chain
    except (verification.VerificationError, *BAD_CERTIFICATE) as error:
        raise _untrusted(expected_spiffe_id, _plain(error)) from error
    for authority in path[1:]:
        _check_domain(authority, expected)
    return min(unix_s(certificate.not_valid_after_utc) for certificate in path)


def _bundle_der(pem: bytes) -> list[bytes]:
    """A bundle's certificates, sorted, each once; every one must be an authority's."""
    found = sorted(set(der_from_pem(pem)))
    for der in found:
        _check_authority(load_certificate(der))
    return found


def _check_authority(certificate: x509.Certificate) -> None:
    try:
        extensions = certificate.extensions
        is_authority = (
            extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        )
    except (x509.ExtensionNotFound, *BAD_CERTIFICATE):
        is_authority = False
    if not is_authority:
        raise IdentityError(
            f"A trust bundle holds a certificate that is no authority's: {_subject(certificate)}.",
            safe="The bundle was not trusted.",
            do="A bundle holds the certificates that sign a member's SVIDs, and nothing else.",
        )


def _check_domain(authority: x509.Certificate, expected: SpiffeId) -> None:
    """An authority that says which trust domain it is for vouches for no other."""
    for uri in uri_names(authority):
        if uri != f"spiffe://{expected.trust_domain}":
            raise _untrusted(str(expected), f"the authority that signed it is that of {uri[:200]!r}")


def _check_times(leaf: x509.Certificate, spiffe_id: str, now_s: float) -> None:
    """The commonest failures deserve a sentence of their own; the verifier checks the times again."""
    if now_s < leaf.not_valid_before_utc.timestamp():
        raise _untrusted(
            spiffe_id,
            f"its certificate is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC on",
            do="Compare the clocks of both machines: `konsil doctor`.",
        )
    if now_s > leaf.not_valid_after_utc.timestamp():
        raise _untrusted(
            spiffe_id,
            f"its certificate expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC",
            do="The member's Workload API has stopped issuing, or a clock is wrong: `konsil doctor`.",
        )


def _verifier(anchors: list[x509.Certificate], now_s: float) -> verification.ClientVerifier:
    authorities = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _must_be_authority)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _must_sign_certificates)
    )
    leaves = (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _must_not_be_authority)
        .require_present(x509.KeyUsage, Criticality.CRITICAL, _must_only_sign_data)
        .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _must_serve_both_sides)
    )
    return (
        verification.PolicyBuilder()
        .store(verification.Store(anchors))
        .time(dt.datetime.fromtimestamp(now_s, tz=dt.UTC))
        .max_chain_depth(MAX_CHAIN)
        .extension_policies(ca_policy=authorities, ee_policy=leaves)
        .build_client_verifier()
    )


def _must_be_authority(_policy: Policy, _of: x509.Certificate, value: x509.BasicConstraints) -> None:
    if not value.ca:
        raise ValueError("a certificate on the way is no authority's")


def _must_sign_certificates(_policy: Policy, _of: x509.Certificate, value: x509.KeyUsage) -> None:
    if not value.key_cert_sign:
        raise ValueError("a certificate on the way may not sign certificates")


def _must_not_be_authority(
    _policy: Policy, _of: x509.Certificate, value: x509.BasicConstraints | None
) -> None:
    if value is not None and value.ca:
        raise ValueError("an authority's certificate was used as a node's")


def _must_only_sign_data(_policy: Policy, _of: x509.Certificate, value: x509.KeyUsage) -> None:
    if not value.digital_signature or value.key_cert_sign or value.crl_sign:
        raise ValueError("its key usage is not that of a node: digital signature, no signing of certificates")


def _must_serve_both_sides(
    _policy: Policy, _of: x509.Certificate, value: x509.ExtendedKeyUsage | None
) -> None:
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if value is not None and not both <= set(value):
        raise ValueError("its extended key usage does not allow both ends of a connection")


def _subject(certificate: x509.Certificate) -> str:
    return (
        certificate.subject.rfc4514_string()[:200]
        or certificate.public_bytes(serialization.Encoding.DER)[:16].hex()
    )


def _plain(error: Exception) -> str:
    """The verifier's words, without those that only its authors understand."""
    text = str(error).replace("validation failed: ", "")
    if "candidates exhausted" in text:
        return f"its chain does not lead to the member's own trust bundle ({text[:200]})"
    return text[:200]


def _untrusted(spiffe_id: str, why: str, *, do: str = "") -> IdentityError:
    return IdentityError(
        f"A certificate for {spiffe_id} cannot be trusted: {why}.",
        safe="The peer was not believed, and nothing was exchanged with it.",
        do=do or "Compare the member's card with the one on the ledger: `konsil swarm members`.",
        spiffe_id=spiffe_id,
    )
