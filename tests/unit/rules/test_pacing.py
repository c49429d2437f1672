"""An adaptive interval follows from the scores on the ledger, alike at every member."""

from __future__ import annotations

import pytest

from konsil.core.rules import Adaptive, Outer, Score
from konsil.core.rules.agreement import check_study_settings
from konsil.errors import ConfigError

ADAPTIVE = Adaptive(metric="loss", mode="min", min_delta=0.01, most=4)


def intervals(world, losses):
    """The interval of each round, the merge of each being scored by one member while the next is trained."""
    seen = []
    for number, loss in enumerate(losses, 1):
        seen.append(world.open.interval)
        world.round()
        if loss is not None:
            world.do("b", Score("aml", number, 5, loss=loss))
    return seen


def test_the_interval_grows_while_the_loss_falls_and_shrinks_when_it_does_not(swarm):
    world = swarm(rounds=20, adaptive=ADAPTIVE).start()
    losses = [1.0, 0.8, 0.6, 0.4, 0.395, 0.5, 0.6, 0.6, 0.6]
    assert intervals(world, losses) == [1, 1, 1, 2, 4, 4, 2, 1, 1]
    assert [record.interval for record in world.study.history] == [1, 1, 1, 2, 4, 4, 2, 1, 1]


def test_a_round_that_nobody_scored_says_nothing_good(swarm):
    world = swarm(rounds=20, adaptive=ADAPTIVE).start()
    assert intervals(world, [1.0, 0.8, 0.6, None, None, None, 0.2]) == [1, 1, 1, 2, 4, 2, 1]


def test_a_rising_metric_can_be_followed_too(swarm):
    world = swarm(rounds=20, adaptive=Adaptive("auc", "max", 0.0, 8)).start()
    seen = []
    for number, auc in enumerate([0.6, 0.7, 0.8, 0.7], 1):
        seen.append(world.open.interval)
        world.round()
        world.do("a", Score("aml", number, 5, metrics={"auc": auc}))
    assert [*seen, world.open.interval] == [1, 1, 1, 2, 4]


def test_without_the_setting_every_round_is_as_long(swarm):
    assert intervals(swarm(rounds=9).start(), [3.0, 2.0, 1.0, 0.5]) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"adaptive": Adaptive(metric="")}, "adaptive.metric"),
        ({"adaptive": Adaptive(most=1)}, "adaptive.most"),
        ({"adaptive": Adaptive(min_delta=float("nan"))}, "adaptive.min_delta"),
        ({"weighting": "capped"}, "cap_percent"),
        ({"cap_percent": 40}, "cap_percent"),
        ({"prox": -1.0}, "prox"),
        ({"scaffold": True, "weighting": "equal", "outer": Outer()}, "plain mean"),
        ({"scaffold": True, "weighting": "examples"}, "needs the control variates' plain mean"),
        (
            {"scaffold": True, "weighting": "equal", "rule": "median"},
            "needs the control variates' plain mean",
        ),
        ({"outer": Outer(learning_rate=0.0)}, "outer.learning_rate"),
        ({"outer": Outer(beta2=1.0)}, "beta2"),
        ({"outer": Outer(tau=0.0)}, "outer.tau"),
    ],
)
def test_settings_that_make_no_sense_are_named(swarm, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_study_settings(swarm(**changes).settings, "abcd")
