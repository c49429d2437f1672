"""Whether arrays that come from a file can take the place of those that are held."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from konsil.learners.protocols import Array

_BF16_INFINITE = 0x7F80
"""The bits of a bfloat16's exponent, all set: an infinity or a NaN."""


def different(held: Mapping[str, Array], given: Mapping[str, Array], bf16: Collection[str] = ()) -> list[str]:
    """Why given arrays cannot take the place of those that are held, by name, in words.

    They have other names, shapes or dtypes, or a NaN or an infinity where there is another value now.

    Args:
        held: named arrays as they are.
        given: named arrays of a stranger.
        bf16: names of uint16 arrays that hold the bits of bfloat16 values.
    """
    found = [f"'{name}' is missing" for name in sorted(held.keys() - given.keys())]
    found += [f"'{name}' is not expected" for name in sorted(given.keys() - held.keys())]
    for name in sorted(held.keys() & given.keys()):
        mine, its = held[name], given[name]
        if (mine.shape, mine.dtype) != (its.shape, its.dtype):
            found.append(f"'{name}' is {its.dtype} {its.shape} instead of {mine.dtype} {mine.shape}")
        elif spoils(mine, its, bf16=name in bf16):
            found.append(f"'{name}' holds a NaN or an infinity")
    return found


def spoils(held: Array, given: Array, *, bf16: bool = False) -> bool:
    """Whether an array would bring a NaN or an infinity to where there is another value now.

    A mask of infinities that a model is built with is no such thing.

    Args:
        held: as it is, or one value.
        given: as it would be, any shape that broadcasts to the former.
        bf16: both hold the bits of bfloat16 values.
    """
    if bf16:
        strange = (given & _BF16_INFINITE) == _BF16_INFINITE
    elif given.dtype.kind == "f":
        strange = ~np.isfinite(given)
    else:
        return False
    same = (given == held) | ((given != given) & (held != held))  # noqa: PLR0124 - so a NaN is told
    return bool((strange & ~same).any())
