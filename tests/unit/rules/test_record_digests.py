"""Digests of accepted rounds are made once, and forgotten with their records."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.rules import record_digests
from konsil.core.rules.record_digests import record_digest
from konsil.core.rules.state import RoundRecord, ScoreRecord


def accepted(number):
    return RoundRecord(number, 1, "b", "d", {}, {}, (), {}, 0, 1, 2)


@pytest.fixture
def made(monkeypatch):
    """How many digests were made."""
    inputs = []

    def counted(data, kind):
        inputs.append(data)
        return f"{kind} {len(inputs)}"

    monkeypatch.setattr(record_digests, "bytes_digest", counted)
    return inputs


def test_each_records_digest_is_made_once_however_long_the_history_is(made):
    history = [accepted(number) for number in range(20_000)]
    first = [record_digest(record) for record in history]
    assert len(made) == 20_000
    assert [record_digest(record) for record in history] == first
    assert len(made) == 20_000


def test_a_record_that_a_score_replaced_is_not_kept(made):
    before = len(record_digests._known)
    record = accepted(1)
    for number in range(100):
        record = replace(record, scores=record.scores | {f"m{number}": ScoreRecord(1)})
        record_digest(record)
    assert len(made) == 100, "each is another"
    assert len(record_digests._known) == before + 1
    del record
    assert len(record_digests._known) == before


def test_a_record_at_the_place_of_one_that_is_gone_has_its_own_digest(made):
    digests = [record_digest(accepted(number)) for number in range(1000)]  # all at one place in memory
    assert len(set(digests)) == len(made) == 1000
