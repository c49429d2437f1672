"""Rules that look at who is near whom: the updates' distances follow from their Gram matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def squared_distances(gram: Floats) -> list[list[float]]:
    """|x_i - x_j|^2 of every two updates, [n][n]; never below 0, and exactly 0 to oneself.

    Args:
        gram: float64 [n, n], finite and symmetric.
    """
    norms = np.diagonal(gram)
    return [np.maximum(norm - 2.0 * row + norms, 0.0).tolist() for norm, row in zip(norms, gram, strict=True)]


def krum_selection(gram: Floats, f: int, m: int) -> tuple[int, ...]:
    """The m updates that are nearest to the others, as Multi-Krum chooses them.

    Blanchard, El Mhamdi, Guerraoui, Stainer, *Machine learning with adversaries: Byzantine tolerant gradient
    descent* (NeurIPS 2017): an update's score is the sum of its n - f - 2 smallest squared distances to
    *other* updates (n >= 2f + 3), and the m lowest scores are selected; also in El Mhamdi, Guerraoui,
    Rouault, *The hidden vulnerability of distributed learning in Byzantium* (ICML 2018). Some libraries count
    n - f neighbours with the update itself, that is n - f - 1 others: theirs for f + 1 has our scores for f.

    Args:
        gram: float64 [n, n].
        f: how many updates may be wrong.
        m: how many are selected.

    Returns:
        Places in the roster, upwards. Of equal scores the earlier in the roster is selected.
    """
    scores = []
    for row, distances in enumerate(squared_distances(gram)):
        others = sorted(distances[:row] + distances[row + 1 :])
        scores.append((math.fsum(others[: len(distances) - f - 2]), row))
    return tuple(sorted(row for _, row in sorted(scores)[:m]))


def nearest_neighbour_mixing(gram: Floats, weights: Sequence[int], f: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients that put the weighted mean of its n - f nearest updates in each update's place.

    Allouah et al., *Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity* (AISTATS 2023),
    with equal weights. An update is the first of its own neighbours; of others equally near the earlier in
    the roster is taken.

    Args:
        gram: float64 [n, n].
        weights: merge weights [n].
        f: how many updates may be wrong.

    Returns:
        Coefficients [n][n]: row i has n - f that are not 0, and they sum to 1.
    """
    n = len(weights)
    matrix = []
    for row, distances in enumerate(squared_distances(gram)):
        order = sorted(range(n), key=lambda other: (other != row, distances[other], other))
        near = frozenset(order[: n - f])
        total = sum(weights[other] for other in near)
        matrix.append(tuple(weights[other] / total if other in near else 0.0 for other in range(n)))
    return tuple(matrix)
