"""What a simulated study leaves: the contract's record of it, and the members' models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konsil.core.rules import RoundRecord, ScoreRecord, Study, final_round
from konsil.simulation.member import Problem

_ROUNDS_SHOWN = 12


@dataclass(frozen=True)
class Simulated:
    """A study that was simulated.

    ``study``: as it stands on the simulated ledger at the end. ``members``: their names, by place.
    ``models``: member -> its model; the last merge is in those of all that stayed to the end.
    ``problems``: who left and why. ``state_digest``: of the contract's whole state. ``seconds``: it took.
    """

    study: Study
    members: tuple[str, ...]
    models: Mapping[str, Any]
    problems: tuple[Problem, ...]
    state_digest: str
    seconds: float

    @property
    def rounds(self) -> tuple[RoundRecord, ...]:
        """The accepted rounds."""
        return self.study.history

    @property
    def digest(self) -> str:
        """Of the last accepted merge."""
        return self.study.accepted

    @cached_property
    def scores(self) -> Mapping[str, NDArray[np.float64]]:
        """Metric, and "loss" -> float64 [rounds, members]; NaN where a member did not score a round."""
        tables: dict[str, NDArray[np.float64]] = {}
        for row, record in enumerate(self.rounds):
            for name, score in record.scores.items():
                for metric, value in _values(score):
                    table = tables.setdefault(metric, np.full((len(self.rounds), len(self.members)), np.nan))
                    table[row, self.members.index(name)] = value
        return dict(sorted(tables.items()))

    def summary(self) -> str:
        """The study in lines for people: its end, some of its rounds, and every problem."""
        study, rounds = self.study, self.rounds
        title = f"Study '{study.settings.name}': {len(self.members)} members, {len(rounds)} rounds"
        lines = [f"{title} in {self.seconds:.1f} s, {study.phase}. {study.ended}"]
        every = max(1, math.ceil(len(rounds) / _ROUNDS_SHOWN))
        shown = [record for record in rounds[:-1] if (record.number - 1) % every == 0] + list(rounds[-1:])
        lines += [f"  round {record.number}: {'; '.join(self._of(record))}" for record in shown]
        if rounds:
            lines += self._merges()
        lines += [f"  {each.member}, round {each.round}: {each.what}" for each in self.problems]
        return "\n".join(lines)

    def _merges(self) -> Iterator[str]:
        """The last merge, which the models hold; and the best one, where the settings choose by a score."""
        if self.study.settings.best is None:
            yield f"  merge {self.digest}"
            return
        final = final_round(self.study, math.inf)  # all scores that there will be are there
        yield f"  last merge {self.digest}"
        yield f"  final model: round {final.round}, merge {final.digest}. {final.why}"

    def _of(self, record: RoundRecord) -> Iterator[str]:
        if self.study.settings.adaptive is not None:
            yield f"interval {record.interval}"
        yield f"{len(record.roster)} updates"
        for metric, table in self.scores.items():
            row = table[record.number - 1]
            if not np.isnan(row).all():
                yield f"{metric} {np.nanmin(row):.4g} to {np.nanmax(row):.4g}, mean {np.nanmean(row):.4g}"
        if record.absent:
            yield "absent: " + ", ".join(f"{name} ({why})" for name, why in sorted(record.absent.items()))


def _values(score: ScoreRecord) -> Iterator[tuple[str, float]]:
    if score.loss is not None:
        yield "loss", score.loss
    yield from score.metrics.items()
