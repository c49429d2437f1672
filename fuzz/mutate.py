"""Mutations that know the shape: values change, the encoding stays whole; so what is behind it is met."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
from target import Shape

Mutate = Callable[[bytes, int], bytes]

_NUMBERS = (
    0, -1, 1, 2, 255, 2**29, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    10**12, 10**30, 0.0, -0.0, 1.5, 1e30, 1e308, 5e-324,
)  # fmt: skip
_TEXTS = (
    "", "a", "aml", "..", "../../etc/passwd", "/etc/passwd", "a\x00b", "A", "\u00e9", "e\u0301",
    "\u202egp.exe", "\ufeff", "\x1b[2J", "\n", "-", "a" * 64, "a" * 5000, "0" * 64, "0f" * 32, "spiffe://a.example/node",
    "[::1]:1", "a:1", "__metadata__", "F32", "mean", "multi_krum", "__class__", "{0}", "%s",
)  # fmt: skip
_FIT_BYTES = (b"", b"\x00", bytes(64), b"\xff" * 64)


def changed(shape: Shape, data: bytes, seed: int, limit: int, by_bytes: Mutate) -> bytes:
    """Another input made from one.

    Args:
        shape: what is known of the bytes.
        data: the input.
        seed: decides everything.
        limit: the most bytes that may come out.
        by_bytes: the engine's own mutator.
    """
    draw = random.Random(seed)  # noqa: S311 - the same seed must give the same run
    if shape == "bytes" or draw.random() < 0.4:
        return by_bytes(data, limit)
    try:
        made = _in_shape(shape, data, draw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError, TypeError):
        return by_bytes(data, limit)
    return made if len(made) <= limit else by_bytes(data, limit)


def _in_shape(shape: Shape, data: bytes, draw: random.Random) -> bytes:
    if shape == "json":
        tree = msgspec.json.decode(data)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            tree = _somewhere(tree, draw)
        return msgspec.json.encode(tree)
    body = data[4:] if shape == "frame" else data
    tree = msgspec.msgpack.decode(body)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        tree = _somewhere(tree, draw, packed=True)
    made = msgspec.msgpack.encode(tree)
    return len(made).to_bytes(4, "big") + made if shape == "frame" else made


def _somewhere(tree: Any, draw: random.Random, *, packed: bool = False) -> Any:
    """The tree with one node of it changed."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice(list(tree))
        fate = draw.random()
        if fate < 0.06:
            return {name: value for name, value in tree.items() if name != key}
        if fate < 0.12:
            return tree | {draw.choice(_TEXTS): tree[key]}
        return tree | {key: _somewhere(tree[key], draw, packed=packed)}
    if isinstance(tree, list) and tree and draw.random() < 0.85:
        at = draw.randrange(len(tree))
        fate = draw.random()
        if fate < 0.1:
            return tree[:at] + tree[at + 1 :]
        if fate < 0.25:
            return [*tree[:at], tree[at], *tree[at:]]
        if fate < 0.3:
            return draw.sample(tree, len(tree))
        return [*tree[:at], _somewhere(tree[at], draw, packed=packed), *tree[at + 1 :]]
    return _other(tree, draw, packed=packed)


def _other(value: Any, draw: random.Random, *, packed: bool) -> Any:
    if draw.random() < 0.7:  # of its own kind: what is of another is refused at the first look
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return draw.choice((value + 1, value - 1, -value, *_NUMBERS))
        if isinstance(value, str):
            return draw.choice((value.upper(), value + "\x00", value[:-1], value * 2, *_TEXTS))
        if isinstance(value, bytes):
            return draw.choice((value[:-1], value + b"\x00", value * 2, *_FIT_BYTES))
    choices = [
        None,
        True,
        [],
        {},
        draw.choice(_NUMBERS),
        draw.choice(_TEXTS),
        _deep(draw),
        {"a": value},
        [value],
    ]
    if packed:
        choices += [math.nan, math.inf, draw.choice(_FIT_BYTES)]
    return draw.choice(choices)


def _deep(draw: random.Random) -> Any:
    """Boxes in boxes: each reader has a depth at which it ends."""
    made: Any = []
    for _ in range(draw.choice((5, 100, 900))):
        made = [made]
    return made
