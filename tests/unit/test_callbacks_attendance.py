"""What all callbacks share: when a place is taken and given up, what is counted, and which scores are a merge's."""

from __future__ import annotations

import gc
import io
import subprocess
import sys

import numpy as np
import pytest

from konsil.callbacks import attendance as module
from konsil.callbacks.attendance import Attendance, Attending, counted
from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError, StudyError
from konsil.learners.base import adapted
from konsil.learners.shared import Shared


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Collecting garbage takes long where other tests have imported frameworks: leave these out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Last:
    def __init__(self, number):
        self.round = number
        self.members = {"bonn": 3, "lyon": 4}
        self.absent = {"nantes": "silent"}


class Learner(Shared):
    """The session's; ``loaded`` counts, ``optimizers`` are those it went on with."""

    loaded = 0

    def __init__(self, model):
        super().__init__(adapted(model))
        self.optimizers = []

    def go_on_with(self, optimizer):
        self.optimizers.append(optimizer)

    def load(self, arrays):
        self.loaded += 1
        super().load(arrays)


class FakeSwarm:
    """Merges after so many calls of ``step`` or ``epoch``: the merge is every array full of its number."""

    def __init__(self, model, every_steps, every_epochs, rounds, done):
        self.model, self.every_steps, self.every_epochs, self.rounds = (
            model,
            every_steps,
            every_epochs,
            rounds,
        )
        self.settings = StudySettings(name="aml", every_steps=1)
        self.last = Last(done) if done else None
        self.examples, self.counts, self.scored, self.said = 0, [0, 0], [], []
        self.learner = Learner(model)
        self.committed = []
        self.scored_already = False

    @property
    def scored_last(self):
        return self.scored_already or (self.last.round in {number for number, *_ in self.scored})

    @property
    def finished(self):
        return self.last is not None and self.last.round >= self.rounds

    def step(self, examples):
        self.said.append(("step", examples))
        return self._count(0, examples, self.every_steps)

    def epoch(self, examples=0):
        self.said.append(("epoch", examples))
        return self._count(1, examples, self.every_epochs)

    def _count(self, what, examples, every):
        self.examples += examples
        self.counts[what] += 1
        if not every or self.counts[what] < every:
            return False
        self.committed.append(self.examples)
        self.examples, self.counts = 0, [0, 0]
        self.last = Last(len(self.committed))
        for array in self.model.values():
            array[...] = self.last.round
        return True

    def score(self, *, examples, loss=None, **metrics):
        self.scored.append((self.last.round, examples, loss, metrics))

    def close(self):
        self.said.append("closed")

    def leave(self):
        self.said.append("left")


displays = []
"""What the joins were given as ``progress``."""


@pytest.fixture
def joined(monkeypatch):
    """Begin a training loop on one array; the swarms that it joined, newest last."""
    swarms = []

    def begin(*, every_steps=0, every_epochs=0, rounds=3, done=0, score=True, kept_open=False):
        def join(study, model, **options):
            displays.append(options.pop("progress"))
            assert (study, options) == ("aml", {"found": 1, "node": "here"})
            swarms.append(FakeSwarm(model, every_steps, every_epochs, rounds, done))
            return swarms[-1]

        monkeypatch.setattr(module, "join", join)
        attendance = Attendance("aml", score=score, options={"node": "here"})
        attendance.kept_open = kept_open
        model = {"w": np.zeros(3)}
        attendance.begin(model, found=1, node="not there")
        return attendance, model, swarms

    return begin


