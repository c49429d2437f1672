"""Which merge is a study's final model, and the scores that say so."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from konsil.core.rules import (
    Adaptive,
    Best,
    Finish,
    Plateau,
    ProposeStudySettings,
    Score,
    choosable,
    final_round,
    mean_score,
    metrics_of,
    readable,
    score_matrix,
)
from konsil.core.rules.stopping import UNSCORED_ROUNDS

LOWEST = Best(metric="loss", mode="min")
HIGHEST = Best(metric="auc", mode="max")


def scored(world, number, value, name="a", examples=10):
    world.do(name, Score("aml", number, examples, loss=value, metrics={"auc": value}))


def trained(world, values):
    """As many rounds as values; each merge is scored by one member while the next round is trained."""
    for number, value in enumerate(values, 1):
        world.round()
        if value is not None:
            scored(world, number, value)
    return world


@pytest.mark.parametrize(("best", "chosen"), [(LOWEST, 3), (HIGHEST, 1)])
def test_the_best_merge_is_the_one_with_the_best_mean_and_not_the_last(swarm, best, chosen):
    world = trained(swarm(rounds=9, best=best).start(), [0.9, 0.5, 0.2, 0.4])
    assert world.study.best == chosen
    final = final_round(world.study, world.now_s)
    assert (final.round, final.digest) == (chosen, world.study.history[chosen - 1].digest)
    assert not final.settled  # the study goes on


def test_of_equals_the_earlier_merge_is_the_best(swarm):
    assert trained(swarm(rounds=9, best=LOWEST).start(), [0.5, 0.2, 0.2, 0.2]).study.best == 2


def test_a_score_counts_as_much_as_its_members_update_did(swarm):
    weighted = {"weighting": "given", "members": tuple("abcd"), "given": {"a": 1, "b": 7, "c": 1, "d": 1}}
    world = trained(swarm(rounds=9, best=LOWEST, **weighted).start(), [0.5])
    world.round()
    scored(world, 2, 0.1, "a")
    scored(world, 2, 0.9, "b")
    assert mean_score(world.study.history[1], "loss") == pytest.approx((0.1 + 7 * 0.9) / 8)
    assert world.study.best == 1


def test_examples_that_a_member_claims_for_its_score_move_no_mean_and_decide_nothing(swarm):
    settings = {"rounds": 99, "best": LOWEST, "weighting": "equal"}
    plateau = Plateau("loss", rounds=2, min_delta=0.0)
    world = swarm(plateau=plateau, adaptive=Adaptive("loss"), **settings).start()
    for number, value in enumerate((0.9, 0.8, 0.7), start=1):
        world.round()
        for name in "abc":
            scored(world, number, value, name)
        scored(world, number, value + 0.1 * number, "d", examples=10**12)  # alone: no gain in any round
        expected = (4 * value + 0.1 * number) / 4
        assert mean_score(world.study.history[-1], "loss") == pytest.approx(expected)
    world.round()
    assert world.study.phase == "running"
    assert world.open.interval == 4  # rounds 2 and 3 each got better
    assert world.study.best == 3


def test_what_is_scored_late_decides_neither_when_a_study_ends_nor_how_long_members_train(swarm):
    plateau = Plateau("loss", rounds=2, min_delta=0.0)
    world = swarm(rounds=99, plateau=plateau, adaptive=Adaptive("loss")).start()
    trained(world, [0.9, 0.8, 0.7])
    scored(world, 1, -1e6, "b")  # on record, as late: else nothing after it would be better
    assert world.study.history[0].scores["b"].late
    scored(world, 2, 0.8, "b")
    assert not world.study.history[1].scores["b"].late
    world.round()
    assert world.study.phase == "running"
    assert world.open.interval == 4
    scored(world, 4, 0.6)
    scored(world, 2, -1e6, "c")
    assert world.study.history[1].scores["c"].late
    world.round()
    assert (world.study.phase, world.open.interval) == ("running", 8)
    gap = trained(swarm(rounds=99, adaptive=Adaptive("loss")).start(), [0.9, None, 0.7])
    scored(gap, 1, -1e6, "b")  # late, though round 1 is what round 3 is compared with
    assert gap.round().open.interval == 2


def test_a_best_merge_that_others_score_worse_is_the_best_no_longer(swarm):
    world = trained(swarm(rounds=9, best=LOWEST).start(), [0.5])
    world.round()
    scored(world, 2, 0.1)
    assert world.study.best == 2
    scored(world, 2, 2.0, "b")
    assert world.study.best == 1


def test_a_score_counts_until_the_round_after_next_is_accepted(swarm):
    world = trained(swarm(rounds=9, best=LOWEST).start(), [0.5, 0.6])
    scored(world, 1, 0.5, "b")
    assert world.study.history[0].scores["b"].late is False
    world.round()
    scored(world, 1, 0.001, "c")
    assert world.study.history[0].scores["c"].late is True
    scored(world, 2, 0.6, "c")
    assert world.study.history[1].scores["c"].late is False
    assert world.study.best == 1
    late = mean_score(world.study.history[0], "loss")
    assert late == pytest.approx((0.5 + 0.5 + 0.001) / 3)  # what people see is every score
    assert mean_score(world.study.history[0], "loss", timely=True) == 0.5


def test_after_the_end_the_last_rounds_can_still_be_scored_while_the_silence_lasts(swarm):
    world = trained(swarm(rounds=3, best=LOWEST).start(), [0.5, 0.4])
    world.round()
    assert world.study.phase == "finished"
    assert not final_round(world.study, world.now_s).settled
    scored(world, 3, 0.3)
    assert (world.study.best, world.study.history[2].scores["a"].late) == (3, False)
    world.now_s += world.settings.silence_s - 1
    assert not final_round(world.study, world.now_s).settled
    world.now_s += 1
    assert final_round(world.study, world.now_s).settled
    scored(world, 3, 9.0, "b")
    assert world.study.history[2].scores["b"].late
    assert world.study.best == 3


def test_once_all_of_the_last_roster_have_scored_the_choice_stands_at_once(swarm):
    world = trained(swarm(rounds=3, best=LOWEST).start(), [0.5, 0.4])
    world.round()
    for name in "abcd":
        assert not final_round(world.study, world.now_s).settled
        scored(world, 3, 0.6, name)
    final = final_round(world.study, world.now_s)
    assert final.settled
    assert final.round == 2
    assert "lowest mean 'loss': 0.4" in final.why
    scored(world, 2, 5.0, "b")  # the second to last could be scored; the choice stands
    assert final_round(world.study, world.now_s) == final


def test_without_the_setting_the_last_merge_is_final_as_soon_as_the_study_is_over(swarm):
    world = trained(swarm(rounds=3).start(), [0.1, 0.2, 0.3])
    assert world.study.best == 0
    final = final_round(world.study, world.now_s)
    assert (final.round, final.digest, final.settled) == (3, world.study.accepted, True)


def test_before_the_first_merge_the_initial_parameters_are_what_there_is(swarm):
    world = swarm(best=LOWEST).start()
    assert final_round(world.study, world.now_s).digest == world.study.initial
    assert final_round(world.study, world.now_s).round == 0


def test_a_metric_that_never_arrives_fails_the_study_and_is_named(swarm):
    world = swarm(rounds=50, best=Best("auroc", "max")).start()
    for number in range(1, UNSCORED_ROUNDS + 2):
        assert world.study.phase == "running"
        world.round()
        if world.study.open is not None:
            scored(world, number, 0.5)
    assert world.study.phase == "failed"
    assert "'auroc'" in world.study.ended
    assert len(world.study.history) == UNSCORED_ROUNDS + 1
    assert final_round(world.study, world.now_s).digest == world.study.accepted  # what was accepted stays
    assert "But the study failed: " in final_round(world.study, world.now_s).why


def test_one_scored_round_in_five_is_enough_to_go_on(swarm):
    world = trained(swarm(rounds=50, best=LOWEST).start(), [None, 0.5, None, None, None, None])
    assert world.study.phase == "running"
    world.round()
    assert world.study.phase == "running"
    world.round()
    assert world.study.phase == "failed"


def test_a_short_study_without_any_score_fails_at_its_end(swarm):
    world = trained(swarm(rounds=3, best=LOWEST).start(), [None, None, None])
    assert world.study.phase == "failed"
    assert "All 3 rounds are done. " in world.study.ended
    assert "'loss'" in world.study.ended


def test_a_study_whose_members_all_finish_without_a_score_fails_too(swarm):
    world = trained(swarm(rounds=9, best=LOWEST).start(), [None, None])
    for name in "abcd":
        if world.study.phase == "running":
            world.do(name, Finish("aml"))
    assert world.study.phase == "failed"


def test_of_a_single_merge_there_is_nothing_to_choose(swarm):
    world = swarm(rounds=1, best=LOWEST).start().round()
    assert world.study.phase == "finished"
    assert final_round(world.study, world.now_s).round == 1
    for name in "abcd":
        scored(world, 1, 0.5, name)
    assert final_round(world.study, world.now_s).settled


def test_only_the_rosters_scores_choose(swarm):
    world = swarm(rounds=9, best=LOWEST, min_members=3).start("abc")
    world.commit("abc").publish().accept()
    scored(world, 1, 0.5)
    world.commit("abc").publish().accept()
    scored(world, 2, 0.0, "d")
    scored(world, 2, 0.6)
    assert world.study.best == 1


@pytest.mark.parametrize(("before", "after"), [(LOWEST, HIGHEST), (None, LOWEST), (LOWEST, None)])
def test_what_the_final_model_is_chosen_by_cannot_be_changed_by_vote(swarm, before, after):
    # It would choose among merges that nobody has kept.
    world = trained(swarm(rounds=9, best=before).start(), [0.5, 0.4, 0.9])
    refused = world.refused("a", ProposeStudySettings(replace(world.settings, best=after)))
    assert refused.code == "fixed_setting"
    assert "`best`" in refused.what


def test_the_merges_that_can_still_be_chosen_are_readable_for_participants(swarm):
    world = trained(swarm(rounds=9, best=LOWEST).start(), [0.1, 0.4, 0.9, 0.8, 0.7])
    history = tuple(replace(each, digest=world.digest(each.number)) for each in world.study.history)
    study = replace(world.study, history=history)
    assert choosable(study) == (1, 4, 5)
    assert {history[number - 1].digest for number in (1, 4, 5)} <= readable(study, "b")
    assert history[0].digest not in readable(study, "stranger")
    assert history[0].digest not in readable(replace(study, best_of_old=0), "b")
    assert history[2].digest not in readable(study, "b")


def by_hand(study):
    """The best round, from all scores that count."""
    means = [(mean_score(record, "loss", timely=True), record.number) for record in study.history]
    return min((each for each in means if each[0] is not None), default=(0.0, 0))[1]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcd"), st.floats(-10, 10)), max_size=4)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_however_the_scores_come_the_best_is_among_those_that_were_kept_all_the_time(swarm, rounds):
    world = swarm(rounds=len(rounds) or 1, best=LOWEST).start()
    kept = set()
    for scores in rounds:
        world.round()
        kept = (kept | {len(world.study.history)}) & set(choosable(world.study))
        assert kept == set(choosable(world.study))  # a merge that was let go never comes back
        for ago, name, value in scores:
            number = len(world.study.history) - ago
            if number > 0 and name not in world.study.history[number - 1].scores:
                scored(world, number, value, name)
            assert world.study.best == by_hand(world.study)
            assert set(choosable(world.study)) == kept >= {world.study.best} - {0}
        if world.study.open is None:
            break


def test_the_matrix_has_a_row_a_round_and_a_column_a_member(swarm):
    world = trained(swarm(rounds=9).start("abc").commit("abc").publish().accept(), [])
    scored(world, 1, 0.4, "a", examples=30)
    scored(world, 1, 0.8, "b", examples=10)
    world.do("d", Score("aml", 1, 5, metrics={"f1": 0.7}))
    matrix = score_matrix(world.study, "auc")
    assert matrix.members == ("a", "b", "c", "d")
    (row,) = matrix.rows
    assert (row.values, row.roster, row.mean) == ({"a": 0.4, "b": 0.8}, ("a", "b", "c"), pytest.approx(0.6))
    assert score_matrix(world.study, "f1").rows[0].mean is None  # nobody of the roster has it
    assert metrics_of(world.study) == ("loss", "auc", "f1")
