"""The SPIFFE Workload API's messages as bytes: the X.509 half of its protocol buffers, and nothing else.

Every field that is needed is a string, bytes, or a message of such fields, so the encoding is three rules
long; generated code would bring a second library, and its names would clash with those of other SPIFFE
libraries in one process. Field numbers are those of the standard's ``workloadapi.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from konsil.core.protobuf import field
from konsil.errors import IdentityError

SERVICE = "SpiffeWorkloadAPI"
FETCH_SVID = "FetchX509SVID"
FETCH_BUNDLES = "FetchX509Bundles"
HEADER = ("workload.spiffe.io", "true")
"""Proof that a request was not forged by a browser or proxy: the standard demands it of every call."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""One answer: some SVIDs with their bundles; gRPC's own default limit."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BITS = 64


class WireSvid(NamedTuple):
    """One SVID of an answer. ``chain`` and ``bundle``: certificates in DER, one behind the other."""

    spiffe_id: str
    chain: bytes
    key: bytes
    bundle: bytes
    hint: str = ""


def encode_svids(svids: tuple[WireSvid, ...]) -> bytes:
    """An ``X509SVIDResponse``."""
    return b"".join(field(1, _encode_svid(svid)) for svid in svids)


def decode_svids(data: bytes) -> tuple[WireSvid, ...]:
    """The SVIDs of an ``X509SVIDResponse``; revocations and foreign bundles are not taken from it.

    Raises:
        IdentityError: the bytes are no such message, or a required field is empty.
    """
    return tuple(_svid(value) for number, value in _fields(data) if number == 1)


def encode_bundles(bundles: dict[str, bytes]) -> bytes:
    """An ``X509BundlesResponse``: trust domain's SPIFFE ID -> certificates in DER."""
    return b"".join(field(2, field(1, name.encode()) + field(2, der)) for name, der in bundles.items())


def _svid(data: bytes) -> WireSvid:
    found = dict(_fields(data))
    try:
        svid = WireSvid(
            spiffe_id=found[1].decode(),
            chain=found[2],
            key=found[3],
            bundle=found[4],
            hint=found.get(5, b"").decode(),
        )
    except (KeyError, UnicodeDecodeError) as error:
        raise _broken("an SVID lacks its ID, certificate, key or bundle") from error
    if not all(svid[:4]):
        raise _broken("an SVID lacks its ID, certificate, key or bundle")
    return svid


def _encode_svid(svid: WireSvid) -> bytes:
    values = (svid.spiffe_id.encode(), svid.chain, svid.key, svid.bundle, svid.hint.encode())
    return b"".join(field(number, value) for number, value in enumerate(values, 1))


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of every field that has bytes; others are stepped over."""
    if len(data) > MAX_ANSWER_BYTES:
        raise _broken(f"it has {len(data)} bytes")
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _read_varint(data, at)
            continue
        if kind == _BYTES:
            length, at = _read_varint(data, at)
        elif kind in _FIXED_BYTES:
            length = _FIXED_BYTES[kind]
        else:
            raise _broken(f"it has a field of the unknown kind {kind}")
        if length > len(data) - at:
            raise _broken("it is cut off")
        if kind == _BYTES:
            yield key >> 3, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        if at >= len(data):
            raise _broken("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the top bit says that more follows
            return value, at
    raise _broken("it has a number of more than 64 bits")


def _broken(why: str) -> IdentityError:
    return IdentityError(
        f"The Workload API's answer cannot be read: {why}.",
        safe="The SVID in use was kept.",
        do="Look which program serves this socket; it must be a SPIFFE Workload API.",
    )
