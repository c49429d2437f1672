"""What lies between simulated nodes: lines that are slow, lose, repeat, overtake, break or swallow.

A pair of nodes has one connection or none, as over sockets: it takes time to come about, it breaks at both
ends when it is cut, and a hole in it is noticed by the pings only after a while. Until then requests hang.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from konsil.simulation.nodes.loop import SimulatedLoop
from konsil.transport.ask import fail
from konsil.transport.base import Received, Reply
from konsil.transport.sentences import gone, lost

if TYPE_CHECKING:
    from konsil.simulation.nodes.transport import SimulatedTransport

NOTICED_S = 5.0
"""How long a hole in a connection stays unnoticed. Over sockets it is 20 s; the rest of this world is as much
faster than real studies."""

RECONNECT_S = 1.0
"""At most so long until a connection that is possible again is there again."""

Pair = tuple[str, str]


@dataclass
class Conditions:
    """What the lines are like. ``delay_s``: one way, on average; ``slow``: member -> how many times slower.

    ``repeated``: share of the requests that arrive twice. ``bytes_per_s``: of model bytes.
    """

    delay_s: float = 0.01
    repeated: float = 0.0
    bytes_per_s: float = 2e9
    slow: dict[str, float] = field(default_factory=dict)


class Connection:
    """What two nodes have while they reach each other."""

    def __init__(self) -> None:
        self.asks: dict[asyncio.Future[Received], str] = {}
        self.bytes_in: Counter[str] = Counter()
        self.tasks: set[asyncio.Task[Reply]] = set()

    def end(self, why: str) -> None:
        """Fail what is in flight, and stop working on it."""
        for future, peer in list(self.asks.items()):
            fail(future, lost(peer, gone(why)))
        for task in self.tasks:
            task.cancel()


class Network:
    """All lines. ``scale``: what one model byte counts as, where models are small copies of real ones."""

    def __init__(self, loop: SimulatedLoop, seed: str, conditions: Conditions, scale: float = 1.0) -> None:
        """Everybody reaches everybody, once there is somebody."""
        self.loop = loop
        self.conditions = conditions
        self.scale = scale
        self._seed = seed
        self._lots: dict[Pair, random.Random] = {}
        self._transports: dict[str, SimulatedTransport] = {}
        self._connections: dict[Pair, Connection] = {}
        self._coming: set[Pair] = set()
        self._cuts: Counter[Pair] = Counter()
        self._holes: Counter[Pair] = Counter()

    # --- faults ----------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Break the connection; both notice at once."""
        self._cuts[_pair(one, other)] += 1
        self._break(_pair(one, other), "The line was cut.")

    def mend(self, one: str, other: str) -> None:
        """Undo one ``cut``."""
        self._cuts[_pair(one, other)] -= 1
        self.review(_pair(one, other))

    def swallow(self, sender: str, receiver: str) -> None:
        """From now on nothing from the one arrives at the other, and nobody is told."""
        self._holes[sender, receiver] += 1
        self.loop.call_later(NOTICED_S, self._notice, sender, receiver)

    def release(self, sender: str, receiver: str) -> None:
        """Undo one ``swallow``."""
        self._holes[sender, receiver] -= 1
        self.review(_pair(sender, receiver))

    def _notice(self, sender: str, receiver: str) -> None:
        if self._holes[sender, receiver] > 0:
            self._break(_pair(sender, receiver), f"The peer has been silent for {NOTICED_S:g} s.")

    # --- connections -----------------------------------------------------------------------------

    def add(self, transport: SimulatedTransport) -> None:
        """A node starts."""
        self._transports[transport.name] = transport

    def remove(self, transport: SimulatedTransport, why: str) -> None:
        """A node has ended, in whatever way."""
        if self._transports.get(transport.name) is transport:
            del self._transports[transport.name]
            for pair in [pair for pair in self._connections if transport.name in pair]:
                self._break(pair, why)

    def review_all(self, name: str) -> None:
        """A node's directory has changed."""
        for other in sorted(self._transports):
            if other != name:
                self.review(_pair(name, other))

    def review(self, pair: Pair) -> None:
        """Connect two nodes that may be connected, in a moment; part those that may not."""
        if pair in self._connections:
            if not self._may_be(pair):
                self._break(pair, "The peer was removed from the directory.")
        elif pair not in self._coming and self._may_be(pair):
            self._coming.add(pair)
            self.loop.call_later(self._draw(pair, RECONNECT_S), self._come, pair)

    def _come(self, pair: Pair) -> None:
        self._coming.discard(pair)
        if self._may_be(pair) and pair not in self._connections:
            self._connections[pair] = Connection()
            for name in pair:
                self._transports[name].connected_to()

    def _may_be(self, pair: Pair) -> bool:
        one, other = pair
        near, far = self._transports.get(one), self._transports.get(other)
        if near is None or far is None or self._cuts[pair] > 0:
            return False
        if self._holes[one, other] > 0 or self._holes[other, one] > 0:
            return False
        there, back = near.address(other), far.address(one)
        return there is not None and back is not None and bool(there.addresses or back.addresses)

    def _break(self, pair: Pair, why: str) -> None:
        connection = self._connections.pop(pair, None)
        if connection is not None:
            connection.end(why)
            self.review(pair)

    def connection(self, one: str, other: str) -> Connection | None:
        """The connection of two nodes, if they have one."""
        return self._connections.get(_pair(one, other))

    def is_open(self, connection: Connection, one: str, other: str) -> bool:
        """Whether a connection is still the one that two nodes have."""
        return self.connection(one, other) is connection

    def close_for(self, one: str, other: str, why: str) -> None:
        """One side ends the connection, since the other broke the format."""
        self._break(_pair(one, other), why)

    # --- on the way ------------------------------------------------------------------------------

    def transport(self, name: str) -> SimulatedTransport | None:
        """The node of a name, if it is up."""
        return self._transports.get(name)

    def swallows(self, sender: str, receiver: str) -> bool:
        """Whether what one sends to the other is lost now."""
        return self._holes[sender, receiver] > 0

    def takes_s(self, sender: str, receiver: str, body_bytes: float = 0) -> float:
        """How long a message is on its way. Drawn for each, so that later ones overtake earlier ones."""
        slow = max(self.conditions.slow.get(sender, 1.0), self.conditions.slow.get(receiver, 1.0))
        lots = self._lots_of((sender, receiver))
        sent_s = body_bytes / self.conditions.bytes_per_s
        return slow * (lots.expovariate(1 / self.conditions.delay_s) + sent_s)

    def comes_twice(self, sender: str, receiver: str) -> bool:
        """Whether a request is delivered twice."""
        return self._lots_of((sender, receiver)).random() < self.conditions.repeated

    def _draw(self, pair: Pair, at_most_s: float) -> float:
        return self._lots_of(pair).uniform(0.01, at_most_s)

    def _lots_of(self, way: Pair) -> random.Random:
        if way not in self._lots:  # one for each way: what goes on elsewhere does not change its luck
            self._lots[way] = random.Random(f"{self._seed}, {way[0]} to {way[1]}")  # noqa: S311
        return self._lots[way]


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)
