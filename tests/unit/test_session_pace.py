"""The ledger's interval stretches what the study's settings say."""

from __future__ import annotations

import pytest

from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError
from konsil.session.pace import MANY_STEPS, Pace


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_an_interval_of_three_trains_three_times_the_steps():
    pace = Pace(StudySettings(name="s", every_steps=2), Clock())
    pace.begin(StudySettings(name="s", every_steps=2), 3)
    due = []
    for _ in range(6):
        pace.step()
        due.append(pace.due)
    assert due == [False] * 5 + [True]


def test_an_interval_of_two_trains_twice_the_epochs_and_says_how_far_it_is():
    settings = StudySettings(name="s", every_epochs=1)
    pace = Pace(settings, Clock())
    for _ in range(10):
        pace.step()
    pace.epoch()
    assert pace.due
    pace.begin(settings, 2)
    for _ in range(5):
        pace.step()
    assert (pace.progress, pace.due) == (0.25, False)
    pace.epoch()
    assert (pace.progress, pace.due) == (0.5, False)
    pace.epoch()
    assert pace.due


def test_an_interval_of_four_lasts_four_times_the_minutes():
    clock, settings = Clock(), StudySettings(name="s", every_minutes=1)
    pace = Pace(settings, clock)
    pace.begin(settings, 4)
    clock.now_s += 60
    assert (pace.progress, pace.due) == (0.25, False)
    clock.now_s += 180
    assert pace.due


@pytest.mark.parametrize("key", ["every_steps", "every_epochs"])
def test_the_next_round_is_as_long_as_its_own_interval_says(key):
    settings = StudySettings(name="s", **{key: 1})
    pace = Pace(settings, Clock())
    pace.begin(settings, 5)
    pace.begin(settings, 1)
    pace.step()
    pace.epoch()
    assert pace.due


def test_a_script_that_counts_what_the_study_does_not_is_told():
    by_steps = Pace(StudySettings(name="s", every_steps=5), Clock())
    by_steps.epoch()
    with pytest.raises(ConfigError, match="every 5 steps; two epochs went by"):
        by_steps.epoch()
    counted = Pace(StudySettings(name="s", every_steps=5), Clock())
    for _ in range(3):
        counted.step()
        counted.epoch()
    by_epochs = Pace(StudySettings(name="s", every_epochs=1), Clock())
    for _ in range(MANY_STEPS - 1):
        by_epochs.step()
    with pytest.warns(UserWarning, match="is `swarm.epoch\\(\\)` called"):
        by_epochs.step()
    settled = Pace(StudySettings(name="s", every_epochs=2), Clock())
    settled.step()
    settled.epoch()
    for _ in range(MANY_STEPS):
        settled.step()  # no warning: this script does count epochs
