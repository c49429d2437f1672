"""The members' Gram matrix: the inner product of every two updates, chunk by chunk, part by part.

The order of every addition is fixed: products in blocks of a fixed size, each folded in halves, blocks in
the order of the chunk, chunks in the order of the part, parts in the order of the roster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer, Digest, bytes_digest
from konsil.core.merge.blocks import check_lengths, load, subtract
from konsil.core.parameters import ARRAY_DTYPES, Run
from konsil.errors import FrameError, ParametersError

Floats = NDArray[np.float64]

GRAM_BLOCK = 32768
"""Elements in a block: a power of two. Part of the protocol: another one gives other last bits."""


def gram_chunk(runs: Sequence[Run], chunks: Sequence[Buffer], base: Buffer | None = None) -> Floats:
    """The inner products of one chunk of every member, or of its differences to a base.

    The base is subtracted before anything is multiplied: in |x|^2 - 2<x, b> + |b|^2 a difference of a
    thousandth would lose six digits.

    Args:
        runs: the chunk's dtypes (``Schema.runs``).
        chunks: the members' chunks, in roster order, checked to be finite.
        base: for a rule around the base, this chunk of the model that the round started from.

    Returns:
        float64 [n, n], symmetric.

    Raises:
        ParametersError: a chunk has another length than the runs say.
    """
    check_lengths(runs, chunks)
    if base is not None:
        check_lengths(runs, [base], "the model that the round started from")
    n = len(chunks)
    gram = np.zeros((n, n))
    rows = np.empty((n, GRAM_BLOCK))
    products, origin = np.empty(GRAM_BLOCK), np.empty(GRAM_BLOCK)
    for dtype, start, stop in runs:
        step = GRAM_BLOCK * ARRAY_DTYPES[dtype].itemsize
        for at in range(start, stop, step):
            for chunk, row in zip(chunks, rows, strict=True):
                filled = load(dtype, chunk, at, min(at + step, stop), row)
            size = _reach(filled)
            rows[:, filled:size] = 0.0
            if base is not None:
                load(dtype, base, at, min(at + step, stop), origin)
                subtract(origin[:filled], rows[:, :filled])
            for i in range(n):
                for j in range(i, n):
                    np.multiply(rows[i, :size], rows[j, :size], out=products[:size])
                    gram[i, j] += _folded(products[:size])
    for i in range(n):
        gram[i + 1 :, i] = gram[i, i + 1 :]
    return gram


def _reach(filled: int) -> int:
    """How much of a block is folded: the rest is zeros, and folding those changes nothing."""
    return 1 << max(0, filled - 1).bit_length()


def _folded(products: Floats) -> float:
    """The sum of a block, which is used up: the upper half onto the lower, until one is left."""
    half = len(products) // 2
    while half:
        np.add(products[:half], products[half : 2 * half], out=products[:half])
        half //= 2
    return float(products[0])


def sum_grams(grams: Sequence[Floats]) -> Floats:
    """The sum of Gram matrices, in the given order: chunks of a part, or parts of a round.

    Raises:
        ParametersError: there are none, or their shapes differ.
    """
    if not grams or any(gram.shape != grams[0].shape for gram in grams):
        raise ParametersError("Gram matrices of the same roster are needed to sum them.")
    total = grams[0].copy()
    for gram in grams[1:]:
        np.add(total, gram, out=total)
    return total


def encode_gram(gram: Floats) -> bytes:
    """A Gram matrix for a peer: float64, little-endian, row by row."""
    return gram.astype("<f8").tobytes()


def decode_gram(data: Buffer, n: int) -> Floats:
    """A peer's bytes as a Gram matrix of n members.

    Raises:
        FrameError: another length, a value that is not finite, or not symmetric.
    """
    if len(data) != n * n * 8:
        raise _malformed(f"it has {len(data)} bytes instead of {n * n * 8}")
    gram = np.frombuffer(data, "<f8").astype(np.float64).reshape(n, n)
    if not np.isfinite(gram).all() or not np.array_equal(gram, gram.T):
        raise _malformed("it is not a finite symmetric matrix")
    return gram


def gram_digest(gram: Floats) -> Digest:
    """The digest of a Gram matrix, as it stands on the ledger."""
    return bytes_digest(encode_gram(gram), "gram")


def _malformed(why: str) -> FrameError:
    return FrameError(
        f"A Gram matrix cannot be read: {why}.",
        safe="Nothing was merged.",
        do="Its leader will lose its part at the round's deadline.",
    )
