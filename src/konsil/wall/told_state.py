"""The ledger's state over the wall: in the word itself, or in a memory file once it is long.

It holds every round of every study, 1.8 kB of JSON for four members and 12 kB for 32: after some years it
would be longer than any word may be.
"""

from __future__ import annotations

import msgspec

from konsil.core.rules.state import State
from konsil.core.wall import ToldState
from konsil.wall.memory import SealedMemory, open_sealed, seal_pieces

IN_WORD_BYTES = 1 << 20
"""The longest state that goes in the word: most of those that are asked for, and no file is made for them."""


def told_state(height: int, digest: str, state: bytes) -> tuple[ToldState, SealedMemory | None]:
    """The word that tells a state, and the memory to send with it, which is the caller's to close."""
    if len(state) <= IN_WORD_BYTES:
        return ToldState(height, digest, state), None
    return ToldState(height, digest, b""), seal_pieces([state])


def read_state(told: ToldState, fd: int | None) -> State:
    """The state that was told. ``fd``: what came with the word; it is closed.

    Raises:
        FrameError: the descriptor is no sealed memory file.
    """
    if fd is None:
        return msgspec.json.decode(told.state, type=State)
    with open_sealed(fd) as memory:
        return msgspec.json.decode(memory.data, type=State)
