"""A SPIFFE X.509-SVID as a value, and certificates in DER and PEM: limits are checked here, once."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from konsil.errors import IdentityError

MAX_CHAIN = 8
"""Certificates in a chain: SPIRE with an upstream authority sends two or three."""

MAX_BUNDLE = 32
"""Certificates in one trust bundle: SPIRE keeps two or three while its authority rotates."""

MAX_CERTIFICATE_BYTES = 16 * 1024
"""One certificate in DER: an RSA-4096 one with many extensions is below 4 KiB."""

MAX_PEM_BYTES = MAX_BUNDLE * 2 * MAX_CERTIFICATE_BYTES
"""The longest PEM that is looked at; base64 and comments included."""

SvidKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

BAD_CERTIFICATE = (
    ValueError,
    TypeError,
    InternalError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UserWarning,  # where warnings are errors: odd names, and what the library will soon refuse itself
)
"""What the library raises when bytes are not the certificate or key they should be."""

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)

_SEQUENCE = 0x30
_LONG_FORM = 0x80
_HEADER_BYTES = 2
_MAX_LENGTH_BYTES = 3
_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
# No dash within a block: else every beginning without an end would be looked through to the text's end.
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----\s[^-]*-----END CERTIFICATE-----")


@dataclass(frozen=True)
class Svid:
    """A node's identity: a chain of certificates (leaf first) and the leaf's private key.

    ``key_der``: PKCS #8, never shown by ``repr``. Times in unix seconds.
    """

    spiffe_id: str
    chain_der: tuple[bytes, ...] = field(repr=False)
    key_der: bytes = field(repr=False)
    not_before_s: int
    not_after_s: int

    @cached_property
    def chain_pem(self) -> bytes:
        """The whole chain, leaf first."""
        return pem_from_der(self.chain_der)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, not encrypted: for memory only."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        """A signature with the leaf's key: ECDSA (DER) or RSA-PSS, both with SHA-256."""
        key = self.private_key
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(data, ec.ECDSA(hashes.SHA256()))
        return key.sign(data, _PSS, hashes.SHA256())

    @cached_property
    def private_key(self) -> SvidKey:
        """The leaf's private key.

        Raises:
            IdentityError: not an EC or RSA key in PKCS #8.
        """
        try:
            key = serialization.load_der_private_key(self.key_der, password=None)
        except BAD_CERTIFICATE as error:
            raise _unreadable("private key of an SVID", error) from error
        if not isinstance(key, SvidKey):
            raise _unreadable("private key of an SVID", TypeError("neither an EC nor an RSA key"))
        return key


def is_signature(leaf: x509.Certificate, data: bytes, signature: bytes) -> bool:
    """Whether ``Svid.sign`` made this signature over these bytes with this certificate's key."""
    try:
        key = leaf.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, _PSS, hashes.SHA256())
        else:
            return False
    except (InvalidSignature, *BAD_CERTIFICATE):
        return False
    return True


def make_svid(chain_der: Sequence[bytes], key_der: bytes) -> Svid:
    """A chain and its key as a value, after a check that they belong together.

    Raises:
        IdentityError: unreadable, no single SPIFFE ID in the leaf, or the key of another certificate.
    """
    leaf = load_certificate(chain_der[0]) if chain_der else None
    if leaf is None:
        raise IdentityError("An SVID came without a certificate.", safe="It was not used.")
    svid = Svid(
        spiffe_id=uri_name(leaf),
        chain_der=tuple(chain_der),
        key_der=key_der,
        not_before_s=unix_s(leaf.not_valid_before_utc),
        not_after_s=unix_s(leaf.not_valid_after_utc),
    )
    if not is_key_of(leaf, svid.private_key):
        raise IdentityError(
            f"The private key of {svid.spiffe_id} is not the one of its certificate.",
            safe="Neither was used.",
            do="Ask whoever runs the Workload API to issue a new SVID.",
        )
    return svid


def is_key_of(certificate: x509.Certificate, key: SvidKey) -> bool:
    """Whether a private key is that of a certificate; of one whose own cannot be read, no key is."""
    try:
        return key.public_key() == certificate.public_key()
    except BAD_CERTIFICATE:
        return False


