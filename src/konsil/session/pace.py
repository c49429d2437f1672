"""When to merge: after so many steps, epochs or minutes, as the study says."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError

_MINUTE_S = 60.0

MANY_STEPS = 10_000
"""More than most epochs have: a script that calls the wrong counter would train on without a word."""


class Pace:
    """Counts one round's training."""

    def __init__(self, settings: StudySettings, clock: Callable[[], float]) -> None:
        """Begin a round.

        Args:
            settings: exactly one of ``every_steps``, ``every_epochs`` and ``every_minutes`` is set.
            clock: seconds since any moment, never going back.
        """
        self._clock = clock
        self._steps_an_epoch = 0
        self.begin(settings)

    def begin(self, settings: StudySettings, interval: int = 1) -> None:
        """Begin the next round. ``interval``: how many times the set interval it trains."""
        self._settings = settings
        self._interval = interval
        self._steps = 0
        self._epochs = 0
        self._steps_of_epoch = 0
        self._began_s = self._clock()

    def step(self) -> None:
        """One more step."""
        self._steps += 1
        self._steps_of_epoch += 1
        if self._settings.every_epochs and not self._steps_an_epoch and self._steps == MANY_STEPS:
            warnings.warn(
                f"The study merges by epochs, and {MANY_STEPS} steps were counted without the end of one: is"
                " `swarm.epoch()` called after each pass over the data?",
                stacklevel=4,
            )

    def epoch(self) -> None:
        """One more epoch.

        Raises:
            ConfigError: the study counts steps, and this script counts none.
        """
        self._epochs += 1
        if self._settings.every_steps and not self._steps and self._epochs > 1:
            raise ConfigError(
                f"The study merges every {self._settings.every_steps} steps; two epochs went by without one.",
                safe="Nothing was sent.",
                do="Call `swarm.step(examples=len(batch))` after each batch; here `epoch` merges nothing.",
            )
        self._steps_an_epoch, self._steps_of_epoch = self._steps_of_epoch, 0

    @property
    def due(self) -> bool:
        """Whether it is time to merge."""
        return self._done >= 1

    @property
    def progress(self) -> float:
        """How much of the round's training is done, 0 to 1.

        Steps inside an epoch count by how many the epoch before had.
        """
        part = 0.0
        if self._settings.every_epochs and self._steps_an_epoch:
            part = min(self._steps_of_epoch / self._steps_an_epoch, 1.0) / self._epochs_due
        return min(self._done + part, 1.0)

    @property
    def _epochs_due(self) -> int:
        return self._settings.every_epochs * self._interval

    @property
    def _done(self) -> float:
        if self._settings.every_minutes:
            due_s = self._settings.every_minutes * _MINUTE_S * self._interval
            return (self._clock() - self._began_s) / due_s
        if self._settings.every_epochs:
            return self._epochs / self._epochs_due
        return self._steps / max(self._settings.every_steps * self._interval, 1)
