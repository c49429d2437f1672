"""What peers say of themselves, for `konsil doctor`: versions, clocks, heights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from konsil.core.messages import GetStatus, Status
from konsil.core.wall import PeerCheck
from konsil.errors import KonsilError
from konsil.node.peers import Peers

ANSWER_S = 5.0
"""A peer that takes longer for a hundred bytes is in trouble, and doctor's user waits."""


async def ask_peers(peers: Peers, clock: Callable[[], float]) -> tuple[PeerCheck, ...]:
    """Ask every peer of the directory at once; in name order. One that does not answer says why."""
    names = sorted(link.name for link in peers.transport.links())
    return tuple(await asyncio.gather(*(_ask(peers, name, clock) for name in names)))


async def _ask(peers: Peers, name: str, clock: Callable[[], float]) -> PeerCheck:
    asked_s = clock()
    try:
        answer, _ = await peers.ask(name, GetStatus(), timeout_s=ANSWER_S)
    except KonsilError as error:
        return PeerCheck(name, problem=error.what)
    if not isinstance(answer, Status):
        return PeerCheck(name, problem=f"It answered {type(answer).__name__}.")
    # The answer left the peer about half-way between asking and hearing.
    ahead_s = answer.clock_s - (asked_s + clock()) / 2
    return PeerCheck(name, answer.version, ahead_s, answer.height)
