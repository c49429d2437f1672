"""How long a transport waits for what, and how much it holds at once."""

from __future__ import annotations

from dataclasses import dataclass

MAX_IN_FLIGHT = 256
"""Requests of one side that may be open on one connection; further ones wait at the asker."""

MAX_STREAMS = 16
"""Streams of one side that may be open on one connection. A ledger's engine needs one, and one more while it
dials anew; what lies unread is at most a window in each."""

MAX_HANDSHAKES = 64
"""Connections that are being accepted; further ones wait in the listening socket's backlog."""

MAX_HANDSHAKES_OF_ONE = MAX_HANDSHAKES // 4
"""Those of one address of which none gives way while all places are taken: a proxy may be many members."""

MAX_WAITING_FRAMES = 4096
"""Frames that wait for a peer that does not read: more than any honest exchange makes."""


@dataclass(frozen=True)
class Timings:
    """Deadlines of a transport, in seconds.

    Attributes:
        handshake_s: from a connection's first byte until both sides have greeted.
        ping_s: silence after which a peer is asked whether it is there.
        missed_pings: unanswered questions after which it is not.
        frame_s: for one frame to arrive, once begun (at most 256 KiB: 4 KiB a second is enough).
        rival_s: for the first of two nodes with one identity to show that it is alive.
        backoff_min_s: before the second attempt to connect; doubles with each, with jitter.
        backoff_max_s: between two attempts at most.
        backoff_wanted_s: the same while a request waits.
        yield_s: what the member with the greater name waits before it dials one that may dial it.
        renew_margin_s: before a certificate expires, for requests in flight to finish elsewhere.
        stream_grace_s: for streams to be over once their connection is left; then they are cut.
        close_s: for the last bytes to leave when a connection is closed in order.
    """

    handshake_s: float = 10.0
    ping_s: float = 5.0
    missed_pings: int = 3
    frame_s: float = 60.0
    rival_s: float = 2.0
    backoff_min_s: float = 0.05
    backoff_max_s: float = 15.0
    backoff_wanted_s: float = 1.0
    yield_s: float = 0.25
    renew_margin_s: float = 60.0
    stream_grace_s: float = 60.0
    close_s: float = 1.0

    def backoff_s(self, failures: int, *, wanted: bool) -> float:
        """Between two attempts to connect, after so many that failed; ``wanted``: while a request waits."""
        most_s = self.backoff_wanted_s if wanted else self.backoff_max_s
        return min(most_s, self.backoff_min_s * 2.0 ** min(failures, 32))
