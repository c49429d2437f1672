"""A trial of a merge rule that somebody wrote: does it keep what merging in chunks and parts relies on?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from konsil.core.merge.chunk import merge_chunk
from konsil.core.merge.gram import gram_chunk
from konsil.core.merge.rule import Mixing, Rule, mixing
from konsil.core.merge.weights import WEIGHT_LIMIT
from konsil.errors import ConfigError, KonsilError

Floats = NDArray[np.float64]

_ELEMENTS = 1_000
"""Enough for every way in which numpy takes elements together."""

_CUTS = (0, 1, 8, 523, _ELEMENTS)
"""Where the elements are cut: whoever leads a part sees only its own."""

_MORE_MEMBERS = (0, 1, 4)
"""So many members more than the rule needs: the swarm may be larger tomorrow."""

_MOST_MEMBERS = 1_024


def try_rule(make: Callable[[], Rule]) -> None:
    """See that a rule merges as the protocol needs it to.

    It must give finite numbers, the same for the same input; element by element, so that a part alone gives
    what the whole has there; for every roster from ``members`` on; and take its input as it is.

    Args:
        make: makes the rule, anew each time.

    Raises:
        ConfigError: what it does not keep.
    """
    rule = make()
    _check_form(rule)
    for more in _MORE_MEMBERS:
        n = rule.members + more
        for weights in ([1] * n, [1 + (101 * member) % 977 for member in range(n)]):
            with np.errstate(all="ignore"):  # what is not finite is found below
                _try_once(rule, make(), n, weights)


def _check_form(rule: Rule) -> None:
    if not isinstance(rule.members, int) or not 1 <= rule.members <= _MOST_MEMBERS:
        raise _broken(f"its `members` is {rule.members!r}, not a whole number from 1 to {_MOST_MEMBERS}")


def _try_once(rule: Rule, again: Rule, n: int, weights: Sequence[int]) -> None:
    base = _numbers("base", _ELEMENTS)
    updates = [base + 0.01 * _numbers(f"update {member}", _ELEMENTS) for member in range(n)]
    origin = base.tobytes() if rule.around_base else None
    runs = [("F64", 0, 8 * _ELEMENTS)]
    chunks = [update.tobytes() for update in updates]
    gram = gram_chunk(runs, chunks, origin) if rule.mix is not None else np.zeros((n, n))
    mixed = _mixed(rule, gram, weights)
    if any(mixed != _mixed(each, gram, weights) for each in (rule, again)):
        raise _broken(f"its mixing step gives other coefficients for the same input ({n} members)")
    whole = _merged(rule, updates, weights, mixed, base)
    if not np.isfinite(whole).all():
        raise _broken(f"it gives a NaN or an infinity for ordinary numbers ({n} members)")
    repeated = (_merged(each, updates, weights, mixed, base) for each in (rule, again))
    if not all(_same(each, whole) for each in repeated):
        raise _broken(f"it gives another result for the same input ({n} members)")
    for choice in _choices():
        part = _merged(rule, [update[choice] for update in updates], weights, mixed, base[choice])
        if not _same(part, whole[choice]):
            raise _broken(
                f"it is not elementwise: some elements alone, or in another order, give other results than "
                f"they have in the whole ({n} members)"
            )


def _choices() -> Iterator[NDArray[np.intp]]:
    """Which elements are merged by themselves: runs of them, and all in another order."""
    for start, stop in pairwise(_CUTS):
        yield np.arange(start, stop)
    yield np.arange(_ELEMENTS)[::-1]
    yield np.argsort(_numbers("order", _ELEMENTS), kind="stable")


def _mixed(rule: Rule, gram: Floats, weights: Sequence[int]) -> Mixing | None:
    kept = gram.copy()
    try:
        made: Mixing | None = mixing(rule, gram, tuple(weights))
    except Exception as error:
        raise _raised("mixing step", error, len(weights)) from error
    if not np.array_equal(gram, kept):
        raise _broken("its mixing step changes the Gram matrix that it is given")
    if rule.mix is not None and not isinstance(made, Mixing):
        raise _broken(f"its mixing step gives a {type(made).__name__}, not a konsil.core.merge.Mixing")
    if made is not None and not all(type(weight) is int for weight in made.weights):
        raise _broken(f"its mixing step gives weights that are not whole numbers below {WEIGHT_LIMIT}")
    return made


def _merged(
    rule: Rule, updates: Sequence[Floats], weights: Sequence[int], mixed: Mixing | None, base: Floats
) -> Floats:
    """What a rule makes of some elements, through the same function as in a study."""
    out = np.empty(len(base))

    def watched(values: Floats, given: Sequence[int], target: Floats) -> None:
        target.fill(np.nan)  # what a rule leaves unwritten is found
        shape = values.shape
        rule.reduce(values, given, target)
        if values.shape != shape:
            raise _broken("it changes how long its input is")

    one = replace(rule, reduce=watched)
    chunks = [update.tobytes() for update in updates]
    try:
        merge_chunk(
            one,
            [("F64", 0, out.nbytes)],
            chunks,
            tuple(weights),
            out.data.cast("B"),
            mixed,
            base.tobytes() if rule.around_base else None,
        )
    except KonsilError:
        raise
    except Exception as error:  # a rule that somebody wrote may raise anything
        raise _raised("reduce", error, len(weights)) from error
    return out


def _same(one: Floats, other: Floats) -> bool:
    return one.tobytes() == other.tobytes()


def _numbers(what: str, count: int) -> Floats:
    """Numbers from -1 to 1 that are the same everywhere."""
    raw = blake3(what.encode()).digest(length=4 * count)
    return np.frombuffer(raw, "<i4").astype(np.float64) / 2**31


def _raised(where: str, error: Exception, n: int) -> ConfigError:
    return _broken(f"its {where} raised {type(error).__name__}: {error} ({n} members)"[:500])


def _broken(why: str) -> ConfigError:
    return ConfigError(
        f"The merge rule cannot be used: {why}.",
        safe="Nothing was changed.",
        do="Correct its file; see 'One's own rule' in docs/protocol.md.",
    )
