"""What the demo is to do, and how far it is: the view's only source."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from konsil.core.rules import Study
from konsil.core.wall import ToldNode
from konsil.evaluation import datasets
from konsil.evaluation.processes import Ended
from konsil.evaluation.result import HospitalResult


@dataclass(frozen=True)
class Plan:
    """What to run. ``data``: the folder of the data sets; ``keep``: where to leave the members' directories.

    ``began_s``: when the demo was started, on the monotonic clock.
    """

    dataset: str
    data: Path | None
    rounds: int
    seed: int
    keep: Path | None
    began_s: float


@dataclass
class Progress:
    """How far the demo is; the view reads it at any time.

    ``patients``: hospital -> [to train on, to score rounds on, held out]. ``told``: member -> its node about
    itself. ``merged_s``: round -> hospital -> monotonic time at which it held the merge.
    """

    plan: Plan
    step: str = "start"
    done: dict[str, float] = field(default_factory=dict)
    patients: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    study: Study | None = None
    height: int = 0
    told: dict[str, ToldNode] = field(default_factory=dict)
    entered_s: dict[str, float] = field(default_factory=dict)
    merged_s: dict[int, dict[str, float]] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    results: dict[str, HospitalResult] = field(default_factory=dict)

    @property
    def dataset(self) -> datasets.Dataset:
        """What is learnt."""
        return datasets.describe(self.plan.dataset)

    @property
    def hospitals(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return self.dataset.hospitals

    @property
    def steps_taken(self) -> int:
        """Grows whenever something got further; ticks and heartbeats do not count."""
        scores = sum(len(record.scores) for record in self.study.history) if self.study is not None else 0
        merges = len(self.study.history) if self.study is not None else 0
        held = sum(len(by) for by in self.merged_s.values())
        said = len(self.patients) + len(self.entered_s) + len(self.ended) + len(self.alone)
        return merges + scores + held + said + len(self.results)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.plan.began_s

    def finish(self, step: str, then: str) -> None:
        """A step is done, the next begins."""
        self.done[step] = self.elapsed_s
        self.step = then

    def aucs(self, hospital: str) -> list[float]:
        """A hospital's validation AUCs, one a scored round."""
        history = self.study.history if self.study is not None else ()
        return [
            record.scores[hospital].metrics["auc"]
            for record in history
            if hospital in record.scores and "auc" in record.scores[hospital].metrics
        ]
