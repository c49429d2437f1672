"""What a study at a node needs of the node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from konsil.core.rules import Call
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
    _shift_s: float = field(default=0.0, init=False)

    def ledger_s(self) -> float:
        """The ledger's time, in which its deadlines are: the clock, corrected as far as that shows it wrong.

        A clock that is behind would let a member be silent while it trains; one that is ahead would make it
        say all the time that it trains.
        """
        self._shift_s = max(self._shift_s, self.ledger.state.now_s - self.clock())
        return self.clock() + self._shift_s

    async def submit(self, call: Call) -> int:
        """Put a call on the ledger; see ``Ledger.submit``."""
        sent_s = self.clock()
        height = await self.ledger.submit(call)
        # The ledger's time, in whole seconds, is of after this was sent: by then it was no later than that.
        self._shift_s = min(self._shift_s, self.ledger.state.now_s + 1 - sent_s)
        return height
