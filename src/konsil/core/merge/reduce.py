"""The elementwise half of the merge rules: n vectors become one.

Only operations that IEEE 754 fixes to the last bit, one ufunc at a time (no fused multiply-add), in roster
order. Sorting is a network of minima and maxima over whole rows: numpy's own sort may leave -0.0 and 0.0 in
another order on another processor, and takes a column at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ABOVE_ALL = 2.0**900
"""Above every value (LARGEST_F64 is 2^400), even a quarter of it; and 2^40 times as much is finite."""

Reduce = Callable[[Floats, Sequence[int], Floats], None]
"""(values float64 [n, elements], weights [n], out float64 [elements]) -> None.

Element by element: what stands in one column must not change another. All values are finite. ``values`` may
be overwritten. Weights are from 0 to 2^29 - 1 and not all 0.
"""


def weighted_mean(values: Floats, weights: Sequence[int], out: Floats) -> None:
    """The sum of weight times value, in roster order, over the sum of the weights."""
    np.multiply(values[0], float(weights[0]), out=out)
    for row, weight in zip(values[1:], weights[1:], strict=True):
        np.multiply(row, float(weight), out=row)
        np.add(out, row, out=out)
    np.divide(out, float(sum(weights)), out=out)


def median(values: Floats, weights: Sequence[int], out: Floats) -> None:
    """The value at half of the weight; at an exact half the mean of its two neighbours.

    With equal weights this is ``numpy.median(values, axis=0)``.
    """
    n = len(weights)
    if len(set(weights)) == 1:
        _sort(values)
        np.add(values[(n - 1) // 2], values[n // 2], out=out)
        np.multiply(out, 0.5, out=out)
        return
    carried = _sort_carrying(values, weights)
    for row in range(1, n):
        np.add(carried[row], carried[row - 1], out=carried[row])
    # Halves and quarters of integers below 2^40 are exact in float64.
    half, quarter = sum(weights) / 2, 0.25
    scratch = np.empty(len(out))
    _first_above(half - quarter, values, carried, out, scratch)
    if sum(weights) % 2:
        return  # an odd total has no exact half
    upper = np.empty(len(out))
    _first_above(half + quarter, values, carried, upper, scratch)
    np.add(out, upper, out=out)
    np.multiply(out, 0.5, out=out)


def _first_above(bound: float, values: Floats, reached: Floats, out: Floats, scratch: Floats) -> None:
    """In each column of sorted values, the first whose row of ``reached`` is above the bound.

    Those that are not are raised above every value and the lowest is taken: choosing by a mask of booleans
    takes ten times as long where the mask has no pattern.
    """
    out.fill(_ABOVE_ALL)
    for row, weight in zip(values, reached, strict=True):
        np.subtract(bound, weight, out=scratch)
        np.multiply(scratch, _ABOVE_ALL, out=scratch)
        np.maximum(row, scratch, out=scratch)
        np.minimum(out, scratch, out=out)


def trimmed_mean(f: int) -> Reduce:
    """In each coordinate, the weighted mean of what is left without the f lowest and f highest values.

    Yin et al., *Byzantine-Robust Distributed Learning* (ICML 2018), with equal weights. A tie is trimmed in
    an order that depends on nothing but the roster. Where all that is left weighs nothing, it is the plain
    mean of it.
    """

    def reduce(values: Floats, weights: Sequence[int], out: Floats) -> None:
        n = len(weights)
        kept = range(f, n - f)
        if len(set(weights)) == 1:
            _sort(values)
            weighted_mean(values[f : n - f], [1] * len(kept), out)
            return
        carried = _sort_carrying(values, weights)
        total = carried[f].copy()
        for row in kept[1:]:
            np.add(total, carried[row], out=total)
        if 0 in weights:
            nothing = total == 0.0
            carried[f : n - f, nothing] = 1.0
            total[nothing] = len(kept)
        for row in kept:
            np.multiply(values[row], carried[row], out=values[row])
        np.copyto(out, values[f])
        for row in kept[1:]:
            np.add(out, values[row], out=out)
        np.divide(out, total, out=out)

    return reduce


@lru_cache(maxsize=64)
def _network(n: int) -> tuple[tuple[int, int], ...]:
    """Batcher's merge-exchange network for n rows (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    return tuple(_comparators(n))


def _comparators(n: int) -> Iterator[tuple[int, int]]:
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            for low in range(n - d):
                if low & p == r:
                    yield low, low + d
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1


def _sort(values: Floats) -> None:
    """Sort every column upwards, in place."""
    np.add(values, 0.0, out=values)  # -0.0 becomes 0.0: which of the two minimum() gives is not fixed
    lower = np.empty(values.shape[1])
    for low, high in _network(len(values)):
        np.minimum(values[low], values[high], out=lower)
        np.maximum(values[low], values[high], out=values[high])
        values[low] = lower


def _sort_carrying(values: Floats, weights: Sequence[int]) -> Floats:
    """Sort every column upwards, in place; the weights, float64 [n, elements], in the same order."""
    np.add(values, 0.0, out=values)  # as in _sort
    carried = np.empty(values.shape)
    for row, weight in zip(carried, weights, strict=True):
        row.fill(weight)
    scratch = np.empty(values.shape[1])
    swapped = np.empty(values.shape[1])
    for low, high in _network(len(values)):
        np.greater(values[low], values[high], out=swapped)
        np.minimum(values[low], values[high], out=scratch)
        np.maximum(values[low], values[high], out=values[high])
        values[low] = scratch
        # The difference of two weights is an integer below 2^29: adding and subtracting it is exact.
        np.subtract(carried[high], carried[low], out=scratch)
        np.multiply(scratch, swapped, out=scratch)
        np.add(carried[low], scratch, out=carried[low])
        np.subtract(carried[high], scratch, out=carried[high])
    return carried
