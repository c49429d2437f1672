"""The smallest universe that breaks the same law: what is left in it is what matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from konsil.errors import ConfigError

P = TypeVar("P")
F = TypeVar("F")


def minimise(plan: P, smaller: Callable[[P], Iterable[P]], law: Callable[[P], str]) -> P:
    """Take away from a plan what its violation does not need.

    Args:
        plan: a universe in which a law is broken.
        smaller: plans with one thing less than a plan has.
        law: the law that is broken in a plan's universe; "" if none is.

    Returns:
        A plan from which nothing more can be taken alone; the plan itself if no law is broken in it.
    """
    broken = law(plan)
    while broken:
        found = next((less for less in smaller(plan) if law(less) == broken), None)
        if found is None:
            break
        plan = found
    return plan


def without_one(faults: tuple[F, ...]) -> Iterator[tuple[F, ...]]:
    """All but one of these, in turn."""
    for place in range(len(faults)):
        yield faults[:place] + faults[place + 1 :]


def possible(plans: Iterable[P], check: Callable[[P], None]) -> Iterator[P]:
    """Those of these plans that can be. ``check``: raises ``ConfigError`` for the others."""
    for plan in plans:
        try:
            check(plan)
        except ConfigError:
            continue
        yield plan
