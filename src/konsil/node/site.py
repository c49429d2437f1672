"""What a study at a node needs of the node."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

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
    """A member's name and its node's parts. ``clock``: unix time in seconds."""

    me: str
    ledger: Ledger
    journal: Journal
    models: Models
    peers: Peers
    clock: Callable[[], float] = time.time
    rules: Rules = field(default_factory=Rules)
    max_model_bytes: int = field(default_factory=default_max_model_bytes)
