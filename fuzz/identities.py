"""Who somebody says to be: cards, certificates, bundles, SPIFFE IDs, Workload APIs, files of keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import world
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from target import Target, must, refusal

from konsil.core.messages import MAX_CARD_BYTES
from konsil.core.rules import MemberRecord
from konsil.core.rules.members import why_not_a_record
from konsil.errors import IdentityError
from konsil.identity import card as card_module
from konsil.identity.authority import AUTHORITY_FILE, Authority
from konsil.identity.card import Card, check_record, encode_card, make_card, member_record, read_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.spiffe_id import SpiffeId
from konsil.identity.svid import (
    MAX_BUNDLE,
    Svid,
    der_from_pem,
    load_certificate,
    make_svid,
    pem_from_der,
    split_der,
    uri_names,
)
from konsil.identity.verify import bundle_digest, canonical_bundle, verify_chain
from konsil.identity.workload_wire import WireSvid, decode_svids, encode_svids

KIB = 1024


class Own(NamedTuple):
    """A member's keys."""

    authority: Authority
    svid: Svid
    key: LedgerKey


@cache
def own() -> Own:
    """Of the one who tries."""
    authority = Authority.create(world.scratch() / "keys", "a.example")
    return Own(authority, authority.issue(ttl_s=24 * 3600), world.key("a"))


# --- cards -----------------------------------------------------------------------------------------


def read_a_card(data: bytes) -> bool:
    """A card that is read is the one text of itself, and its record is fit for the ledger."""
    try:
        card = read_card(data)
    except IdentityError as error:
        refusal(error)
        return False
    must(encode_card(card) == data, "two texts of one card")
    record = member_record(card)
    must(isinstance(record, MemberRecord), "no record")
    why = why_not_a_record(record)
    must(not why, f"a card that the contract would refuse: {why}")
    check_record(card, record)
    return True


