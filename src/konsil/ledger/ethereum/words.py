"""Ethereum's way to write values down: words of 32 bytes, and what has no fixed length behind them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

WORD_BYTES = 32
SELECTOR_BYTES = 4
NO_DIGEST = bytes(WORD_BYTES)
"""Stands for a digest that is not there."""

Value = int | bool | bytes | str | Sequence[int] | Sequence[bytes]
"""A number, a truth, 32 bytes, a text, or a list of one of the first and third."""


class MalformedWords(ValueError):
    """Bytes that are not the one encoding of what they should hold."""


def keccak(data: bytes) -> bytes:
    """Ethereum's own digest, 32 bytes."""
    from Crypto.Hash import keccak as implementation  # noqa: PLC0415 - comes with web3, and is loaded when used

    return bytes(implementation.new(digest_bits=256, data=data).digest())


def selector(signature: str) -> bytes:
    """The four bytes that name a function, from its name and types."""
    return keccak(signature.encode())[:SELECTOR_BYTES]


def word(value: int | bool | bytes) -> bytes:
    """One word."""
    if isinstance(value, bytes):
        return value.ljust(WORD_BYTES, b"\0")
    return int(value).to_bytes(WORD_BYTES, "big")


def encode(values: Sequence[Value]) -> bytes:
    """Values one behind the other: what has no fixed length stands behind, and an offset in its place."""
    heads: list[bytes] = []
    tails: list[bytes] = []
    behind = WORD_BYTES * len(values)
    for value in values:
        if isinstance(value, (int, bytes)):
            heads.append(word(value))
            continue
        tail = _text(value) if isinstance(value, str) else _list(value)
        heads.append(word(behind))
        tails.append(tail)
        behind += len(tail)
    return b"".join((*heads, *tails))


def _text(value: str) -> bytes:
    raw = value.encode()
    return word(len(raw)) + raw + bytes(-len(raw) % WORD_BYTES)


def _list(values: Sequence[int] | Sequence[bytes]) -> bytes:
    return word(len(values)) + b"".join(word(value) for value in values)


class Words:
    """Reads an encoding; the caller knows what stands where."""

    def __init__(self, data: bytes) -> None:
        if len(data) % WORD_BYTES:
            raise MalformedWords(f"{len(data)} bytes are not a number of words")
        self.data = data

    def raw(self, at: int) -> bytes:
        """A word."""
        found = self.data[WORD_BYTES * at : WORD_BYTES * (at + 1)]
        if len(found) != WORD_BYTES:
            raise MalformedWords("it is cut short")
        return found

    def number(self, at: int) -> int:
        """A word as a number."""
        return int.from_bytes(self.raw(at), "big")

    def digest(self, at: int) -> str:
        """A word as a digest; "" for none."""
        raw = self.raw(at)
        return "" if raw == NO_DIGEST else raw.hex()

    def truth(self, at: int) -> bool:
        """A word as a truth."""
        return self.number(at) != 0

    def text(self, at: int) -> str:
        """The text whose offset stands here; bytes that are no text become replacement characters."""
        first, length = self._behind(at)
        raw = self.data[first : first + length]
        if len(raw) != length:
            raise MalformedWords("it is cut short")
        return raw.decode(errors="replace")

    def numbers(self, at: int) -> tuple[int, ...]:
        """The list whose offset stands here."""
        first, length = self._behind(at)
        return tuple(self.number(first // WORD_BYTES + i) for i in range(min(length, len(self.data))))

    def _behind(self, at: int) -> tuple[int, int]:
        offset = self.number(at)
        if offset % WORD_BYTES or offset > len(self.data):
            raise MalformedWords("an offset leads nowhere")
        return offset + WORD_BYTES, self.number(offset // WORD_BYTES)


def name_words(name: str) -> tuple[int, int]:
    """A name as two numbers: its bytes from the left, so that the numbers' order is the names'."""
    raw = name.encode("ascii", "replace")[: 2 * WORD_BYTES].ljust(2 * WORD_BYTES, b"\0")
    return int.from_bytes(raw[:WORD_BYTES], "big"), int.from_bytes(raw[WORD_BYTES:], "big")


def name_from(high: int, low: int) -> str:
    """The name behind two numbers."""
    return (word(high) + word(low)).rstrip(b"\0").decode("ascii", "replace")


def float_bits(value: float) -> int:
    """A float64's bits as a number."""
    return int.from_bytes(struct.pack(">d", value), "big")


def float_from(bits: int) -> float:
    """The float64 with these bits."""
    return float(struct.unpack(">d", bits.to_bytes(8, "big"))[0])
