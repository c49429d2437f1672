"""Scores on their way through the round machine: they hold a dict, which nothing may trip over."""

from __future__ import annotations

from konsil.core.round import Done, Failed, Looked, NodeRound, ScoreReady, Submit, step
from konsil.core.rules import Commitment, RoundRecord, Score, Study, StudySettings

SCORE = Score("aml", 1, 20, loss=0.4, metrics={"auc": 0.9, "accuracy": 0.8})


def study() -> Study:
    record = RoundRecord(
        number=1,
        attempt=1,
        base="0" * 64,
        digest="1" * 64,
        roster={"bonn": Commitment("2" * 64, 10, 0)},
        weights={"bonn": 10},
        parts=(),
        absent={},
        opened_s=0,
        merging_s=0,
        accepted_s=0,
    )
    settings = StudySettings(name="aml", every_steps=1)
    return Study(settings, "3" * 64, "bonn", 0, phase="running", history=(record,))


def test_a_score_with_metrics_is_put_on_record_once():
    state, first, _ = step(NodeRound(me="bonn", study="aml"), ScoreReady(SCORE), study(), 0.0)
    state, again, _ = step(state, Looked(), study(), 0.0)
    state, done, _ = step(state, Done(Submit(SCORE)), study(), 0.0)

    assert first == (Submit(SCORE),)
    assert again == ()
    assert done == ()
    assert state.scores == ()


def test_a_score_that_could_not_be_put_on_record_is_tried_again_later():
    state, _, _ = step(NodeRound(me="bonn", study="aml"), ScoreReady(SCORE), study(), 0.0)
    state, failed, wake_s = step(state, Failed(Submit(SCORE)), study(), 0.0)
    _, later, _ = step(state, Looked(), study(), wake_s)

    assert failed == ()
    assert later == (Submit(SCORE),)
