"""Who leads which part: a function of what nobody could foresee and everybody can compute."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from konsil.core.digest import chunk_count
from konsil.core.rules.settings import StudySettings

_CONTEXT = "konsil 2026 deal of parts"
_DRAW_BYTES = 8
"""Of the digest stream for one draw: among 2^20 leaders the bias is below 2^-44."""


def deal(base: str, round_number: int, attempt: int, leaders: Sequence[str], n_parts: int) -> tuple[str, ...]:
    """The leader of each part: the leaders in an order drawn from the base, over and over if need be.

    Args:
        base: digest of the merge that the round starts from.
        round_number: the round.
        attempt: the round's attempt.
        leaders: who may lead, in an order that all agree on.
        n_parts: the parts to deal.
    """
    order = list(leaders)
    seed = f"{base}/{round_number}/{attempt}".encode()
    stream = blake3(seed, derive_key_context=_CONTEXT).digest(length=_DRAW_BYTES * max(1, len(order)))
    for last in range(len(order) - 1, 0, -1):  # Fisher-Yates
        draw = int.from_bytes(stream[last * _DRAW_BYTES : (last + 1) * _DRAW_BYTES], "big") % (last + 1)
        order[last], order[draw] = order[draw], order[last]
    return tuple(order[part % len(order)] for part in range(n_parts))


def part_count(settings: StudySettings, n_leaders: int, data_bytes: int) -> int:
    """How many parts a merge has: one a leader, but none without a chunk; or one in all."""
    if settings.parts == "leader":
        return 1
    return min(n_leaders, chunk_count(data_bytes))
