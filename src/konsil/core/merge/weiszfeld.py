"""The geometric median as coefficients, found in the Gram matrix alone.

Pillutla, Kakade, Harchaoui, *Robust Aggregation for Federated Learning* (IEEE TSP 2022): smoothed Weiszfeld
steps. The median is a combination of the updates, so every distance that a step needs is in their Gram
matrix G: with coefficients a that sum to 1, |x_j - sum(a_i x_i)|^2 = G_jj - 2 (G a)_j + a.G a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from konsil.core.merge.weights import WEIGHT_LIMIT

Floats = NDArray[np.float64]

_SETTLED = 1e-12
"""Coefficients that change less than this from one step to the next are the result: they are quantised to
2^-29 (2e-9) afterwards."""


def geometric_median(
    gram: Floats, weights: Sequence[int], iterations: int, epsilon: float
) -> tuple[int, ...]:
    """Coefficients of the updates in their weighted geometric median.

    Args:
        gram: float64 [n, n], finite and symmetric.
        weights: merge weights [n].
        iterations: steps at most.
        epsilon: distances below this count as this, in the unit of the parameters.

    Returns:
        Integers [n] from 0 to 2^29 - 1; the largest is 2^29 - 1.
    """
    shares = np.array(weights, np.float64)
    norms = np.diagonal(gram).copy()
    coefficients = _normalised(shares / np.maximum(_typical_distances(gram, norms), epsilon))
    for _ in range(iterations):
        products = _times(gram, coefficients)
        square = math.fsum(coefficients * products)
        distances = np.sqrt(np.maximum(norms - 2.0 * products + square, 0.0))
        step = _normalised(shares / np.maximum(distances, epsilon))
        settled = bool(np.abs(step - coefficients).max() <= _SETTLED)
        coefficients = step
        if settled:
            break
    scaled = coefficients / coefficients.max() * (WEIGHT_LIMIT - 1)
    return tuple(int(value) for value in np.floor(scaled + 0.5))


def _typical_distances(gram: Floats, norms: Floats) -> Floats:
    """Each update's median distance to all of them, float64 [n].

    To start from the mean would take a step for every factor of n by which a hostile update is too large,
    and lose the digits of the honest ones in the distance to it.
    """
    n = len(norms)
    typical = np.empty(n)
    for row in range(n):
        squares = np.maximum(norms[row] - 2.0 * gram[row] + norms, 0.0)
        typical[row] = math.sqrt(sorted(squares.tolist())[n // 2])
    return typical


def _times(gram: Floats, coefficients: Floats) -> Floats:
    """G a, float64 [n], each sum in roster order."""
    total = np.zeros(len(coefficients))
    for column, coefficient in zip(gram, coefficients.tolist(), strict=True):  # symmetric: row is column
        total += column * coefficient
    return total


def _normalised(values: Floats) -> Floats:
    """Divided by their sum, which ``fsum`` rounds once: ``sum`` differs between versions of Python."""
    scaled: Floats = values / values.max()
    return scaled / math.fsum(scaled)
