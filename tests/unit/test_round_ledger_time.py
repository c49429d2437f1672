"""A node with a wrong clock knows what time it is on the ledger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.round import LedgerTime


def test_a_clock_that_fits_is_believed():
    time = LedgerTime().heard(1000, 1000.3).answered(1001.2, 1001).heard(1001, 1001.4)
    assert time.now_s(1002.0) == 1002.0


def test_without_any_entry_the_own_clock_is_all_there_is():
    assert LedgerTime().now_s(17.0) == 17.0


def test_a_clock_that_is_ahead_is_put_back_by_the_first_call():
    time = LedgerTime().heard(1000, 1300.1).answered(1300.2, 1000)
    assert 1000 <= time.now_s(1300.5) <= 1001.5


def test_a_clock_that_is_behind_is_put_forward_by_the_first_news():
    assert LedgerTime().heard(1000, 700.5).now_s(701.0) == 1000.5


def test_old_entries_that_are_read_at_the_start_say_nothing_of_now():
    time = LedgerTime()
    for height in range(100):
        time = time.heard(height, 5000.0)
    assert time.now_s(5000.0) == 5000.0


@pytest.mark.parametrize("ahead_s", [-600.0, 600.0])
def test_a_clock_that_is_set_right_is_soon_believed_again(ahead_s):
    time = LedgerTime()
    for second in range(1000, 1020):
        own_s = second + ahead_s
        time = time.answered(own_s, second).heard(second, own_s + 0.2)
    assert time.now_s(1019 + ahead_s) == pytest.approx(1019, abs=1.5)
    for second in range(1020, 1040):
        time = time.answered(second, second).heard(second, second + 0.2)
    assert time.now_s(1039.0) == pytest.approx(1039.0, abs=1.5)


@given(
    skew_s=st.floats(-1e5, 1e5),
    waits=st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)), min_size=1, max_size=30),
)
def test_the_estimate_is_never_early_by_more_than_a_second_nor_late_by_more_than_news_take(skew_s, waits):
    time, true_s = LedgerTime(), 1e6
    for there_s, back_s in waits:
        sent_s = true_s + skew_s
        true_s += there_s
        entry_s = int(true_s)
        true_s += back_s
        time = time.answered(sent_s, entry_s).heard(entry_s, true_s + skew_s)
        true_s += 1
    error_s = time.now_s(true_s + skew_s) - true_s
    assert -max(there_s + back_s + 1.001 for there_s, back_s in waits) <= error_s
    assert error_s <= max(there_s + back_s + 1.001 for there_s, back_s in waits)
