"""The two rules of protocol buffers' encoding by which the few messages that are made by hand are written."""

from __future__ import annotations

_BYTES = 2


def varint(value: int) -> bytes:
    """A whole number, not negative: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes, *, always: bool = False) -> bytes:
    """A field of bytes, or of an encoded message; an empty one is left out, unless it stands there always."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value if value or always else b""
