"""Plans of universes as JSON: which world one is for, how it is read, and how it is said what cannot be."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from konsil.errors import ConfigError

WorldName = Literal["core", "nodes"]
"""A model of a node around the real core, or the whole code of real nodes. A plan without a name is for the
first."""

MOST_MEMBERS = 10
LONG_S = 86_400.0
"""More than any of these shows nothing new, and takes long."""

AnyPlan = TypeVar("AnyPlan", bound=msgspec.Struct)


class _Which(msgspec.Struct):
    world: WorldName = "core"


def encode_plan(plan: msgspec.Struct) -> str:
    """A plan as JSON, for a regression test or a bug report."""
    return msgspec.json.encode(plan).decode()


def world_of(data: bytes) -> WorldName:
    """The world that a plan is for.

    Raises:
        ConfigError: it is no plan.
    """
    return _decode(data, _Which).world


def decode(data: bytes, world: WorldName, kind: type[AnyPlan]) -> AnyPlan:
    """A plan from a file that somebody may have edited; what cannot be in it is for the caller to see.

    Raises:
        ConfigError: it is no plan, or one for another world.
    """
    other = world_of(data)
    if other != world:
        raise ConfigError(
            f"This plan is for the world of {'real nodes' if other == 'nodes' else 'the core'}.",
            safe="Nothing was run.",
            do="`konsil simulate --from FILE` runs a plan in the world that it is for.",
        )
    return _decode(data, kind)


def _decode(data: bytes, kind: type[AnyPlan]) -> AnyPlan:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"This is no plan of a universe: {error}.",
            safe="Nothing was run.",
            do="`konsil simulate --seed N --plan` prints one, with `--nodes` one for real nodes.",
        ) from error


def can_be(held: bool, what: str) -> None:
    """See that something can be in a universe.

    Raises:
        ConfigError: it cannot.
    """
    if not held:
        raise ConfigError(
            f"A universe of this plan cannot be: {what}.",
            safe="Nothing was run.",
            do="Correct the plan; `konsil simulate --seed N --plan` prints one that can.",
        )
