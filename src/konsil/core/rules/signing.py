"""What is signed, and the links of the history's chain.

A signature covers the swarm, the caller, its sequence number and the call: nothing can be replayed, or
moved to another swarm. An entry covers the signed call's bytes, the entry before it and the state after
it. Both have one encoding only: bytes that decode are the bytes that encode.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.rules.calls import MAX_CALL_BYTES, Call
from konsil.errors import FrameError, Refused

_SIGNED_DOMAIN = b"konsil 2026 signed call\n"
_SIGNATURE_BYTES = 64
_MAX_ENTRY_BYTES = MAX_CALL_BYTES + 512


class SignedCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call with the Ed25519 signature of its caller's ledger key. ``swarm``: digest of the genesis."""

    swarm: str
    caller: str
    sequence: int
    call: Call
    signature: bytes


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A link of the chain. ``signed``: an encoded SignedCall; ``previous``: digest of the entry before (of
    the genesis for the first); ``state``: digest of the state after it.
    """

    height: int
    time_s: int
    signed: bytes
    previous: str
    state: str


_json = msgspec.json.Encoder(order="deterministic")
_msgpack = msgspec.msgpack.Encoder(order="deterministic")
_calls: msgspec.json.Decoder[Call] = msgspec.json.Decoder(Call)
_signed = msgspec.json.Decoder(SignedCall)
_entries = msgspec.msgpack.Decoder(Entry)

T = TypeVar("T")


def canonical(call: Call) -> Call:
    """The call as everyone reads it: a whole number where a fraction is meant becomes a fraction.

    Raises:
        Refused: "bad_call", for numbers that no message can carry.
    """
    try:
        read = _calls.decode(_json.encode(call))
    except (msgspec.MsgspecError, OverflowError, UnicodeEncodeError) as error:
        raise Refused("bad_call", f"The call cannot be written down: {error}.") from error
    if read != call:  # JSON has no NaN: it would silently become nothing
        raise Refused(
            "bad_call", "The call holds a NaN, an infinity, or a value of another type than it may."
        )
    return read


def signing_bytes(swarm: str, caller: str, sequence: int, call: Call) -> bytes:
    """The bytes that a signature covers."""
    return _SIGNED_DOMAIN + _json.encode((swarm, caller, sequence, canonical(call)))


def encode_signed(signed: SignedCall) -> bytes:
    """A signed call as canonical JSON.

    Raises:
        FrameError: it is over the limit.
    """
    data = _json.encode(msgspec.structs.replace(signed, call=canonical(signed.call)))
    _check_size(data, MAX_CALL_BYTES, "signed call")
    return data


def decode_signed(data: bytes) -> SignedCall:
    """Read a signed call; its signature is not checked here.

    Raises:
        FrameError: too long, unreadable, or not in its one encoding.
    """
    _check_size(data, MAX_CALL_BYTES, "signed call")
    signed = _decode(_signed, data, "signed call")
    if len(signed.signature) != _SIGNATURE_BYTES or _json.encode(signed) != data:
        raise _unreadable("signed call", "it is not in its canonical form")
    return signed


def encode_entry(entry: Entry) -> bytes:
    """An entry as MessagePack."""
    return _msgpack.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """Read an entry.

    Raises:
        FrameError: too long, unreadable, or not in its one encoding.
    """
    _check_size(data, _MAX_ENTRY_BYTES, "ledger entry")
    entry = _decode(_entries, data, "ledger entry")
    if _msgpack.encode(entry) != data:
        raise _unreadable("ledger entry", "it is not in its canonical form")
    return entry


def entry_digest(entry: Entry) -> str:
    """The digest that the next entry names as its ``previous``."""
    return bytes_digest(encode_entry(entry), "entry")


def _check_size(data: bytes, limit: int, kind: str) -> None:
    if len(data) > limit:
        raise FrameError(
            f"A {kind} of {len(data)} bytes is over the limit of {limit}.",
            safe="Nothing was taken from it.",
            do="Shorten the texts in it.",
        )


def _decode(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], data: bytes, kind: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(kind, str(error)) from error


def _unreadable(kind: str, why: str) -> FrameError:
    return FrameError(
        f"A {kind} cannot be read: {why}.",
        safe="Nothing was taken from it.",
        do="Compare versions: `konsil doctor`.",
    )
