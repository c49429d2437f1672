"""When a connection must be asked, left or ended: a decision about times, which are given."""

from __future__ import annotations

from typing import NamedTuple

from konsil.transport.timings import Timings

_LIFE_LEFT = 0.2
"""A short-lived certificate's connection is left when this part of its life remains."""

_AGAIN_S_MIN = 0.02


class Verdict(NamedTuple):
    """What to do now. ``end``: why the connection must end, or ""; ``again_s``: when to look again."""

    end: str
    ask: bool
    leave: bool
    again_s: float


class Watch:
    """Looks after silence, frames that do not end, and certificates that do.

    Args:
        timings: the deadlines.
        expires_s: unix time at which the first certificate of the connection ends.
        now_s: monotonic time.
        unix_s: unix time.
    """

    def __init__(self, timings: Timings, expires_s: float, now_s: float, unix_s: float) -> None:
        """Start at this moment."""
        self._timings = timings
        self._expires_s = expires_s
        self._leave_s = expires_s - min(timings.renew_margin_s, _LIFE_LEFT * (expires_s - unix_s))
        self._frames = -1
        self._stuck_since_s = now_s
        self._due_s = now_s
        self._excused_s = now_s

    def look(self, now_s: float, unix_s: float, heard_s: float, *, frames: int, partial: bool) -> Verdict:
        """Decide.

        Args:
            now_s: monotonic time.
            unix_s: unix time.
            heard_s: monotonic time of the last byte from the peer.
            frames: how many whole frames have come.
            partial: whether one has begun and is not complete.
        """
        timings = self._timings
        if now_s - self._due_s > timings.ping_s:
            # This process itself was held up: nobody could be heard.
            self._excused_s = now_s
        silent_s = now_s - max(heard_s, self._excused_s)
        end = ""
        if unix_s >= self._expires_s:
            end = "A certificate of this connection has expired."
        elif silent_s >= timings.ping_s * (timings.missed_pings + 1):
            end = f"The peer has been silent for {silent_s:.1f} s."
        elif self._is_stuck(now_s, frames, partial=partial):
            end = f"A frame of the peer did not end within {timings.frame_s:g} s."
        leave = unix_s >= self._leave_s
        ahead_s = [timings.ping_s, timings.frame_s / 2, self._expires_s - unix_s]
        if not leave:
            ahead_s.append(self._leave_s - unix_s)
        again_s = max(_AGAIN_S_MIN, min(ahead_s))
        self._due_s = now_s + again_s
        return Verdict(end, silent_s >= timings.ping_s, leave, again_s)

    def _is_stuck(self, now_s: float, frames: int, *, partial: bool) -> bool:
        """Whether one frame has been arriving for too long: trickled bytes keep nobody alive."""
        if not partial or frames != self._frames:
            self._frames = frames if partial else -1
            self._stuck_since_s = now_s
            return False
        return now_s - self._stuck_since_s >= self._timings.frame_s
