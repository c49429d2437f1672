"""Simulated swarms: real rounds in one process, and what the members' own code can do to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import konsil
from konsil.core.rules import Adaptive, Best, Outer, Plateau, StudySettings
from konsil.errors import ConfigError, StudyError
from konsil.evaluation import experiment, models
from konsil.evaluation.datasets import load
from konsil.simulation import Simulated

STUDY: Mapping[str, Any] = {"every_steps": 1, "rounds": 3, "weighting": "equal"}


def adding(place, *, fails=None, evaluate=None, numbers=None, seen=None, **options):
    """A member that adds its number to every parameter; ``fails``: round -> what happens instead."""
    model = {"weights": np.zeros(1000, np.float32), "bias": np.zeros(3)}

    def train(model, work):
        if seen is not None:
            seen.append((place, work))
        if fails is not None:
            fails(model, work)
        for name in model:
            model[name] += (numbers or range(1, 100))[place]
        return 10 * (place + 1)

    return konsil.Member(model, train, evaluate, **options)


def simulated(make=adding, **changes) -> Simulated:
    known = {
        name: changes.pop(name) for name in ("members", "jobs", "on_round", "round_s") if name in changes
    }
    return konsil.simulate(make, **({"members": 4} | known), study={**STUDY, **changes})


def only(place, **options):
    """The member at one place has these options, the others none."""
    return lambda here: adding(here, **(options if here == place else {}))


def test_every_member_ends_with_the_last_merge_and_the_ledger_has_every_round():
    run = simulated()
    assert [set(record.roster) for record in run.rounds] == [set(run.members)] * 3
    assert run.members == ("member-1", "member-2", "member-3", "member-4")
    assert [list(model["bias"]) for model in run.models.values()] == [[7.5] * 3] * 4
    assert run.study.phase == "finished"
    assert run.digest == run.rounds[-1].digest
    assert not run.problems


def test_one_at_a_time_or_several_the_ledger_comes_to_the_same_state():
    runs = [
        simulated(jobs=jobs, members=7, rule="trimmed_mean", quorum=7, min_members=7) for jobs in (1, 2, 4)
    ]
    assert len({run.state_digest for run in runs}) == 1
    assert simulated(members=6).state_digest != simulated(members=7).state_digest


def test_the_merge_counts_examples_as_the_settings_say():
    run = simulated(weighting="examples", rounds=1)
    assert run.models["member-1"]["bias"][0] == pytest.approx((1 + 4 + 9 + 16) / 10)
    assert run.rounds[0].weights == {"member-1": 10, "member-2": 20, "member-3": 30, "member-4": 40}


def test_a_simulated_swarm_is_the_bare_method_bit_for_bit():
    hospitals = load("breast-cancer", None, seed=0)
    names = sorted(hospitals)

    def make(place):
        rows, shuffle = hospitals[names[place]].train, np.random.default_rng([3, place])

        def train(model, work):
            for _ in range(work.epochs):
                models.train_epoch(model, rows, shuffle)
            return len(rows)

        return konsil.Member(models.classifier(rows.values.shape[1], 3), train)

    run = konsil.simulate(make, members=names, study={"every_epochs": 1, "rounds": 2})
    bare = models.parameters(experiment.train_swarm(hospitals, 3, rounds=2, epochs=1))
    for model in run.models.values():
        for ours, theirs in zip(models.parameters(model), bare, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --- what members' code can do ----------------------------------------------------------------------


def in_round(number, do):
    return lambda model, work: do(model) if work.round == number else None


def fall_over(_model):
    raise ZeroDivisionError("no patients today")


def test_a_member_whose_training_raises_leaves_and_the_others_go_on():
    run = simulated(only(2, fails=in_round(2, fall_over)))
    assert [record.absent for record in run.rounds] == [{}, {"member-3": "left"}, {"member-3": "left"}]
    (problem,) = run.problems
    assert (problem.member, problem.round) == ("member-3", 2)
    assert problem.what == "ZeroDivisionError: no patients today"
    assert "in fall_over" in problem.trace
    assert run.models["member-1"]["bias"][0] == 2.5 + 2 * 7 / 3
    assert run.models["member-3"]["bias"][0] == 2.5


def test_a_member_with_a_nan_leaves_before_anything_is_merged_and_its_tensor_is_named():
    def spoil(model):
        model["weights"][7] = np.nan

    run = simulated(only(1, fails=in_round(3, spoil)))
    assert run.rounds[2].absent == {"member-2": "left"}
    (problem,) = run.problems
    assert problem.what.startswith(
        "NonFinite: Tensor 'weights', shape (1000,), holds at flat index 7 the value nan"
    )
    assert np.isfinite(run.models["member-1"]["weights"]).all()


def test_a_member_whose_tensors_change_while_it_trains_leaves():
    def grow(model):
        model["bias"] = np.zeros(4)

    run = simulated(only(3, fails=in_round(2, grow)))
    assert run.rounds[1].absent == {"member-4": "left"}
    assert "'bias' has shape (4,) instead of (3,)" in run.problems[0].what


def test_a_member_with_another_model_is_named_and_never_enters():
    def make(place):
        member = adding(place)
        if place == 1:
            member.model["bias"] = np.zeros(5)
        return member

    run = simulated(make)
    assert {record.absent["member-2"] for record in run.rounds} == {"not entered"}
    assert "'bias' has shape (5,) instead of (3,)" in run.problems[0].what


def test_a_study_that_loses_its_quorum_fails_and_says_who_was_missing():
    def make(place):
        return adding(place, fails=in_round(2, fall_over) if place else None)

    run = simulated(make, quorum=2)
    assert (run.study.phase, len(run.rounds)) == ("failed", 1)
    assert "lacked its quorum of 2" in run.study.ended
    assert "member-2 (left)" in run.study.ended
    assert {problem.member for problem in run.problems} == {"member-2", "member-3", "member-4"}


def test_a_study_without_a_single_merge_raises_what_went_wrong_at_whom():
    with pytest.raises(StudyError, match="member-3: ZeroDivisionError: no patients today") as caught:
        simulated(lambda place: adding(place, fails=in_round(1, fall_over)))
    assert len(caught.value.fields["problems"]) == 4


def test_a_study_that_too_few_can_enter_raises():
    def make(place):
        member = adding(place)
        member.model["bias"] = np.zeros(place + 1)
        return member

    with pytest.raises(StudyError, match="1 of the 2 that it needs were ready"):
        simulated(make)


def test_a_proposer_without_initial_parameters_is_named():
    def make(place):
        member = adding(place)
        member.model["weights"][:] = np.inf
        return member

    with pytest.raises(StudyError, match="'member-1', who proposed it, has no initial parameters"):
        simulated(make)


@pytest.mark.parametrize("returned", [None, 0, -1, 2.5, "many"])
def test_training_that_does_not_say_on_how_many_examples_is_no_update(returned):
    def make(place):
        member = adding(place)
        return konsil.Member(member.model, lambda *_: returned) if place == 0 else member

    run = simulated(make)
    assert "must return on how many examples" in run.problems[0].what
    assert {record.absent["member-1"] for record in run.rounds} == {"left"}


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, "gave NoneType, not a mapping"),
        ({}, "mapping with `examples`"),
        ({"loss": 1.0}, "mapping with `examples`"),
        ({"examples": 0, "auc": 0.5}, "0 examples"),
        ({"examples": 3, "auc": np.nan}, "auc"),
        ({"examples": 3, "auc": "high"}, "no number"),
    ],
)
def test_scores_that_a_session_would_refuse_end_the_member(returned, complaint):
    run = simulated(only(0, evaluate=lambda _: returned))
    assert complaint in run.problems[0].what
    assert not run.scores
    assert run.rounds[1].absent == {"member-1": "left"}


@pytest.mark.parametrize("examples", [5, 5.0, np.float64(5), np.int32(5)])
def test_scores_that_a_session_takes_are_taken(examples):
    run = simulated(
        only(0, evaluate=lambda _: {"examples": examples, "loss": None, "auc": 0.75, "note": None})
    )
    assert run.problems == ()
    score = run.rounds[0].scores["member-1"]
    assert (score.examples, score.loss, score.metrics) == (5, None, {"auc": 0.75})


def test_a_member_whose_scores_are_not_defined_trains_on_without():
    run = simulated(only(0, evaluate=lambda _: {"examples": 3, "auc": None}))
    assert run.problems == ()
    assert not run.scores


def test_training_that_changes_nothing_goes_on_to_the_end():
    run = simulated(lambda place: adding(place, numbers=[0] * 4))
    assert len(run.rounds) == 3
    assert run.rounds[0].digest == run.rounds[2].digest


# --- scores, and what follows from them ---------------------------------------------------------------


def scoring(place, values=None):
    def evaluate(model):
        here = float(model["bias"][0])
        return {"examples": 10 * (place + 1), "loss": here if values is None else values(here), "auc": 0.5}

    return adding(place, evaluate=evaluate if place != 3 else None)


def test_scores_are_a_table_of_rounds_and_members_with_gaps():
    told = []
    run = simulated(scoring, on_round=told.append)
    np.testing.assert_array_equal(run.scores["loss"], [[2.5 * n] * 3 + [np.nan] for n in (1, 2, 3)])
    assert list(run.scores) == ["auc", "loss"]
    assert tuple(told) == run.rounds
    assert run.rounds[2].scores["member-2"].examples == 20


def test_a_plateau_ends_the_study():
    run = simulated(lambda place: scoring(place, lambda _: 1.0), rounds=50, plateau=Plateau(rounds=2))
    assert run.study.phase == "finished"
    assert len(run.rounds) == 4
    assert "has not improved" in run.study.ended


def test_an_adaptive_interval_reaches_the_training():
    seen = []

    def make(place):
        member = scoring(place, lambda here: -here)
        return konsil.Member(
            member.model, lambda model, work: seen.append(work) or member.train(model, work), member.evaluate
        )

    run = simulated(make, every_steps=5, rounds=6, adaptive=Adaptive(most=4), members=2)
    assert [record.interval for record in run.rounds] == [1, 1, 1, 2, 4, 4]
    assert [(work.round, work.steps) for work in seen[::2]] == [
        (1, 5),
        (2, 5),
        (3, 5),
        (4, 10),
        (5, 20),
        (6, 20),
    ]
    assert seen[-1] == konsil.Work(6, steps=20, interval=4)


# --- time -------------------------------------------------------------------------------------------


def test_rounds_of_many_minutes_find_nobody_silent():
    run = simulated(every_steps=0, every_minutes=30, silence_s=60)
    assert all(not record.absent for record in run.rounds)
    assert [record.accepted_s for record in run.rounds] == [1800, 3600, 5400]


def test_a_study_stops_when_its_minutes_on_the_ledger_are_over():
    run = simulated(rounds=1000, stop_minutes=1, round_s=20)
    assert len(run.rounds) == 3
    assert "minutes are over" in run.study.ended


# --- members that finish ----------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["inactive", "snapshot", "active"])
def test_a_member_that_finishes_first_contributes_what_it_chose(after):
    seen = []
    run = simulated(
        lambda place: adding(place, **({"rounds": 1, "after": after} if place == 3 else {}), seen=seen)
    )
    assert [work.round for place, work in seen if place == 3] == [1]
    last = run.rounds[-1]
    if after == "inactive":
        assert last.absent == {"member-4": "finished"}
        assert run.models["member-1"]["bias"][0] == 2.5 + 2 + 2
    elif after == "snapshot":
        assert last.roster["member-4"].digest == run.rounds[0].roster["member-4"].digest
        second = (3 * 2.5 + 6 + 4) / 4
        assert run.models["member-1"]["bias"][0] == (3 * second + 6 + 4) / 4
    else:
        assert last.roster["member-4"].digest == last.base
        assert run.models["member-1"]["bias"][0] == 2.5 + 1.5 + 1.5
    assert run.models["member-4"]["bias"][0] == 2.5


def test_a_snapshot_stays_what_it_was_when_the_model_itself_goes_on():
    def make(place):
        def train(model, work):
            model["only"] += place + work.round
            return 1

        finishing = {"rounds": 1, "after": "snapshot"} if place == 1 else {}
        return konsil.Member({"only": np.zeros(100)}, train, **finishing)

    run = simulated(make, members=2)
    values = [1.5]  # of 1 and 2; the snapshot is 2 from then on
    values += [(values[0] + 2 + 2) / 2]
    values += [(values[1] + 3 + 2) / 2]
    assert run.models["member-1"]["only"][0] == values[2]
    assert run.models["member-2"]["only"][0] == values[0]


def test_a_merge_is_scored_once_though_the_study_ends_while_somebody_trains_on():
    def make(place):
        return adding(
            place,
            evaluate=lambda _: {"examples": 1, "loss": 1.0},
            rounds=2 if place else None,
        )

    run = simulated(make, rounds=9)
    assert len(run.rounds) == 2
    assert "fewer than the quorum" in run.study.ended
    assert not run.problems
    assert not np.isnan(run.scores["loss"]).any()


def test_a_study_ends_when_all_have_finished():
    run = simulated(lambda place: adding(place, rounds=2), rounds=9, quorum=1)
    assert len(run.rounds) == 2
    assert "All who took part have finished" in run.study.ended


# --- learners ---------------------------------------------------------------------------------------


def test_names_that_stay_local_are_not_merged():
    run = simulated(local=["bias"])
    assert [model["bias"][0] for model in run.models.values()] == [3, 6, 9, 12]
    assert {model["weights"][0] for model in run.models.values()} == {7.5}


class Steered:
    """A learner of its own, that notes what it is asked."""

    def __init__(self):
        self.values = np.zeros(4)
        self.asked, self.rounds = [], 0

    def parameters(self):
        return {"values": self.values}

    def load(self, arrays):
        np.copyto(self.values, arrays["values"])

    def train_with(self, training):
        self.asked.append(training)

    def begin_round(self):
        self.rounds += 1


def test_learners_are_told_what_the_study_asks_and_when_a_round_begins():
    run = simulated(
        lambda _: konsil.Member(Steered(), lambda *_: 1, optimizer="sgd", reset_optimizer=True),
        prox=0.5,
    )
    for model in run.models.values():
        (asked,) = model.asked
        assert (asked.prox, asked.optimizer, asked.reset_optimizer) == (0.5, "sgd", True)
        assert model.rounds == 4


class Observing(Steered):
    """Needs two rounds of sums before it trains."""

    step = 0

    def observe(self, data, weight):
        self.step += 1
        if self.step <= 2:
            self.values[:] = np.sum(data) * self.step * weight
        return self.step <= 2


def test_preprocessing_is_fitted_together_before_training_begins():
    seen = []

    def make(place):
        def train(model, work):
            seen.append((place, work.round, float(model.values[0])))
            return 100

        return konsil.Member(
            Observing(), train, lambda _: {"examples": 1, "loss": 1.0}, preprocessing=[1, place]
        )

    run = simulated(make, rounds=4, members=2, weighting="examples")
    assert seen == [(0, 3, 3.0), (1, 3, 3.0), (0, 4, 3.0), (1, 4, 3.0)]
    assert [set(record.weights.values()) for record in run.rounds] == [{1}, {1}, {100}, {100}]
    assert [len(record.scores) for record in run.rounds] == [0, 0, 2, 2]


class Counting(Observing):
    """Says how many rounds it needs."""

    @property
    def rounds_to_fit(self):
        return max(0, 2 - self.step)

    @property
    def fitted(self):
        return self.rounds_to_fit == 0


def fitting(_place):
    return konsil.Member(Counting(), lambda *_: 100, preprocessing=[1, 2])


def test_preprocessing_that_takes_more_rounds_than_there_are_is_not_begun():
    with pytest.raises(StudyError, match="has no result") as caught:
        simulated(fitting, rounds=1, members=2)
    assert "takes 2 rounds more, one for each mean, and the study has 1 left" in caught.value.safe


def test_a_study_that_ends_before_the_preprocessing_is_fitted_is_a_problem():
    run = simulated(fitting, rounds=5, members=2, stop_minutes=1, round_s=61.0)
    assert len(run.rounds) == 1
    assert ["over before the preprocessing was fitted" in each.what for each in run.problems] == [True, True]


@pytest.mark.parametrize("settings", [{"rule": "norm_clipping"}, {"outer": Outer()}])
def test_preprocessing_is_not_fitted_where_sums_would_not_be_merged_as_sums(settings):
    def make(place):
        return konsil.Member(Observing(), lambda *_: 100, preprocessing=[1, place])

    with pytest.raises(ConfigError, match="cannot be fitted together in it"):
        simulated(make, rounds=4, members=4, quorum=3, min_members=4, **settings)


def test_preprocessing_is_not_fitted_by_a_rule_from_a_file(tmp_path):
    file = tmp_path / "largest.py"
    file.write_text(RULE)
    with pytest.raises(ConfigError, match="the rule 'largest' from a file, of which Konsil cannot know"):
        konsil.simulate(
            lambda place: konsil.Member(Observing(), lambda *_: 100, preprocessing=[1, place]),
            members=2,
            study={**STUDY, "rule": "largest"},
            rule_file=file,
        )


# --- what simulate refuses --------------------------------------------------------------------------


def test_two_members_with_one_model_are_refused():
    one = adding(0)
    with pytest.raises(ConfigError, match="the same model object"):
        simulated(lambda _: one)


def test_settings_come_as_a_value_a_table_or_a_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('name = "aml"\nrounds = 2\nevery_steps = 1\nmembers = ["bonn", "lyon", "oslo"]\n')
    whole = StudySettings(name="aml", rounds=2, every_steps=1, members=("bonn", "lyon", "oslo"))
    runs = [konsil.simulate(adding, study=study) for study in (path, str(path), whole)]
    assert {run.members for run in runs} == {("bonn", "lyon", "oslo")}
    assert len({run.state_digest for run in runs}) == 1
    assert len(konsil.simulate(adding, study=STUDY).members) == 8


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"every_epochs": 1}, "Exactly one of"),
        ({"rules": "mean"}, "unknown field `rules`"),
        ({"min_members": 5}, "could never start"),
        ({"rule": "mine"}, "mine"),
        ({"jobs": 0}, "`jobs` is 0"),
        ({"members": ["Bonn", "lyon"]}, "lower-case letters"),
        ({"members": 3, "every_steps": 1, "quorum": 9}, "`quorum`"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_trained(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        simulated(lambda place: adding(place, fails=fall_over), **changes)


def test_another_number_of_members_than_the_settings_name_is_refused():
    with pytest.raises(ConfigError, match="3 members are to be simulated, but the study is for 2"):
        konsil.simulate(adding, members=3, study={**STUDY, "members": ["bonn", "lyon"]})


def test_without_joblib_several_at_a_time_are_refused_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ConfigError, match=r"pip install 'konsil\[simulate\]'"):
        simulated(jobs=2)
    assert simulated(jobs=1).study.phase == "finished"


# --- for people -------------------------------------------------------------------------------------


def test_the_summary_says_how_it_ended_how_it_went_and_what_went_wrong():
    def make(place):
        return scoring(place) if place else adding(place, fails=in_round(2, fall_over))

    lines = simulated(make, rounds=40).summary().splitlines()
    assert lines[0].startswith("Study 'simulated': 4 members, 40 rounds in ")
    assert lines[0].endswith("s, finished. All 40 rounds are done.")
    assert lines[1] == "  round 1: 4 updates; auc 0.5 to 0.5, mean 0.5; loss 2.5 to 2.5, mean 2.5"
    assert "absent: member-1 (left)" in lines[2]
    assert len(lines) < 16
    assert lines[-1] == "  member-1, round 2: ZeroDivisionError: no patients today"
    assert lines[-2].startswith("  merge ")


def test_the_summary_names_the_best_merge_where_it_is_the_final_model():
    run = simulated(lambda place: scoring(place, lambda here: abs(here - 5)), rounds=4, best=Best())
    losses = np.nanmean(run.scores["loss"], axis=1)
    best = int(np.argmin(losses))
    assert best < 3  # so that it is not the last one
    lines = run.summary().splitlines()
    assert lines[-2] == f"  last merge {run.digest}"
    assert lines[-1].startswith(
        f"  final model: round {best + 1}, merge {run.rounds[best].digest}. Of 4 merges"
    )


def test_the_summary_shows_the_interval_where_it_adapts():
    run = simulated(lambda place: scoring(place, lambda here: -here), rounds=5, adaptive=Adaptive(most=4))
    shown = [line for line in run.summary().splitlines() if line.startswith("  round ")]
    assert [line.split("; ")[0] for line in shown] == [
        f"  round {number}: interval {interval}" for number, interval in enumerate((1, 1, 1, 2, 4), start=1)
    ]


@pytest.mark.parametrize("more", [{}, {"rule_digest": "a" * 64}])
def test_a_rule_of_ones_own_without_its_file_is_asked_for(more):
    with pytest.raises(ConfigError, match="'largest' does not come with Konsil") as refusal:
        simulated(rule="largest", **more)
    assert "`rule_file='largest.py'`" in refusal.value.do


def test_an_outer_optimiser_steps_as_the_paper_says():
    outer = Outer("adam", learning_rate=0.5, beta1=0.9, beta2=0.99, tau=0.1)
    run = simulated(outer=outer, rounds=4, quorum=3, min_members=4)
    x, m, v = 0.0, 0.0, outer.tau**2
    for _ in range(4):
        delta = 2.5  # the mean of what the four members add, wherever they start
        m = outer.beta1 * m + (1 - outer.beta1) * delta
        v = outer.beta2 * v + (1 - outer.beta2) * delta**2
        x += outer.learning_rate * m / (np.sqrt(v) + outer.tau)
    for model in run.models.values():
        assert model["bias"] == pytest.approx([x] * 3, rel=1e-12)
    starts = [{commit.start for commit in record.roster.values()} for record in run.rounds]
    assert all(len(each) == 1 for each in starts)
    assert len(set.union(*starts)) == 4


def test_norms_are_clipped_around_the_model_that_the_round_started_from():
    numbers = [1, 1, 1, 1, 1000]
    run = simulated(lambda place: adding(place, numbers=numbers), rule="norm_clipping", members=5)
    assert run.models["member-1"]["bias"] == pytest.approx([3.0] * 3)


RULE = """
from konsil.core.merge import Rule, take_options
import numpy as np


def rule(options):
    def largest(values, weights, out):
        np.copyto(out, values[0])
        for row in values[1:]:
            np.maximum(out, row, out=out)

    return Rule("largest", take_options("largest", options, {}), largest)
"""


def test_a_rule_of_ones_own_is_tried_from_its_file_and_its_digest_stands_in_the_settings(tmp_path):
    file = tmp_path / "largest.py"
    file.write_text(RULE)
    run = konsil.simulate(adding, members=4, study={**STUDY, "rule": "largest"}, rule_file=file)
    assert run.models["member-1"]["bias"].tolist() == [12.0] * 3
    digest = run.study.settings.rule_digest
    assert len(digest) == 64
    again = {**STUDY, "rule": "largest", "rule_digest": digest}
    assert konsil.simulate(adding, members=4, study=again, rule_file=file).digest == run.digest
    file.write_text(RULE + "\n")
    with pytest.raises(ConfigError, match="with digest"):
        konsil.simulate(adding, members=4, study=again, rule_file=file)
    with pytest.raises(ConfigError, match="holds the rule 'largest'"):
        konsil.simulate(adding, members=4, study=STUDY, rule_file=file)
