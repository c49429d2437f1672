"""The rules that come with Konsil, by name. Every member's contract knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from konsil.core.merge.clipping import clipping_scales
from konsil.core.merge.neighbours import krum_selection, nearest_neighbour_mixing
from konsil.core.merge.reduce import median, trimmed_mean, weighted_mean
from konsil.core.merge.rule import Factory, Mixing, Rule, take_options, whole_option
from konsil.core.merge.weiszfeld import geometric_median
from konsil.errors import ConfigError

Floats = NDArray[np.float64]


def rule(name: str, options: Mapping[str, float]) -> Rule:
    """A rule that comes with Konsil.

    Raises:
        ConfigError: the rule or an option is unknown, or an option's value makes no sense.
    """
    if name not in _factories:
        raise ConfigError(
            f"There is no merge rule '{name[:80]}' in Konsil; there are {', '.join(rule_names())}.",
            do="Correct the study's `rule`; for one of your own give the `rule_digest` of its file.",
            rule=name,
        )
    return _factories[name](options)


def rule_names() -> list[str]:
    """The names of the rules that come with Konsil, sorted."""
    return sorted(_factories)


def _mean(options: Mapping[str, float]) -> Rule:
    return Rule("mean", take_options("mean", options, {}), weighted_mean)


def _median(options: Mapping[str, float]) -> Rule:
    return Rule("median", take_options("median", options, {}), median)


def _trimmed_mean(options: Mapping[str, float]) -> Rule:
    taken = take_options("trimmed_mean", options, {"f": 1})
    f = whole_option("trimmed_mean", "f", taken["f"], 1, MAX_TRIMMED)
    return Rule("trimmed_mean", taken, trimmed_mean(f), members=2 * f + 1)


def _geometric_median(options: Mapping[str, float]) -> Rule:
    name = "geometric_median"
    taken = take_options(name, options, {"iterations": 200, "epsilon": 1e-6})
    iterations = whole_option(name, "iterations", taken["iterations"], 1, MAX_ITERATIONS)
    epsilon = taken["epsilon"]
    if not MIN_EPSILON <= epsilon <= 1 / MIN_EPSILON:
        what = f"a distance from {MIN_EPSILON:g} to {1 / MIN_EPSILON:g}"
        raise _out_of_range(name, "epsilon", epsilon, what)

    def mix(gram: Floats, weights: Sequence[int]) -> Mixing:
        return Mixing(geometric_median(gram, weights, iterations, epsilon))

    return Rule(name, taken, weighted_mean, mix)


def _multi_krum(options: Mapping[str, float]) -> Rule:
    name = "multi_krum"
    taken = take_options(name, options, {"f": 1, "m": 0})
    f = whole_option(name, "f", taken["f"], 1, MAX_TRIMMED - 1)
    m = whole_option(name, "m", taken["m"], 0, MAX_ROSTER)

    def mix(gram: Floats, weights: Sequence[int]) -> Mixing:
        selected = krum_selection(gram, f, m or len(weights) - f)
        return Mixing(tuple(weight if row in selected else 0 for row, weight in enumerate(weights)))

    return Rule(name, taken, weighted_mean, mix, members=max(2 * f + 3, m + f))


def _nnm_trimmed_mean(options: Mapping[str, float]) -> Rule:
    name = "nnm_trimmed_mean"
    taken = take_options(name, options, {"f": 1})
    f = whole_option(name, "f", taken["f"], 1, MAX_TRIMMED)

    def mix(gram: Floats, weights: Sequence[int]) -> Mixing:
        # Each vector is a weighted mean already: to weigh them again would count a large member twice, and
        # of members with the same neighbours trim one by chance.
        return Mixing((1,) * len(weights), nearest_neighbour_mixing(gram, weights, f))

    return Rule(name, taken, trimmed_mean(f), mix, members=2 * f + 1)


def _norm_clipping(options: Mapping[str, float]) -> Rule:
    name = "norm_clipping"
    taken = take_options(name, options, {"factor": 1.0, "bound": 0.0})
    factor, bound = taken["factor"], taken["bound"]
    if not 1 / MAX_FACTOR <= factor <= MAX_FACTOR:
        raise _out_of_range(name, "factor", factor, f"a number from {1 / MAX_FACTOR:g} to {MAX_FACTOR:g}")
    if bound and not MIN_EPSILON <= bound <= 1 / MIN_EPSILON:
        what = f"0, or a distance from {MIN_EPSILON:g} to {1 / MIN_EPSILON:g}"
        raise _out_of_range(name, "bound", bound, what)
    if bound and "factor" in options:
        raise _out_of_range(name, "bound", bound, "0 where `factor` is given: each says where to clip")

    def mix(gram: Floats, weights: Sequence[int]) -> Mixing:
        scales = clipping_scales(gram, weights, factor, bound)
        n = len(scales)
        diagonal = tuple((0.0,) * row + (scale,) + (0.0,) * (n - row - 1) for row, scale in enumerate(scales))
        return Mixing(tuple(weights), diagonal)

    return Rule(name, taken, weighted_mean, mix, around_base=True)


def _out_of_range(name: str, option: str, value: float, what: str) -> ConfigError:
    return ConfigError(
        f"Option '{option}' of the merge rule '{name}' is {value:g}; it must be {what}.",
        do="Correct the study's `rule_options`.",
        rule=name,
        option=option,
    )


MAX_ROSTER = 1_024
"""A Gram matrix has at most as many rows."""

MAX_FACTOR = 1e6
"""Whoever wants no clipping takes the mean."""

MAX_TRIMMED = 511
"""More than 2 * 511 + 1 members cannot be merged: a Gram matrix has at most 1,024."""

MAX_ITERATIONS = 10_000
"""A second of computing at most, for the members of a large swarm."""

MIN_EPSILON = 1e-30
"""Far below any distance between models, far above where dividing by it would overflow."""

_factories: dict[str, Factory] = {
    "geometric_median": _geometric_median,
    "mean": _mean,
    "median": _median,
    "multi_krum": _multi_krum,
    "nnm_trimmed_mean": _nnm_trimmed_mean,
    "norm_clipping": _norm_clipping,
    "trimmed_mean": _trimmed_mean,
}
