"""Chunks in and out of float64, a block at a time that fits a processor's cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer
from konsil.core.parameters import ARRAY_DTYPES, Run
from konsil.errors import ParametersError

Floats = NDArray[np.float64]


def load(dtype: str, chunk: Buffer, start: int, stop: int, out: Floats) -> int:
    """Put the elements in a byte range of a chunk into the beginning of ``out``, which is exact.

    Returns:
        How many elements there are.
    """
    kind = ARRAY_DTYPES[dtype]
    count = (stop - start) // kind.itemsize
    values = np.frombuffer(chunk, kind, count, start)
    if dtype == "BF16":
        values = (values.astype("<u4") << np.uint32(16)).view("<f4")
    np.copyto(out[:count], values)
    return count


def store(dtype: str, values: Floats, chunk: memoryview, start: int) -> None:
    """Round float64 values once, to the nearest, ties to even, into a chunk at an offset in bytes."""
    if dtype != "BF16":
        target = np.frombuffer(chunk, ARRAY_DTYPES[dtype], len(values), start)
        np.copyto(target, values, casting="same_kind")
        return
    np.copyto(np.frombuffer(chunk, "<u2", len(values), start), _bf16(values))


def _bf16(values: Floats) -> NDArray[np.uint16]:
    """The bits of float64 values as bfloat16.

    By way of float32, rounded to odd: towards zero, then with the last bit set if anything was lost. A
    second rounding after the usual first one would round some values twice.
    """
    nearest = values.astype("<f4")
    bits = nearest.view("<u4")
    back = nearest.astype(np.float64)
    inexact = back != values
    # float32 went away from zero: step back. The bits of magnitudes are in the order of the magnitudes.
    bits -= (np.abs(back) > np.abs(values)).astype("<u4")
    bits |= inexact.astype("<u4")
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype("<u2")


def subtract(origin: Floats, rows: Floats) -> None:
    """Take one vector from every row, in place."""
    for row in rows:
        np.subtract(row, origin, out=row)


def check_lengths(runs: Sequence[Run], chunks: Sequence[Buffer], whose: str = "") -> None:
    """See that runs follow each other without holes and that chunks have their length.

    Args:
        runs: dtypes and where they lie.
        chunks: by default the members', in roster order.
        whose: names the chunk where it is another one.

    Raises:
        ParametersError: they do not, or there is no chunk.
    """
    at = 0
    for dtype, start, stop in runs:
        if start != at or stop < start or (stop - start) % ARRAY_DTYPES[dtype].itemsize:
            raise ParametersError(
                f"The {dtype} elements from byte {start} to {stop} do not follow byte {at}."
            )
        at = stop
    for number, chunk in enumerate(chunks):
        if len(chunk) != at:
            of = whose or f"member {number} of the roster"
            raise ParametersError(
                f"The chunk of {of} has {len(chunk)} bytes instead of {at}.",
                safe="Nothing was merged.",
                do="It was cut short on its way, or belongs to another model.",
            )
    if not chunks:
        raise ParametersError("There is no chunk to merge.", safe="Nothing was merged.")
