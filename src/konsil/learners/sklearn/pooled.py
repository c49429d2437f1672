"""A mean over all members' rows, from each member's sums and counts: how it travels, before and after.

While it is being fitted, ``sum`` and ``count`` are a member's own, float64 [features]: whatever merge weights
the members have, as long as each has divided by its own, the merge's sum over the merge's count is the mean
over all rows. From then on the same two arrays carry that mean: ``sum`` its mantissa, ``count`` its
exponent as a negative number. So

- a merge of equal values gives them back to the bit. A mean of equal float64 numbers may differ from them in
  its last bits and drift over the rounds; so the mantissa is kept to 44 bits and rounded to them again
  after every merge, which undoes a deviation of up to 256 roundings.
- the values are around 1, whatever the feature's unit. A rule that looks at distances between whole updates
  has them from inner products, in which means and variances of 10^10 would drown the model's own parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MANTISSA_BITS = 44
"""A relative error of 3e-14: of a mean that is 10^9 standard deviations from 0, it moves the scaled values
by 3e-5 and their variance by 10^-9."""

_STEPS = float(1 << MANTISSA_BITS)
_EXPONENT_UNIT = 2048.0
"""Beyond every exponent of a float64 (-1,073 to 1,024), so that exponent - unit is always negative."""

_EXPONENTS = (-1074.0, 1022.0)
"""Of means that a merge may give; what its rounding adds cannot lead out of float64 from there."""

_SLACK = 1e-6
"""How far a merge's rounding may lead beyond a bound: far more than it does."""


@dataclass(frozen=True)
class Pooled:
    """The two arrays, float64 [features] each, which change in place.

    A column's count is 0: nothing known; above 0: sums to be merged; below 0: the mean is known.
    ``of_squares``: what the mean is taken of is never below 0.
    """

    sum: Floats
    count: Floats
    of_squares: bool = False

    @classmethod
    def empty(cls, n_features: int, *, of_squares: bool = False) -> Pooled:
        """Nothing known yet."""
        return cls(np.zeros(n_features), np.zeros(n_features), of_squares)

    @property
    def known(self) -> bool:
        """Whether the mean was fitted: it is known of one column at least."""
        return bool((self.count < 0).any())

    @property
    def mean(self) -> Floats:
        """The means, float64 [features]; NaN where it is not known."""
        exponent = np.rint(self.count * _EXPONENT_UNIT + _EXPONENT_UNIT).astype(np.int64)
        return np.where(self.count < 0, np.ldexp(self.sum, exponent), np.nan)

    def observe(self, values: Floats, weight: int) -> None:
        """Put a member's own sums and counts in.

        Args:
            values: float64 [rows, features], NaN where there is none.
            weight: the member's weight in the merge that follows.
        """
        columns = np.ascontiguousarray(values.T)  # a sum along memory is pairwise, so it rounds less
        there = ~np.isnan(columns)
        self.sum[:] = np.where(there, columns, 0.0).sum(axis=1) / weight
        self.count[:] = there.sum(axis=1) / weight

    def impossible(self, sums: Floats, counts: Floats) -> tuple[int, ...]:
        """Columns in which no honest members' merge can be like this, whatever their rows are.

        Their mean would be no number, or below 0 where it is one of squares.

        Args:
            sums: as for `take`.
            counts: as for `take`.
        """
        summed, known = counts > 0, counts < 0
        with np.errstate(all="ignore"):  # what comes of impossible values is looked at
            _, exponent = np.frexp(sums / counts)
            exponent = np.where(known, (counts + 1.0) * _EXPONENT_UNIT, exponent)
            wrong = ~np.isfinite(sums) | ~np.isfinite(counts) | (summed & ~np.isfinite(sums / counts))
        lowest, highest = _EXPONENTS
        wrong |= (summed | known) & ((exponent < lowest - _SLACK) | (exponent > highest + _SLACK))
        wrong |= known & (np.abs(sums) > 1.0 + _SLACK)
        if self.of_squares:
            wrong |= (summed | known) & (sums < 0)
        return tuple(int(column) for column in np.flatnonzero(wrong))

    def take(self, sums: Floats, counts: Floats) -> None:
        """What came out of a merge: of sums, or of means that were known already."""
        summed = counts > 0
        mean = np.divide(sums, counts, out=np.zeros_like(sums), where=summed)
        mantissa, exponent = np.frexp(mean)
        known = np.where(summed, exponent / _EXPONENT_UNIT - 1.0, counts)
        # An exponent is a whole number of units, a mantissa of steps: what a merge rounded off is put back.
        self.count[:] = np.rint(known * _EXPONENT_UNIT) / _EXPONENT_UNIT
        self.sum[:] = np.rint(np.where(summed, mantissa, sums) * _STEPS) / _STEPS
