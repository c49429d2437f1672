"""What a node carries out: a generator that says what it waits for, and goes on when it has come.

It yields seconds to wait, a call for the ledger, or a list of requests to peers, and gets None, None, or
their answers; what fails is raised inside it. So a node's work reads from top to bottom, and can be
abandoned at every point, which is what a crash does.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from konsil.core.round import Advance, Deliver, Effect, Fetch, Lead, Probe, Recompute, Submit
from konsil.core.rules import Call
from konsil.errors import KonsilError
from konsil.simulation.universe.models import Content


class Ask(NamedTuple):
    """A request to a peer for what is behind a digest. ``away_s``: how long one without a way is waited
    for.
    """

    peer: str
    digest: str
    away_s: float = 2.0


Answer = Content | KonsilError
Want = float | Call | Sequence[Ask]
Work = Generator[Want, Any, None]


class Errand:
    """An effect under way. ``life``: the life of the node in which it began; ``open``: peers whose answers
    are waited for; ``running``: whether it does something at this moment.
    """

    __slots__ = ("answers", "effect", "life", "missing", "open", "over", "running", "work")

    def __init__(self, effect: Effect, work: Work, life: int) -> None:
        self.effect = effect
        self.work = work
        self.life = life
        self.over = self.running = False
        self.answers: list[Answer | None] = []
        self.missing = 0
        self.open: dict[str, int] = {}

    def abandon(self) -> None:
        """Stop here; what it does at this moment it does to its end."""
        self.over = True
        if not self.running:
            self.work.close()


DOING = {
    Submit: "its call",
    Fetch: "getting the merge",
    Lead: "merging its part",
    Recompute: "recomputing a chunk",
    Probe: "looking for itself",
    Advance: "its outer step",
    Deliver: "handing the model over",
}
"""What a node is at, in the words of a story."""
