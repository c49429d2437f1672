"""CometBFT's time-outs, from how long a message and its answer take between the members.

Those that come with it suit a network of unknown machines; in a LAN they make a call wait 400 ms for nothing.
All of them grow with every attempt at a block, so a value that is too short costs attempts and never safety.
"""

from __future__ import annotations

from typing import NamedTuple

LOCAL_MS = 2.0
"""Below this it is one machine or one room, where scheduling and disks take longer than lines."""


class Timings(NamedTuple):
    """In milliseconds. ``propose``: how long to wait for the proposer. ``vote``: for more votes once two
    thirds are there. ``commit``: for late votes after a block. ``gossip``: between two looks for what a peer
    lacks. ``flush``: for more to send along.
    """

    propose: int
    vote: int
    commit: int
    gossip: int
    flush: int


def timings(round_trip_ms: float) -> Timings:
    """Time-outs for the longest round trip to another member; 0 where none was measured yet.

    A proposal of one part crosses to a peer, at worst through another, while machines are busy: three round
    trips and half a second. The votes after it are small: two, and a fifth of a second.
    """
    trip_ms = max(LOCAL_MS, round_trip_ms)
    return Timings(
        propose=round(500 + 3 * trip_ms),
        vote=round(200 + 2 * trip_ms),
        commit=25,  # long enough for the next call to come into the block that confirms the last one
        gossip=5,
        flush=5,
    )
