"""When a connection is asked, left or ended."""

from __future__ import annotations

import pytest

from konsil.transport.timings import Timings
from konsil.transport.watch import Watch

TIMINGS = Timings(ping_s=5, missed_pings=3, frame_s=60, renew_margin_s=60)
UNIX_S = 1_000_000.0


def look(watch, at_s, heard_s=None, frames=0, partial=False):
    heard_s = at_s if heard_s is None else heard_s
    return watch.look(at_s, UNIX_S + at_s, heard_s, frames=frames, partial=partial)


def every_5_s(watch, until_s, **seen):
    verdict = None
    for at_s in range(0, until_s + 1, 5):
        verdict = look(watch, at_s, **seen)
    return verdict


def test_a_peer_is_asked_after_silence_and_given_up_after_three_missed_answers():
    watch = Watch(TIMINGS, UNIX_S + 3600, 0.0, UNIX_S)
    assert not look(watch, 0).ask
    assert look(watch, 5, heard_s=0).ask
    assert look(watch, 10, heard_s=0).end == ""
    assert look(watch, 15, heard_s=0).end == ""
    assert "silent" in look(watch, 20, heard_s=0).end


def test_a_peer_that_is_heard_stays():
    watch = Watch(TIMINGS, UNIX_S + 36000, 0.0, UNIX_S)
    verdict = every_5_s(watch, 300)
    assert verdict.end == ""
    assert not verdict.ask


def test_a_process_that_was_held_up_itself_blames_nobody():
    watch = Watch(TIMINGS, UNIX_S + 36000, 0.0, UNIX_S)
    look(watch, 0)
    assert look(watch, 300, heard_s=0).end == ""
    assert look(watch, 305, heard_s=0).ask


def test_trickled_bytes_keep_no_connection_alive():
    watch = Watch(TIMINGS, UNIX_S + 36000, 0.0, UNIX_S)
    assert every_5_s(watch, 55, frames=3, partial=True).end == ""
    assert "did not end" in look(watch, 60, frames=3, partial=True).end


def test_frames_that_end_may_follow_each_other_for_ever():
    watch = Watch(TIMINGS, UNIX_S + 36000, 0.0, UNIX_S)
    for at_s in range(0, 600, 5):
        assert look(watch, at_s, frames=at_s, partial=True).end == ""


@pytest.mark.parametrize(("life_s", "leave_at_s"), [(3600, 3540), (100, 80)])
def test_a_connection_is_left_before_its_certificate_ends(life_s, leave_at_s):
    watch = Watch(TIMINGS, UNIX_S + life_s, 0.0, UNIX_S)
    assert not look(watch, leave_at_s - 1).leave
    assert look(watch, leave_at_s).leave
    assert look(watch, leave_at_s).end == ""
    assert "expired" in look(watch, life_s).end


def test_it_looks_again_when_the_certificate_matters():
    watch = Watch(TIMINGS, UNIX_S + 10, 0.0, UNIX_S)
    assert look(watch, 0).again_s == pytest.approx(5)
    assert look(watch, 5).again_s == pytest.approx(3)
    assert look(watch, 8).again_s == pytest.approx(2)
