"""How many chunks an audit takes: never fewer on average than the study says, and few where models are small."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.round import audits

_STEPS = 1000


def _mean(foreign: int, fraction: float, others: int) -> float:
    return sum(audits(foreign, fraction, others, step / _STEPS) for step in range(_STEPS)) / _STEPS


@given(st.integers(0, 300), st.floats(0.001, 1), st.integers(0, 64))
def test_each_chunk_is_chosen_with_the_studys_chance_at_least(foreign, fraction, others):
    assert _mean(foreign, fraction, others) >= foreign * fraction - 1 / _STEPS


@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 64), st.floats(0, 1, exclude_max=True))
def test_no_more_are_chosen_than_there_are(foreign, fraction, others, drawn):
    assert 0 <= audits(foreign, fraction, others, drawn) <= foreign


@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_all_and_none_are_what_they_say(drawn):
    assert audits(75, 1.0, 3, drawn) == 75
    assert audits(75, 0.0, 3, drawn) == 0
    assert audits(0, 1.0, 3, drawn) == 0


@pytest.mark.parametrize("others", [1, 2, 3])
@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_in_a_small_roster_everybody_recomputes_a_chunk(others, drawn):
    assert audits(1, 0.05, others, drawn) == 1


def test_a_large_roster_recomputes_about_three_chunks_of_a_small_model_together():
    assert 31 * _mean(1, 0.05, 31) == pytest.approx(3, abs=0.05)
