"""Fine-tuning that is kept only where it is better here."""

from __future__ import annotations

import numpy as np
import pytest

import konsil
from konsil import fine_tune
from konsil.errors import ConfigError


def model():
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "steps": np.array(4)}


def bits(arrays):
    return {name: array.tobytes() for name, array in arrays.items()}


def trained(arrays):
    arrays["w"] += np.float32(0.1)
    arrays["steps"] += 1


def judged(*losses):
    told = iter(losses)
    return lambda _: {"examples": 3, "loss": next(told)}


def test_a_better_model_is_kept():
    mine = model()
    done = fine_tune(mine, trained, judged(0.5, 0.4))
    assert done == konsil.FineTuned({"examples": 3.0, "loss": 0.5}, {"examples": 3.0, "loss": 0.4}, kept=True)
    assert mine["steps"] == 5


@pytest.mark.parametrize("after", [0.5, 0.6, float("nan"), float("inf")])
def test_a_model_that_is_not_better_is_put_back_bit_for_bit(after):
    mine = model()
    held, before = mine["w"], bits(mine)
    done = fine_tune(mine, trained, judged(0.5, after))
    assert not done.kept
    assert bits(mine) == before
    assert mine["w"] is held


def test_a_direction_that_is_none_is_said_before_anything_is_trained():
    with pytest.raises(ConfigError, match="'maximum'"):
        fine_tune({}, lambda _: 1 / 0, lambda _: {"auc": 0.5}, metric="auc", mode="maximum")


def test_a_rising_metric_can_decide():
    told = iter([0.7, 0.8])
    assert fine_tune(model(), trained, lambda _: {"auc": next(told)}, metric="auc", mode="max").kept


def test_examples_are_as_for_a_session_and_may_be_left_out():
    told = iter([{"examples": np.float64(3), "loss": 0.5, "auc": None}, {"loss": 0.4}])
    done = fine_tune(model(), trained, lambda _: next(told))
    assert (done.before, done.after) == ({"examples": 3.0, "loss": 0.5}, {"loss": 0.4})


def test_training_that_raises_puts_the_model_back():
    mine = model()
    before = bits(mine)

    def breaks(arrays):
        trained(arrays)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(mine, breaks, judged(0.5, 0.1))
    assert bits(mine) == before


@pytest.mark.parametrize(
    ("scores", "complaint"),
    [
        ([{"auc": 1}], "gave no 'loss'.*it gave: auc"),
        ([3.0], "gave float, not a mapping"),
        ([{"examples": 3, "loss": None}], "it gave: nothing"),
        ([{"examples": 3.5, "loss": 1}], "3.5 examples"),
        ([{"loss": float("nan")}], "is nan"),
        ([{"loss": 1}, {"auc": 1}], "gave no 'loss'"),
    ],
)
def test_an_evaluation_without_the_score_that_decides_is_named(scores, complaint):
    mine, told = model(), iter(scores)
    before = bits(mine)
    with pytest.raises(ConfigError, match=complaint):
        fine_tune(mine, trained, lambda _: next(told))
    assert bits(mine) == before


class Own:
    """A learner of one's own, without a way to copy what it holds beside its parameters."""

    def __init__(self):
        self.value = np.zeros(2)

    def parameters(self):
        return {"value": self.value}

    def load(self, arrays):
        np.copyto(self.value, arrays["value"])


def test_a_learner_of_ones_own_is_put_back_by_its_parameters():
    mine = Own()

    def train(own):
        own.value += 1

    assert not fine_tune(mine, train, judged(1, 2)).kept
    assert np.all(mine.value == 0)


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigError, match="No learner"):
        fine_tune(object(), trained, judged(1, 2))
