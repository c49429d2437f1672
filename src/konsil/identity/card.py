"""The public card of a member: what the others need to recognise it, signed with both of its keys.

A card is a file that people can mail. It is JSON in exactly one form, so that a card and its digest stand
for each other. The SVID's signature says that this trust domain speaks for the ledger key, the ledger
key's signature (over the first one too) says that the ledger key speaks for this SPIFFE ID.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.messages import MAX_CARD_BYTES
from konsil.core.rules.calls import MemberRecord
from konsil.errors import IdentityError
from konsil.identity.files import write_public
from konsil.identity.ledger_key import LedgerKey, check_public, verify
from konsil.identity.spiffe_id import SpiffeId
from konsil.identity.svid import MAX_CHAIN, Svid, der_from_pem, is_signature, load_certificate, pem_from_der
from konsil.identity.verify import bundle_digest, canonical_bundle, verify_chain

CARD_VERSION = 1
MAX_ADDRESSES = 8
"""Addresses of one node: a few names and networks; each costs its peers an attempt to connect."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_MAX_PORT = 65535
_MAX_TIME_S = 2**33  # the year 2242: beyond what certificates and calendars agree on
_MAX_NAME = 63


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member's card. Signatures are hex.

    ``bundle``: PEM of its trust domain, sorted. ``ledger_key``: Ed25519, hex. ``addresses``: "host:port".
    ``issued_s``: unix time at which ``chain`` (PEM, leaf first) was valid and both keys signed.
    ``witness``: it helps to keep the ledger and takes part in no study.
    """

    version: int
    name: str
    spiffe_id: str
    ledger_key: str
    addresses: tuple[str, ...]
    witness: bool
    issued_s: int
    bundle: str
    chain: str
    svid_signature: str
    ledger_signature: str


class HasSvid(Protocol):
    """Anything that has the node's present SVID."""

    @property
    def svid(self) -> Svid:
        """The SVID now."""
        ...


def make_card(
    name: str,
    identity: Svid | HasSvid,
    bundle: bytes,
    ledger_key: LedgerKey,
    addresses: Sequence[str] = (),
    *,
    witness: bool = False,
    now_s: float | None = None,
) -> Card:
    """Make and sign a card.

    Args:
        name: the member's name: small letters, digits, hyphens; 63 characters at most.
        identity: its SVID, or what has it.
        bundle: PEM of its trust domain.
        ledger_key: signs its calls.
        addresses: "host:port" where its node listens; empty if it can only dial out.
        witness: it takes part in no study.
        now_s: unix time; by default this machine's.

    Raises:
        IdentityError: the card would not pass ``check_card``.
    """
    svid = identity if isinstance(identity, Svid) else identity.svid
    card = Card(
        version=CARD_VERSION,
        name=name,
        spiffe_id=svid.spiffe_id,
        ledger_key=ledger_key.public,
        addresses=tuple(addresses),
        witness=witness,
        issued_s=int(time.time() if now_s is None else now_s),
        bundle=canonical_bundle(bundle).decode(),
        chain=svid.chain_pem.decode(),
        svid_signature="",
        ledger_signature="",
    )
    card = _replace(card, svid_signature=svid.sign(_svid_statement(card)).hex())
    card = _replace(card, ledger_signature=ledger_key.sign(_ledger_statement(card)).hex())
    check_card(card)
    return card


