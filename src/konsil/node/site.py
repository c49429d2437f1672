"""What a study at a node needs of the node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from konsil.core.round import LedgerTime
from konsil.core.rules import Call
from konsil.errors import NodeError
from konsil.ledger.base import Ledger
from konsil.node.journal import Journal
from konsil.node.models import Models
from konsil.node.peers import Peers
from konsil.node.rules import Rules

MODEL_SHARE = 8
"""A node holds up to three models of a study at once, beside the training process: an eighth of the
memory a model leaves room for them and for another study."""


def default_max_model_bytes() -> int:
    """The largest model that this machine takes unless it is told otherwise."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MODEL_SHARE


def require_room(wanted: int, most: int) -> None:
    """See that a model is one that this node was set up for, before memory is reserved or a byte is read.

    Args:
        wanted: its size, in bytes.
        most: the largest that this node takes, in bytes.

    Raises:
        NodeError: it is larger.
    """
    if wanted > most:
        raise NodeError(
            f"The study's model has {wanted / 1e9:.1f} GB; this node takes models of {most / 1e9:.1f} GB.",
            safe="Nothing was loaded.",
            do="Raise max_model_gb under [node] in node.toml, if the machine has the memory.",
        )


@dataclass
class Site:
    """A member's name and its node's parts. ``clock``: this machine's unix time in seconds."""

    me: str
    ledger: Ledger
    journal: Journal
    models: Models
    peers: Peers
    clock: Callable[[], float] = time.time
    rules: Rules = field(default_factory=Rules)
    max_model_bytes: int = field(default_factory=default_max_model_bytes)
    _time: LedgerTime = field(default=LedgerTime(), init=False)
    _heard_s: int = field(default=0, init=False)

    def ledger_s(self) -> float:
        """The ledger's time, in which its deadlines are: the clock, corrected as far as that shows it wrong.

        A clock that is behind would let a member be silent while it trains; one that is ahead would make it
        say all the time that it trains.
        """
        own_s, entry_s = self.clock(), self.ledger.state.now_s
        if entry_s != self._heard_s:
            self._heard_s = entry_s
            self._time = self._time.heard(entry_s, own_s)
        return self._time.now_s(own_s)

    async def submit(self, call: Call) -> int:
        """Put a call on the ledger; see ``Ledger.submit``."""
        sent_s = self.clock()
        height = await self.ledger.submit(call)
        self._time = self._time.answered(sent_s, self.ledger.state.now_s)
        return height
