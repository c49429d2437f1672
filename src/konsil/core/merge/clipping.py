"""Norm clipping: nobody moves the model farther from where the round started than the others do.

Sun, Kairouz, Suresh, McMahan, *Can you really backdoor federated learning?* (2019), with a given bound.

The norm of a whole parameter vector says nothing, since it is mostly that of the model all started from:
the vectors are differences to that model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def clipping_scales(gram: Floats, weights: Sequence[int], factor: float, bound: float) -> tuple[float, ...]:
    """What each member's difference is multiplied by: min(1, bound / norm).

    Without a bound it is ``factor`` times the weighted median of the norms. Who commits the model again as it
    was counts with a norm of 0: so where more than half of the weight stands still, nobody moves
    the model.

    Args:
        gram: of the differences, float64 [n, n]; only its diagonal is read.
        weights: merge weights [n].
        factor: dimensionless, above 0.
        bound: in the unit of the parameters; 0 for ``factor`` times the median.

    Returns:
        Scales [n], from 0 to 1.
    """
    norms = [math.sqrt(square) for square in np.diagonal(gram).tolist()]
    if not bound:
        bound = factor * _weighted_median(norms, weights)
    return tuple(1.0 if norm <= bound else bound / norm for norm in norms)


def _weighted_median(norms: Sequence[float], weights: Sequence[int]) -> float:
    """The norm at half of the weight, at an exact half the mean of its two neighbours."""
    ordered = sorted(zip(norms, weights, strict=True))
    total, reached, lower = sum(weight for _, weight in ordered), 0, None
    for norm, weight in ordered:
        reached += weight
        if lower is None and 2 * reached >= total:
            lower = norm
        if lower is not None and 2 * reached > total:
            return (lower + norm) * 0.5
    return 0.0