def check_card(card: Card) -> None:
    """See that a card is what it says, as of the time at which it was made.

    Raises:
        IdentityError: another version, a name, ID, key or address that is none, a chain that does not lead
            to the card's bundle, or a signature that does not fit.
    """
    if card.version != CARD_VERSION:
        raise _bad(card, f"it has version {card.version}, and this Konsil reads version {CARD_VERSION}")
    if not _NAME.fullmatch(card.name):
        raise _bad(card, f"a member's name has 1 to {_MAX_NAME} small letters, digits and hyphens")
    if str(SpiffeId.parse(card.spiffe_id)) != card.spiffe_id or not 0 <= card.issued_s < _MAX_TIME_S:
        raise _bad(card, "its SPIFFE ID or its date is none")
    check_public(card.ledger_key)
    if len(card.addresses) > MAX_ADDRESSES or len(set(card.addresses)) != len(card.addresses):
        raise _bad(card, f"it has an address twice, or more than {MAX_ADDRESSES}")
    for address in card.addresses:
        if not is_address(address):
            raise _bad(card, f"{address[:200]!r} is not an address of the form host:port")
    chain = der_from_pem(card.chain.encode(), MAX_CHAIN)
    bundle = card.bundle.encode()
    if canonical_bundle(bundle) != bundle or pem_from_der(chain) != card.chain.encode():
        raise _bad(card, "its certificates are not in the one form that a card has")
    verify_chain(chain, bundle, card.spiffe_id, card.issued_s)
    signature = _unhex(card.svid_signature)
    if not is_signature(load_certificate(chain[0]), _svid_statement(card), signature):
        raise _bad(card, "the signature of its SPIFFE identity does not fit: the card was changed")
    if not verify(card.ledger_key, _ledger_statement(card), _unhex(card.ledger_signature)):
        raise _bad(card, "the signature of its ledger key does not fit: the card was changed")


def read_card(data: bytes) -> Card:
    """A card from its file, checked.

    Raises:
        IdentityError: over the limit, no card, not in the one form of a card, or it does not pass
            ``check_card``.
    """
    if len(data) > MAX_CARD_BYTES:
        raise _unreadable(f"it has {len(data)} bytes, and a card at most {MAX_CARD_BYTES}")
    try:
        card = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(str(error)) from error
    if encode_card(card) != data:
        raise _unreadable("it is not laid out as Konsil wrote it: it was changed on the way")
    check_card(card)
    return card


def encode_card(card: Card) -> bytes:
    """A card as the bytes of its file: readable JSON, always the same for the same card."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def write_card(card: Card, path: Path) -> None:
    """Write a card to a file, in place of an older one.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    write_public(path, encode_card(card))


def card_digest(card: Card) -> str:
    """The card's digest as it stands on the ledger: BLAKE3 of the bytes of its file, as hex."""
    return bytes_digest(encode_card(card), "card")


def member_record(card: Card) -> MemberRecord:
    """What of a card goes on the ledger.

    Raises:
        IdentityError: its bundle is none.
    """
    return MemberRecord(
        name=card.name,
        spiffe_id=card.spiffe_id,
        ledger_key=card.ledger_key,
        bundle=bundle_digest(card.bundle.encode()),
        card=card_digest(card),
        addresses=card.addresses,
        witness=card.witness,
    )


def check_record(card: Card, record: MemberRecord) -> None:
    """See that a card is the one that the ledger knows; only the addresses may have changed since.

    Raises:
        IdentityError: it is another.
    """
    if msgspec.structs.replace(member_record(card), addresses=record.addresses) != record:
        raise _bad(card, f"it is not the card that the ledger has for {record.name!r}")


def is_address(address: str) -> bool:
    """Whether a text is "host:port": a host's name, an IPv4 address, or an IPv6 one in brackets."""
    host, _, port = address.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
        return False
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    return _HOST.fullmatch(host) is not None


_decoder = msgspec.json.Decoder(Card)


def _replace(card: Card, **changes: Any) -> Card:
    return msgspec.structs.replace(card, **changes)


def _svid_statement(card: Card) -> bytes:
    unsigned = _replace(card, svid_signature="", ledger_signature="")
    return b"konsil v1 card, by its SVID\n" + encode_card(unsigned)


def _ledger_statement(card: Card) -> bytes:
    return b"konsil v1 card, by its ledger key\n" + encode_card(_replace(card, ledger_signature=""))


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text) if _HEX.fullmatch(text) else b""


def _bad(card: Card, why: str) -> IdentityError:
    return IdentityError(
        f"The card of {card.name[:_MAX_NAME]!r} cannot be trusted: {why}.",
        safe="Nothing was taken from it.",
        do="Ask the member for its card again, and compare its digest by telephone.",
        member=card.name,
    )


def _unreadable(why: str) -> IdentityError:
    return IdentityError(
        f"This is not a member's card: {why}.",
        safe="Nothing was taken from it.",
        do="Ask the member for the file that `konsil node init` wrote.",
    )
