"""The Ed25519 key with which a member signs its calls on the ledger."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from konsil.errors import IdentityError
from konsil.identity.files import read_private, write_private
from konsil.identity.svid import BAD_CERTIFICATE

_PUBLIC = re.compile(r"[0-9a-f]{64}")
_MAX_FILE_BYTES = 4 * 1024


@dataclass(frozen=True)
class LedgerKey:
    """A member's ledger key. ``public``: 32 bytes as hex, as it stands on the card and on the ledger."""

    public: str
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, path: Path) -> LedgerKey:
        """Make a key and keep it in a file that only its owner can read.

        Raises:
            IdentityError: there is a key in this place already.
            ConfigError: the folder cannot be written to.
        """
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # The public half stands beside it, so that a changed file is noticed and not used as another key.
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_private(path, private + public)
        return cls(_public_hex(key), key)

    @classmethod
    def load(cls, path: Path) -> LedgerKey:
        """The key that ``create`` kept there.

        Raises:
            IdentityError: missing, readable by others, torn, or changed.
        """
        data = read_private(path, _MAX_FILE_BYTES)
        try:
            key = serialization.load_pem_private_key(data, password=None)
            public = serialization.load_pem_public_key(data[data.index(b"-----BEGIN PUBLIC KEY-----") :])
        except BAD_CERTIFICATE as error:
            raise _damaged(path, "it is cut off or was changed") from error
        if not isinstance(key, Ed25519PrivateKey) or key.public_key() != public:
            raise _damaged(path, "its two halves do not belong together")
        return cls(_public_hex(key), key)

    @property
    def seed(self) -> bytes:
        """The private half, 32 bytes, for an engine that votes with this key."""
        return self._key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """The signature over some bytes: 64 bytes."""
        return self._key.sign(data)


def verify(public_hex: str, data: bytes, signature: bytes) -> bool:
    """Whether this is that key's signature over these bytes; False for a key or signature that is none."""
    try:
        check_public(public_hex)
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, data)
    except (IdentityError, InvalidSignature, *BAD_CERTIFICATE):
        return False
    return True


def check_public(public_hex: str) -> str:
    """The key itself, if it is one: 64 lower-case hex digits.

    Raises:
        IdentityError: anything else.
    """
    if not _PUBLIC.fullmatch(public_hex):
        raise IdentityError(
            f"{public_hex[:80]!r} is not a ledger key.",
            safe="Nothing was taken from it.",
            do="A ledger key is an Ed25519 public key in hex, as `konsil node init` writes it into the card.",
        )
    return public_hex


def _public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _damaged(path: Path, why: str) -> IdentityError:
    return IdentityError(
        f"The ledger key at {path} cannot be used: {why}.",
        safe="Nothing was changed, and nothing was signed.",
        do="Put it back from a backup; with another key the member must be voted in again.",
        path=str(path),
    )
