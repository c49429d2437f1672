"""Merge weights: integers, so that all members compute the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from konsil.errors import ConfigError

WEIGHT_LIMIT = 1 << 29
"""Merge weights are below this: their products with float32 values (24 bits) are exact in float64 (53)."""


def merge_weights(
    weighting: Literal["examples", "equal", "given", "capped"],
    examples: Mapping[str, int],
    given: Mapping[str, int],
    cap_percent: int = 0,
) -> dict[str, int]:
    """Each member's merge weight.

    Args:
        weighting: "examples": the example counts, all scaled down alike if one is too large, at least 1;
            "equal": 1; "given": as the study's settings say; "capped": as "examples", but nobody has more
            than ``cap_percent`` of all weights (where the roster is too small for that, all are equal).
        examples: member -> examples it trained on; its keys are the roster.
        given: member -> weight.
        cap_percent: for "capped", 1 to 99.

    Returns:
        Member -> weight from 1 to 2^29 - 1, sorted by member.

    Raises:
        ConfigError: a weight is missing or out of range, or an example count is negative.
    """
    roster = sorted(examples)
    if weighting == "equal":
        return dict.fromkeys(roster, 1)
    if weighting == "given":
        for member in roster:
            if member not in given:
                raise ConfigError(f"The study gives no merge weight to '{member}'.", do=_VOTE, member=member)
            if not 1 <= given[member] < WEIGHT_LIMIT:
                raise ConfigError(
                    f"The merge weight of '{member}' is {given[member]}; it must be 1 to {WEIGHT_LIMIT - 1}.",
                    do=_VOTE,
                    member=member,
                )
        return {member: given[member] for member in roster}
    for member in roster:
        if examples[member] < 0:
            raise ConfigError(
                f"'{member}' says that it trained on {examples[member]} examples.", member=member
            )
    counts = {member: max(1, examples[member]) for member in roster}
    if weighting == "capped":
        counts = _capped(counts, cap_percent)
    most = max(counts.values(), default=0)
    if most < WEIGHT_LIMIT:
        return counts
    return {member: max(1, counts[member] * (WEIGHT_LIMIT - 1) // most) for member in roster}


def _capped(counts: Mapping[str, int], cap_percent: int) -> dict[str, int]:
    """Counts whose largest are lowered to one value, so that nobody is over its share of the new total.

    In integers: with the k largest lowered, S the sum of the others and c the cap, each of the k counts
    c S / (100 - k c) where an other counts what it says. All are multiplied by that divisor.
    """
    falling = sorted(counts.values(), reverse=True)
    others = sum(falling)
    for lowered, largest in enumerate(falling):
        divisor, ceiling = 100 - lowered * cap_percent, cap_percent * others
        if largest * divisor <= ceiling:
            return (
                {member: min(count * divisor, ceiling) for member, count in counts.items()}
                if lowered
                else dict(counts)
            )
        others -= largest
    # Too few members for such a cap: nobody can count less than all others do.
    return dict.fromkeys(counts, 1)


def require_weights(weights: Sequence[int], least: int) -> None:
    """See that weights can be merged with.

    Raises:
        ConfigError: one is below ``least`` or not below 2^29, or all are 0.
    """
    if any(not least <= weight < WEIGHT_LIMIT for weight in weights) or sum(weights) <= 0:
        raise ConfigError(
            f"Merge weights must be whole numbers from {least} to {WEIGHT_LIMIT - 1}, and not all 0: "
            f"{', '.join(map(str, weights[:20]))}.",
            safe="Nothing was merged.",
            do=_VOTE,
        )


_VOTE = "Change the study's `weighting` or `given` by vote: `konsil swarm propose`."
