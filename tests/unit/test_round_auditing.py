"""How many chunks an audit takes: never fewer on average than the study says, and few where models are small."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.digest import part_range
from konsil.core.round import audits
from konsil.core.round.auditing import AUDITS_A_ROUND

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


# --- what escapes --------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs" / "auditor.md"
FRACTIONS = (0.05, 0.25, 0.5, 1.0)


def _foreign(members: int, chunks: int) -> list[int]:
    """How many chunks others merged, for each member but the first, which lies; parts are shared."""
    parts = min(members, chunks)
    return [chunks - (len(part_range(at, parts, chunks)) if at < parts else 0) for at in range(1, members)]


def _escapes(members: int, chunks: int, fraction: float) -> float:
    """The chance that no honest member recomputes one wrong chunk, as docs/auditor.md has it."""
    each = min(1.0, AUDITS_A_ROUND / (members - 1))
    return math.prod(1 - max(fraction, each / foreign) for foreign in _foreign(members, chunks))


def _told() -> dict[tuple[int, int], list[str]]:
    """The table of the docs: (members, chunks) -> what escapes, by fraction."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    return {
        (int(members), int(chunks)): [cell.strip() for cell in row.split("|")]
        for members, chunks, row in rows
    }


def _written(chance: float) -> str:
    if chance < 1e-5:
        return "0" if chance == 0 else "< 0.001 %"
    return f"{100 * chance:.{0 if chance >= 0.1 else 1 if chance >= 0.001 else 3}f} %"


def test_the_docs_say_what_escapes():
    told = _told()
    assert {members for members, _ in told} == {3, 5, 10, 32}
    for (members, chunks), cells in told.items():
        assert cells == [_written(_escapes(members, chunks, fraction)) for fraction in FRACTIONS]


@pytest.mark.parametrize(
    ("members", "chunks", "fraction"), [(32, 1, 0.05), (10, 1, 0.05), (5, 24, 0.25), (3, 24, 0.5)]
)
def test_so_much_escapes_where_members_draw(members, chunks, fraction):
    chance, rounds = random.Random(4), 4000  # noqa: S311 - the test's own luck
    foreign = _foreign(members, chunks)

    def seen(count: int) -> bool:
        """Whether one member's draw has the wrong chunk, which is number 0 of those that others merged."""
        return 0 in chance.sample(range(count), audits(count, fraction, members - 1, chance.random()))

    escaped = sum(not any(seen(count) for count in foreign) for _ in range(rounds))
    expected = _escapes(members, chunks, fraction)
    assert escaped / rounds == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / rounds))