def card_of_its_member(data: bytes) -> bool:
    """JSON: what a member writes on its own card; both of its keys sign whatever it is."""
    try:
        card = msgspec.json.decode(data, type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    mine = own()
    card = replace(card, svid_signature="", ledger_signature="")
    card = replace(card, svid_signature=mine.svid.sign(card_module._svid_statement(card)).hex())  # noqa: SLF001
    statement = card_module._ledger_statement(card)  # noqa: SLF001
    return read_a_card(encode_card(replace(card, ledger_signature=mine.key.sign(statement).hex())))


@cache
def card_seeds() -> list[bytes]:
    """As `konsil node init` writes it."""
    mine = own()
    card = make_card("a", mine.svid, mine.authority.bundle, mine.key, ("a.example:7400", "[::1]:7400"))
    return [encode_card(card)]


# --- certificates ----------------------------------------------------------------------------------


def check_chain(data: bytes) -> bool:
    """Certificates one behind the other, as a peer might show them."""
    try:
        chain = split_der(data)
        for der in chain:
            uri_names(load_certificate(der))
        verify_chain(chain, own().authority.bundle, "spiffe://a.example/node", time.time())
    except IdentityError as error:
        refusal(error)
        return False
    must(b"".join(chain) == data, "bytes between certificates")
    must(
        uri_names(load_certificate(chain[0])) == ["spiffe://a.example/node"],
        "another identity was let through",
    )
    return True


def check_signed_leaf(data: bytes) -> bool:
    """The inside of a certificate that the member's own authority signs, whatever it is."""
    if len(data) > 8 * KIB:
        return False
    key = own().authority._key  # noqa: SLF001 - the fuzzer is the member
    signature = key.sign(data, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    return check_chain(_der(0x30, data + algorithm + _der(0x03, b"\x00" + signature)))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def chain_seeds() -> list[bytes]:
    """A leaf, and one with its authority."""
    leaf, authority = own().svid.chain_der[0], own().authority.bundle_der
    return [leaf, leaf + authority, authority]


def leaf_seeds() -> list[bytes]:
    """The inside of a node's and of an authority's certificate."""
    return [
        load_certificate(der).tbs_certificate_bytes
        for der in (own().svid.chain_der[0], own().authority.bundle_der)
    ]


def read_bundle(data: bytes) -> bool:
    """A trust bundle has one form."""
    try:
        canonical = canonical_bundle(data)
    except IdentityError as error:
        refusal(error)
        return False
    must(canonical_bundle(canonical) == canonical, "a bundle's one form is not its own")
    must(bundle_digest(canonical) == bundle_digest(data), "two digests of one bundle")
    must(0 < len(der_from_pem(canonical)) <= MAX_BUNDLE, "more certificates than a bundle may have")
    return True


@cache
def bundle_seeds() -> list[bytes]:
    """One certificate, and two with text around them."""
    bundle = own().authority.bundle
    other = Authority.create(world.scratch() / "other", "b.example").bundle
    return [bundle, b"# ours\n" + other + bundle + bundle]


def read_spiffe_id(data: bytes) -> bool:
    """A SPIFFE ID is its own one form."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    try:
        parsed = SpiffeId.parse(text)
    except IdentityError as error:
        refusal(error)
        return False
    must(str(parsed) == text and text.isascii() and ".." not in parsed.path.split("/"), "two forms of one ID")
    return True


def spiffe_id_seeds() -> list[bytes]:
    """Of a node, and with a longer path."""
    return [b"spiffe://a.example/node", b"spiffe://a/b/c"]


# --- the Workload API ------------------------------------------------------------------------------


def read_workload(data: bytes) -> bool:
    """An answer of a Workload API."""
    try:
        svids = decode_svids(data)
    except IdentityError as error:
        refusal(error)
        return False
    must(decode_svids(encode_svids(svids)) == svids, "SVIDs do not come back")
    good = 0
    for found in svids[:4]:
        try:
            made = make_svid(split_der(found.chain), found.key)
            canonical_bundle(pem_from_der(split_der(found.bundle)))
        except IdentityError as error:
            refusal(error)
            continue
        must(made.private_key.public_key() == x509.load_der_x509_certificate(made.chain_der[0]).public_key(),
             "a key of another certificate")  # fmt: skip
        good += 1
    return good > 0


def workload_seeds() -> list[bytes]:
    """As the built-in authority answers."""
    mine = own()
    one = WireSvid(mine.svid.spiffe_id, b"".join(mine.svid.chain_der), mine.svid.key_der,
                   mine.authority.bundle_der, "internal")  # fmt: skip
    return [encode_svids((one,)), encode_svids((one, one._replace(hint="")))]


# --- key files -------------------------------------------------------------------------------------


def _private(name: str, data: bytes) -> Path:
    folder = world.scratch() / "opened"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def _opened(load: Callable[[], object]) -> bool:
    try:
        load()
    except IdentityError as error:
        refusal(error)
        return False
    return True


def open_keys(data: bytes) -> bool:
    """A damaged file of keys."""
    path = _private("ledger.pem", data)
    ledger = _opened(lambda: LedgerKey.load(path))
    authority = _private(AUTHORITY_FILE, data)
    return _opened(lambda: Authority.load(authority.parent)) or ledger


@cache
def key_seeds() -> list[bytes]:
    """As they are made."""
    LedgerKey.create(world.scratch() / "seed" / "ledger.pem")
    encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    own()
    return [
        (world.scratch() / "seed" / "ledger.pem").read_bytes(),
        (world.scratch() / "keys" / AUTHORITY_FILE).read_bytes(),
        encrypted,
    ]


_CARD_BYTES = MAX_CARD_BYTES + KIB
TARGETS: Sequence[Target] = (
    Target("card", "a member's card", read_a_card, card_seeds, "json", _CARD_BYTES, 1.0),
    Target("own_card", "a card its member signed", card_of_its_member, card_seeds, "json", _CARD_BYTES, 1.0),
    Target("chain", "a peer's certificates", check_chain, chain_seeds, limit_s=1.0),
    Target(
        "signed_leaf", "a certificate that its authority signed", check_signed_leaf, leaf_seeds, limit_s=1.0
    ),
    Target("bundle", "a trust bundle", read_bundle, bundle_seeds, max_bytes=64 * KIB, limit_s=1.0),
    Target("spiffe_id", "a SPIFFE ID", read_spiffe_id, spiffe_id_seeds, max_bytes=4 * KIB),
    Target("workload", "a Workload API's answer", read_workload, workload_seeds),
    Target("keys", "damaged files of keys", open_keys, key_seeds),
)
