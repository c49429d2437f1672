"""The two worlds in which universes run, each behind the same few functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from konsil.simulation.laws import Outcome
from konsil.simulation.minimise import minimise
from konsil.simulation.plans import WorldName

P = TypeVar("P")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class World(Generic[P]):
    """``draw``: a seed's plan; ``decode``: a plan from JSON; ``sentences``: a plan in words; ``run``: its
    universe, told sentence by sentence; ``smaller``: what a plan is with one thing less.
    """

    name: WorldName
    draw: Callable[[int], P]
    decode: Callable[[bytes], P]
    sentences: Callable[[P], Iterator[str]]
    run: Callable[[P, Tell | None], Outcome[P]]
    smaller: Callable[[P], Iterator[P]]

    def minimised(self, plan: P) -> P:
        """The smallest plan that breaks the same law; the plan itself if none is broken in it."""
        return minimise(plan, self.smaller, lambda less: self.run(less, None).law)


def world(name: WorldName) -> World[Any]:
    """A world by its name."""
    return _core() if name == "core" else _nodes()


def _core() -> World[Any]:
    from konsil.simulation import universe  # noqa: PLC0415 - only what is used is imported
    from konsil.simulation.universe.sentences import sentences  # noqa: PLC0415 - as above
    from konsil.simulation.universe.smaller import smaller  # noqa: PLC0415 - as above

    draw, decode, run = universe.draw_plan, universe.decode_plan, universe.run_universe
    return World("core", draw, decode, sentences, run, smaller)


def _nodes() -> World[Any]:
    from konsil.simulation import nodes  # noqa: PLC0415 - it imports the whole node
    from konsil.simulation.nodes.sentences import sentences  # noqa: PLC0415 - as above
    from konsil.simulation.nodes.smaller import smaller  # noqa: PLC0415 - as above

    return World("nodes", nodes.draw_plan, nodes.decode_plan, sentences, nodes.run_universe, smaller)
