"""What a merge rule is.

The rules that come with Konsil are in `konsil.core.merge.built_in`. A rule of one's own is a function from
options to a `Rule` in a file that every member of a study puts into its node by hand; the study names the
file's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from konsil.core.merge.reduce import Reduce
from konsil.core.merge.weights import require_weights
from konsil.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mixing:
    """What a mixing step found: applied to the members' vectors before they are reduced.

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
    ``members``: the smallest roster that it can merge. ``around_base``: the vectors, and the Gram matrix
    of them, are the updates' differences to the model that the round started from; that model is added to
    what ``reduce`` makes of them.
    """

    name: str
    options: Mapping[str, float]
    reduce: Reduce
    mix: Mix | None = None
    members: int = 1
    around_base: bool = False


Factory = Callable[[Mapping[str, float]], Rule]
"""Options -> Rule; raises ConfigError for options that it does not take."""


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


def whole_option(name: str, option: str, value: float, least: int, most: int) -> int:
    """An option that must be a whole number.

    Raises:
        ConfigError: it is not, or out of range.
    """
    if value != value // 1 or not least <= value <= most:
        raise ConfigError(
            f"Option '{option}' of the merge rule '{name}' is {value:g}; "
            f"it must be a whole number from {least} to {most}.",
            do="Correct the study's `rule_options`.",
            rule=name,
            option=option,
        )
    return int(value)
