"""What a merge rule is, and the rules by name.

A rule of one's own is a function from options to a `Rule`, made known by `register` under a new name before
the node starts; every member of a study has to register the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from konsil.core.merge.reduce import Reduce, median, trimmed_mean, weighted_mean
from konsil.core.merge.weights import WEIGHT_LIMIT, require_weights
from konsil.core.merge.weiszfeld import geometric_median
from konsil.errors import ConfigError

__all__ = [
    "WEIGHT_LIMIT",
    "Mixing",
    "Rule",
    "mixing",
    "register",
    "required_members",
    "rule",
    "rule_names",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixing:
    """What a mixing step found: applied to the members' chunks before they are reduced.

    ``weights``: one integer from 0 to 2^29 - 1 for each vector that is reduced, in place of the merge
    weights (a geometric median's coefficients; 0 for a member that a selection leaves out).
    ``matrix``: coefficients [m, n]: row j makes vector j out of the n members' (scales are a diagonal);
    None where the members' own vectors are reduced.
    """

    weights: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...] | None = None


Mix = Callable[[Floats, Sequence[int]], Mixing]
"""(Gram matrix float64 [n, n], merge weights [n]) -> Mixing. Bit-reproducible: no BLAS, sums in order."""


@dataclass(frozen=True)
class Rule:
    """A merge rule with its options.

    ``reduce``: see `konsil.core.merge.reduce.Reduce`. ``mix``: None for a rule that needs no Gram matrix.
    ``members``: the smallest roster that it can merge.
    """

    name: str
    options: Mapping[str, float]
    reduce: Reduce
    mix: Mix | None = None
    members: int = 1


Factory = Callable[[Mapping[str, float]], Rule]


def rule(name: str, options: Mapping[str, float]) -> Rule:
    """A rule by its name.

    Raises:
        ConfigError: the rule or an option is unknown, or an option's value makes no sense.
    """
    if name not in _factories:
        raise ConfigError(
            f"There is no merge rule '{name[:80]}'; there are {', '.join(rule_names())}.",
            do="Correct the study's `rule`, or register your own under this name at every member.",
            rule=name,
        )
    return _factories[name](options)


def register(name: str, factory: Factory) -> None:
    """Make a rule of one's own known in this process.

    Args:
        name: a new name.
        factory: options -> Rule; raises ConfigError for options that it does not take.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _factories:
        raise ConfigError(f"There is a merge rule '{name}' already.", do="Choose another name.", rule=name)
    _factories[name] = factory


def rule_names() -> list[str]:
    """The names of all known rules, sorted."""
    return sorted(_factories)


def required_members(chosen: Rule) -> int:
    """The smallest roster that a rule can merge."""
    return chosen.members


def mixing(chosen: Rule, gram: Floats, weights: Sequence[int]) -> Mixing | None:
    """What a rule makes of the Gram matrix; None for a rule that does not mix.

    Args:
        chosen: the rule.
        gram: float64 [n, n], summed over all parts, in roster order.
        weights: merge weights [n].

    Raises:
        ConfigError: weights out of range, or another number of them than the matrix has.
    """
    if chosen.mix is None:
        return None
    require_weights(weights, least=1)
    if gram.shape != (len(weights), len(weights)):
        raise ConfigError(f"A Gram matrix of shape {gram.shape} does not fit {len(weights)} merge weights.")
    return chosen.mix(gram, weights)


def take_options(name: str, options: Mapping[str, float], defaults: Mapping[str, float]) -> dict[str, float]:
    """A rule's options, with the defaults for those that are not given.

    Raises:
        ConfigError: an option that the rule does not have.
    """
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        known = ", ".join(sorted(defaults)) or "none"
        raise ConfigError(
            f"The merge rule '{name}' has no option '{unknown[0][:80]}'; it has {known}.",
            do="Correct the study's `rule_options`.",
            rule=name,
            option=unknown[0],
        )
    return {**defaults, **options}


def _whole(name: str, option: str, value: float, least: int, most: int) -> int:
    if value != value // 1 or not least <= value <= most:
        raise ConfigError(
            f"Option '{option}' of the merge rule '{name}' is {value:g}; "
            f"it must be a whole number from {least} to {most}.",
            do="Correct the study's `rule_options`.",
            rule=name,
            option=option,
        )
    return int(value)


def _mean(options: Mapping[str, float]) -> Rule:
    return Rule("mean", take_options("mean", options, {}), weighted_mean)


def _median(options: Mapping[str, float]) -> Rule:
    return Rule("median", take_options("median", options, {}), median)


def _trimmed_mean(options: Mapping[str, float]) -> Rule:
    taken = take_options("trimmed_mean", options, {"f": 1})
    f = _whole("trimmed_mean", "f", taken["f"], 1, MAX_TRIMMED)
    return Rule("trimmed_mean", taken, trimmed_mean(f), members=2 * f + 1)


def _geometric_median(options: Mapping[str, float]) -> Rule:
    name = "geometric_median"
    taken = take_options(name, options, {"iterations": 200, "epsilon": 1e-6})
    iterations = _whole(name, "iterations", taken["iterations"], 1, MAX_ITERATIONS)
    epsilon = taken["epsilon"]
    if not MIN_EPSILON <= epsilon <= 1 / MIN_EPSILON:
        raise ConfigError(
            f"Option 'epsilon' of the merge rule '{name}' is {epsilon:g}; "
            f"it must be a distance from {MIN_EPSILON:g} to {1 / MIN_EPSILON:g}.",
            do="Correct the study's `rule_options`.",
            rule=name,
            option="epsilon",
        )

    def mix(gram: Floats, weights: Sequence[int]) -> Mixing:
        return Mixing(geometric_median(gram, weights, iterations, epsilon))

    return Rule(name, taken, weighted_mean, mix)


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
    "trimmed_mean": _trimmed_mean,
}