def test_on_a_terminal_only_finished_rounds_are_shown_beside_the_frameworks_bar(joined, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    joined()
    displays[-1].now("training")
    displays[-1].clear()
    assert screen.getvalue() == ""
    displays[-1].line("round 1")
    assert screen.getvalue().endswith("konsil: round 1\n")


def test_several_steps_in_one_are_merged_with_all_their_examples(joined):
    attendance, _, (swarm,) = joined(every_steps=3)
    assert attendance.step(10, steps=2) is False
    assert attendance.step(12, steps=2) is True
    assert swarm.committed == [22]
    assert swarm.said == [("step", 10), ("step", 0), ("step", 12)]


def test_an_epoch_whose_training_a_merge_has_replaced_does_not_count(joined):
    attendance, _, (swarm,) = joined(every_steps=1, every_epochs=1)
    attendance.step(10)
    assert attendance.epoch() is False
    assert attendance.epoch(4) is True
    assert swarm.committed == [10, 4]


def test_only_a_model_that_is_the_merge_itself_is_scored_and_once(joined):
    attendance, _, (swarm,) = joined(every_steps=2)
    assert attendance.score(5, {"loss": 1.0}) is False  # nothing was merged yet
    attendance.step(10)
    assert attendance.score(5, {"loss": 1.0}) is False
    attendance.step(10)
    assert attendance.score(0, {"loss": 1.0}) is False
    assert attendance.score(5, {"loss": float("nan")}) is False
    assert attendance.score(5, {"loss": 0.5, "val/auc": 0.9, "f1": float("nan")}) is True
    assert attendance.score(5, {"loss": 0.4}) is False
    attendance.step(10)
    assert attendance.score(5, {"loss": 0.3}) is False
    assert swarm.scored == [(1, 5, 0.5, {"val_auc": 0.9})]


def test_a_merge_that_the_session_has_scored_is_not_scored_again(joined):
    attendance, _, (swarm,) = joined(every_steps=1)
    attendance.step(10)
    swarm.scored_already = True
    assert attendance.score(5, {"loss": 0.5}) is False
    assert swarm.scored == []


def test_a_metric_with_the_name_of_an_argument_gets_another_one(joined):
    attendance, _, (swarm,) = joined(every_steps=1)
    attendance.step(10)
    assert attendance.score(5, {"loss": 0.5, "examples": 7.0, "self": 8.0}) is True
    assert swarm.scored == [(1, 5, 0.5, {"examples_": 7.0, "self_": 8.0})]


def test_scores_can_be_kept_off_the_ledger(joined):
    attendance, _, (swarm,) = joined(every_steps=1, score=False)
    attendance.step(10)
    assert attendance.score(5, {"loss": 0.5}) is False
    assert swarm.scored == []


def test_what_a_loop_trains_after_the_end_of_the_study_is_undone(joined):
    attendance, model, (swarm,) = joined(every_steps=1, rounds=2)
    attendance.step(10)
    attendance.step(10)
    assert attendance.over
    model["w"] += 7
    assert attendance.step(10) is False
    assert model["w"].tolist() == [2, 2, 2]
    assert swarm.learner.loaded == 1  # the session's own: another one would digest what is frozen again
    assert attendance.score(5, {"loss": 0.5}) is True
    assert swarm.committed == [10, 10]


def test_a_study_that_was_over_before_leaves_its_model_as_it_is(joined):
    attendance, model, _ = joined(every_steps=1, rounds=1, done=1)
    model["w"] += 7
    attendance.step(10)
    assert model["w"].tolist() == [0, 0, 0]


def test_the_figures_are_the_last_rounds(joined):
    attendance, _, _ = joined(every_steps=1)
    assert set(attendance.figures.values()) == {0.0}
    attendance.step(10)
    assert attendance.figures == {"konsil_round": 1.0, "konsil_members": 2.0, "konsil_absent": 1.0}


def test_the_place_is_given_up_at_the_end_and_another_loop_joins_anew(joined):
    attendance, model, swarms = joined(every_steps=1)
    attendance.end()
    attendance.end()
    assert swarms[0].said == ["closed"]
    with pytest.raises(StudyError, match="takes no part"):
        _ = attendance.swarm
    attendance.begin(model, found=1)
    assert attendance.swarm is swarms[1]
    del attendance
    gc.collect()
    assert [swarm.said for swarm in swarms] == [["closed"], ["left"]]  # each once, whoever is garbage then


def test_a_loop_that_raised_is_left_when_the_next_one_begins(joined):
    attendance, model, swarms = joined(every_steps=1)
    attendance.begin(model, found=1)
    assert swarms[0].said == ["left"]
    assert attendance.swarm is swarms[1]


def test_a_place_is_left_when_nobody_holds_the_callback_any_more(joined):
    attendance, _, swarms = joined(every_steps=1)
    del attendance
    gc.collect()
    assert swarms[0].said == ["left"]


class Callback(Attending):
    def __init__(self, attendance):
        self._attendance = attendance


def test_in_a_with_the_place_outlives_a_loop(joined):
    attendance, model, (swarm,) = joined(every_steps=1)
    with Callback(attendance) as callback:
        attendance.step(10)
        swarm.every_steps = 0
        attendance.step(10)
        attendance.end()
        attendance.begin(model, found=1)
        assert callback.swarm is swarm
        assert attendance.score(5, {"loss": 1.0}) is False  # the loop before has trained the merge away
        assert "closed" not in swarm.said
    assert swarm.said[-1] == "closed"


def test_a_loop_that_goes_on_in_the_same_session_goes_on_with_its_own_optimiser(joined):
    attendance, model, (swarm,) = joined(every_steps=1, kept_open=True)
    attendance.begin(model, optimizer="second")
    attendance.begin(model)
    assert swarm.learner.optimizers == ["second", None]


def test_an_optimiser_that_the_script_named_goes_before_the_loops(joined):
    attendance, model, (swarm,) = joined(every_steps=1, kept_open=True)
    attendance._options["optimizer"] = "the script's"
    attendance.begin(model, optimizer="second")
    assert swarm.learner.optimizers == ["the script's"]


def test_another_model_in_the_same_session_is_refused(joined):
    attendance, _, (swarm,) = joined(every_steps=1, kept_open=True)
    with pytest.raises(ConfigError, match="another model"):
        attendance.begin({"w": np.zeros(3)})
    assert swarm.learner.optimizers == []


def test_an_error_in_a_with_leaves_at_once(joined):
    attendance, _, (swarm,) = joined(every_steps=1)
    with pytest.raises(ValueError, match="training"), Callback(attendance) as callback:
        raise ValueError("training")
    assert swarm.said == ["left"]
    callback.leave()
    assert swarm.said == ["left"]


def test_examples_are_a_number_or_asked_of_a_function():
    assert counted(None, "batch") is None
    assert counted(8, "batch") == 8
    assert counted(len, "batch") == 5
    with pytest.raises(ConfigError, match="-1 examples"):
        counted(-1, "batch")


def test_the_shared_part_imports_no_framework():
    script = (
        "import sys, konsil.callbacks.attendance;"
        "print(sorted({'torch', 'keras', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "[]\n"