def uri_name(certificate: x509.Certificate) -> str:
    """The one URI among a certificate's alternative names; the caller knows what it must be.

    Raises:
        IdentityError: there is none, or more than one: such a certificate is no SVID.
    """
    uris = uri_names(certificate)
    if len(uris) != 1:
        raise IdentityError(
            f"A certificate carries {len(uris)} URI names; an SVID carries exactly one, its SPIFFE ID.",
            safe="The certificate was not trusted.",
            do="The member must issue its certificate again, with its SPIFFE ID as the only URI.",
            uris=len(uris),
        )
    return uris[0]


def uri_names(certificate: x509.Certificate) -> list[str]:
    """The URIs among a certificate's alternative names.

    Raises:
        IdentityError: its extensions cannot be read.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except BAD_CERTIFICATE as error:
        raise _unreadable("certificate", error) from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def load_certificate(der: bytes) -> x509.Certificate:
    """One certificate from DER.

    Raises:
        IdentityError: over the limit, or not a certificate.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise _unreadable("certificate", ValueError(f"it has {len(der)} bytes"))
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
        # The library reads these only when they are asked for: what cannot be read must be found here.
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except BAD_CERTIFICATE as error:
        raise _unreadable("certificate", error) from error
    if serial <= 0:
        raise _unreadable("certificate", ValueError(f"its serial number is {serial}"))
    return certificate


def split_der(data: bytes, limit: int = MAX_BUNDLE) -> tuple[bytes, ...]:
    """Certificates that stand one behind the other in DER, as the Workload API sends them.

    Raises:
        IdentityError: the bytes do not divide into certificates, or into more than ``limit``.
    """
    found: list[bytes] = []
    start = 0
    while start < len(data):
        end = start + _der_bytes(data[start : start + _HEADER_BYTES + _MAX_LENGTH_BYTES])
        if end > len(data) or len(found) == limit:
            raise _unreadable("row of certificates", ValueError("cut off, or too many"))
        found.append(data[start:end])
        start = end
    return tuple(found)


def _der_bytes(head: bytes) -> int:
    """Length of the ASN.1 sequence that starts with these bytes, its own header included."""
    if len(head) < _HEADER_BYTES or head[0] != _SEQUENCE:
        raise _unreadable("row of certificates", ValueError("no ASN.1 sequence"))
    if head[1] < _LONG_FORM:
        return _HEADER_BYTES + head[1]
    count = head[1] - _LONG_FORM
    if not 1 <= count <= _MAX_LENGTH_BYTES or len(head) < _HEADER_BYTES + count:
        raise _unreadable("row of certificates", ValueError("no sensible length"))
    return _HEADER_BYTES + count + int.from_bytes(head[2 : 2 + count])


def pem_from_der(certificates: Sequence[bytes]) -> bytes:
    """Certificates as PEM, in the order given."""
    return b"".join(load_certificate(der).public_bytes(serialization.Encoding.PEM) for der in certificates)


def der_from_pem(pem: bytes, limit: int = MAX_BUNDLE) -> tuple[bytes, ...]:
    """The certificates of a PEM text, in its order; text around them is ignored.

    Raises:
        IdentityError: no certificate, more than ``limit``, too long, or unreadable.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise _unreadable("PEM text", ValueError(f"it has {len(pem)} bytes"))
    blocks, begun = _PEM_BLOCK.findall(pem), pem.count(_PEM_BEGIN)
    if not 1 <= begun <= limit:
        raise _unreadable("PEM text", ValueError(f"it holds {begun} certificates"))
    if len(blocks) != begun:
        raise _unreadable("PEM text", ValueError("one of its certificates breaks off"))
    try:
        certificates = [x509.load_pem_x509_certificate(block) for block in blocks]
    except BAD_CERTIFICATE as error:
        raise _unreadable("PEM text", error) from error
    return tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates)


def unix_s(moment: dt.datetime) -> int:
    """A moment as unix seconds."""
    return int(moment.timestamp())


def _unreadable(what: str, error: Exception) -> IdentityError:
    return IdentityError(
        f"A {what} cannot be read: {error}.",
        safe="Nothing was taken from it.",
        do="Ask its sender for it again.",
    )
