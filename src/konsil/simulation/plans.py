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

ELSEWHERE: dict[WorldName, dict[str, str]] = {
    "core": {"SaysGoodbye": "", "SlowLine": ""},
    "nodes": {"Slow": "; here `trains_s` says how long a member trains"},
}
"""Faults that a world does not have and the other one has, with what there is instead."""

AnyPlan = TypeVar("AnyPlan", bound=msgspec.Struct)


_SAID: dict[WorldName, str] = {"core": "the core", "nodes": "real nodes"}


class _Which(msgspec.Struct):
    world: WorldName = "core"


class _Kind(msgspec.Struct):
    type: str = ""


class _Faults(msgspec.Struct):
    faults: tuple[_Kind, ...] = ()


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
            f"This plan is for the world of {_SAID[other]}.",
            safe="Nothing was run.",
            do="Leave out `--nodes`: `konsil simulate --from FILE` runs a plan in the world that it is for.",
        )
    _see_whose_faults(data, world)
    return _decode(data, kind)


def _see_whose_faults(data: bytes, world: WorldName) -> None:
    """Say it of a fault of the other world: that there is no such fault would be wrong."""
    here, there = _SAID[world], _SAID["core" if world == "nodes" else "nodes"]
    for fault in _decode(data, _Faults).faults:
        if fault.type in ELSEWHERE[world]:
            raise ConfigError(
                f"`{fault.type}` is a fault of the world of {there}, and this plan is for that of {here}"
                f"{ELSEWHERE[world][fault.type]}.",
                safe="Nothing was run.",
                do="Take it out of the plan."
                if world == "nodes"
                else 'If the plan is one for real nodes, add `"world": "nodes"`; else take the fault out.',
            )


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
            f"A universe of this plan cannot be: {what.removesuffix('.')}.",
            safe="Nothing was run.",
            do="Correct the plan; `konsil simulate --seed N --plan` prints one that can.",
        )
