"""A member's built-in authority: its own trust domain, with a key that is made here and never leaves.

It takes the place of SPIRE at a site that has none. Only the node's own user can reach it.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from konsil.errors import IdentityError
from konsil.identity.files import read_private, write_private
from konsil.identity.spiffe_id import SpiffeId, check_trust_domain
from konsil.identity.svid import BAD_CERTIFICATE, Svid, is_key_of, unix_s, uri_name

AUTHORITY_FILE = "authority.pem"
"""One file for key and certificate: it is there whole, or not at all."""

NEXT_FILE = "authority.next.pem"
"""The authority that is to follow, key and certificate: in the bundle, and signs nothing yet."""

FORMER_FILE = "authority.former.pem"
"""The certificate of the authority before this one, while it is still in the bundle. Its key is gone."""

AUTHORITY_DAYS = 3653
"""Ten years: so long that nobody is surprised by the end of a root, which `konsil node root` changes."""

BACKDATE_S = 300
"""Peers whose clocks are up to this late accept a fresh SVID; `konsil doctor` warns long before."""

MAX_TTL_S = 30 * 24 * 3600
"""An SVID is replaced, not revoked: a longer life would make a stolen one useful."""

_MAX_FILE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Authority:
    """The authority of one trust domain. ``bundle``: what peers are to trust, as PEM, for the member's card:
    its certificate and, while the root changes, that of the one after or before it.
    """

    trust_domain: str
    bundle: bytes
    _certificate: x509.Certificate = field(repr=False)
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, directory: Path, trust_domain: str, file: str = AUTHORITY_FILE) -> Authority:
        """Make a new authority and keep it in a folder, in a file of this name.

        Raises:
            IdentityError: not a trust domain's name, or there is an authority in this folder already.
            ConfigError: the folder cannot be written to.
        """
        check_trust_domain(trust_domain)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign_own(key, trust_domain)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        write_private(directory / file, private + public)
        return cls(trust_domain, public, certificate, key)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """The authority that ``create`` kept in this folder.

        Raises:
            IdentityError: missing, readable by others, torn, or key and certificate do not belong together.
        """
        path = directory / AUTHORITY_FILE
        data = read_private(path, _MAX_FILE_BYTES)
        try:
            key = serialization.load_pem_private_key(data, password=None)
            certificate = x509.load_pem_x509_certificate(data)
        except BAD_CERTIFICATE as error:
            raise _damaged(path, "it is cut off or was changed") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_key_of(certificate, key):
            raise _damaged(path, "its key is not that of its certificate")
        trust_domain = SpiffeId.parse(uri_name(certificate)).trust_domain
        trusted = {certificate.public_bytes(serialization.Encoding.PEM): None} | dict.fromkeys(
            _certificate_in(directory / name, trust_domain)
            for name in (NEXT_FILE, FORMER_FILE)
            if (directory / name).exists()
        )
        return cls(trust_domain, b"".join(trusted), certificate, key)

    @property
    def certificate(self) -> bytes:
        """The certificate that belongs to the key which signs now, as PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def bundle_der(self) -> bytes:
        """The bundle's certificates, one behind the other."""
        return b"".join(
            each.public_bytes(serialization.Encoding.DER)
            for each in x509.load_pem_x509_certificates(self.bundle)
        )

    def issue(self, path: str = "/node", ttl_s: float = 3600, now_s: float | None = None) -> Svid:
        """A fresh SVID with a fresh key.

        Args:
            path: of its SPIFFE ID, with the leading slash.
            ttl_s: how long it is valid from now on, in seconds.
            now_s: unix time; by default this machine's.

        Raises:
            IdentityError: the path is none, or the life is not between 1 second and 30 days.
        """
        spiffe_id = SpiffeId.parse(f"spiffe://{self.trust_domain}{path}")
        if not spiffe_id.path or not 1 <= ttl_s <= MAX_TTL_S:
            raise IdentityError(
                f"An SVID for {spiffe_id} that lives {ttl_s} s cannot be issued.",
                safe="Nothing was issued.",
                do=f"Give a path and a life between 1 and {MAX_TTL_S} s.",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.fromtimestamp(time.time() if now_s is None else now_s, tz=dt.UTC)
        start = max(_whole_s(now) - dt.timedelta(seconds=BACKDATE_S), self._certificate.not_valid_before_utc)
        end = min(_whole_s(now + dt.timedelta(seconds=ttl_s)), self._certificate.not_valid_after_utc)
        if end <= now:
            raise IdentityError(
                f"The authority of {self.trust_domain} has ended: it was valid until {end:%Y-%m-%d}.",
                safe="Nothing was issued.",
                do="Make new keys with `konsil node init`; the others must vote the new card in.",
            )
        if end <= start:
            raise IdentityError(
                f"The authority of {self.trust_domain} is valid only from {start:%Y-%m-%d %H:%M:%S} UTC on.",
                safe="Nothing was issued.",
                do="This machine's clock is behind: compare it with the other members', `konsil doctor`.",
            )
        leaf = self._sign_leaf(key.public_key(), spiffe_id, start, end)
        return Svid(
            spiffe_id=str(spiffe_id),
            chain_der=(leaf.public_bytes(serialization.Encoding.DER),),
            key_der=key.private_bytes(
                serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            not_before_s=unix_s(start),
            not_after_s=unix_s(end),
        )

    def _sign_leaf(
        self, public: ec.EllipticCurvePublicKey, spiffe_id: SpiffeId, start: dt.datetime, end: dt.datetime
    ) -> x509.Certificate:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return (
            x509.CertificateBuilder()
            .subject_name(_name("node", self.trust_domain))  # another than the authority's: OpenSSL needs it
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(leaf=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(_only_uri(str(spiffe_id)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )


def _certificate_in(path: Path, trust_domain: str) -> bytes:
    """The certificate of a root that comes or goes, as PEM."""
    try:
        certificate = x509.load_pem_x509_certificate(read_private(path, _MAX_FILE_BYTES))
        named = uri_name(certificate)
    except BAD_CERTIFICATE as error:
        raise _damaged(path, "it is cut off or was changed") from error
    if named != f"spiffe://{trust_domain}":
        raise _damaged(path, f"it is of {named[:200]!r}")
    return certificate.public_bytes(serialization.Encoding.PEM)


def _sign_own(key: ec.EllipticCurvePrivateKey, trust_domain: str) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    name = _name("authority", trust_domain)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(_only_uri(f"spiffe://{trust_domain}"), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(role: str, trust_domain: str) -> x509.Name:
    """A subject that tells the two apart for people; the SPIFFE ID is what counts. At most 64 characters."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Konsil"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{role} {trust_domain}"[:64]),
        ]
    )


def _whole_s(moment: dt.datetime) -> dt.datetime:
    """Certificates count in seconds: rounded up, so that no life is shorter than was asked for."""
    return dt.datetime.fromtimestamp(math.ceil(moment.timestamp()), tz=dt.UTC)


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_cert_sign=not leaf,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _only_uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _damaged(path: Path, why: str) -> IdentityError:
    return IdentityError(
        f"The authority at {path} cannot be used: {why}.",
        safe="Nothing was changed, and nothing was issued.",
        do="Put it back from a backup; a new authority must be voted in by the other members.",
        path=str(path),
    )
