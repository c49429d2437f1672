"""What must hold in every universe of either world, and how a universe ended."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

Law = Literal[
    "",
    "one merge a round",
    "all hold one merge",
    "a merge is what its commits give",
    "members are merged in the order of their names",
    "what was accepted is on disk",
    "what is held is on disk",
    "one update a round",
    "a snapshot stays what it was",
    "a promise is written before it is said",
    "a noted score reaches the ledger",
    "no honest member is struck",
    "nobody slips away from a dispute",
    "rounds end",
    "who is there takes part",
    "who took part is on the ledger",
    "a majority accepts",
    "nothing happens before its deadline",
    "history only grows",
    "the ledger is what its calls give",
    "entries are on disk before they are told",
    "updates are read once the roster is fixed",
    "only members of the study read",
    "the ledger is not flooded",
    "what failed is not tried again at once",
    "honest nodes make no errors",
    "nothing is left behind",
]
"""A law in a few words that stay the same; "" where all held. Not each world can look at each law."""

AnyPlan = TypeVar("AnyPlan")


class Violation(Exception):
    """A law does not hold. ``law``: which one."""

    def __init__(self, law: Law, what: str) -> None:
        """Say what happened."""
        super().__init__(f"{law}: {what}")
        self.law = law
        self.what = what


class Outcome(msgspec.Struct, Generic[AnyPlan], frozen=True):
    """How a universe ended. ``law``, ``what``: the first law that did not hold, "" if all did.

    ``rounds``: that were accepted; ``calls``: that the ledger took; ``seconds``: of the universe's own time.
    """

    plan: AnyPlan
    law: Law
    what: str
    rounds: int
    calls: int
    seconds: float
