"""Local against swarm against central on data at hand, in one process, without a network or a ledger.

The swarm here is the bare method: train, take the weighted mean, go on. It tells whether learning together
helps on a data set before anybody sets up a node, and it is the figure that the real swarm must reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from konsil.evaluation import models
from konsil.evaluation.preparation import Hospital, Rows
from konsil.evaluation.result import HospitalResult

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier


def pooled(hospitals: Mapping[str, Hospital]) -> Rows:
    """All hospitals' training rows in one place."""
    return Rows(
        np.concatenate([hospital.train.values for hospital in hospitals.values()]),
        np.concatenate([hospital.train.labels for hospital in hospitals.values()]),
    )


def train_swarm(
    hospitals: Mapping[str, Hospital],
    seed: int,
    rounds: int = models.ROUNDS,
    epochs: int = models.EPOCHS_PER_ROUND,
) -> MLPClassifier:
    """The model after so many rounds, each the mean of the hospitals' models weighted by their patients."""
    features = next(iter(hospitals.values())).train.values.shape[1]
    members = {name: models.classifier(features, seed) for name in sorted(hospitals)}
    shuffles = {name: np.random.default_rng([seed, place]) for place, name in enumerate(members)}
    weights = np.array([len(hospitals[name].train) for name in members], dtype=np.float64)
    for _ in range(rounds):
        for name, model in members.items():
            for _ in range(epochs):
                models.train_epoch(model, hospitals[name].train, shuffles[name])
        for arrays in zip(*(models.parameters(model) for model in members.values()), strict=True):
            merged = np.average(np.stack(arrays), axis=0, weights=weights)
            for array in arrays:
                array[...] = merged
    return next(iter(members.values()))


def hospital_results(
    hospitals: Mapping[str, Hospital],
    local: Mapping[str, MLPClassifier],
    swarm: MLPClassifier,
    central: MLPClassifier,
    *,
    together: Mapping[str, Hospital] | None = None,
    central_together: MLPClassifier | None = None,
) -> tuple[HospitalResult, ...]:
    """Every model's probabilities for every hospital's held-out patients.

    Args:
        hospitals: prepared at each hospital.
        local: hospital -> the model that it trained alone.
        swarm: the model trained together.
        central: trained on the pooled rows after the same preparation at each hospital.
        together: the same patients on pooled scales.
        central_together: trained on the pooled rows of ``together``.
    """
    results = []
    for name, hospital in hospitals.items():
        reference: tuple[float, ...] = ()
        if together is not None and central_together is not None:
            reference = _scores(central_together, together[name].test)
        results.append(
            HospitalResult(
                name=name,
                train_patients=len(hospital.train),
                train_positives=int(hospital.train.labels.sum()),
                validation_patients=len(hospital.validation),
                labels=tuple(int(label) for label in hospital.test.labels),
                local={other: _scores(model, hospital.test) for other, model in local.items()},
                swarm=_scores(swarm, hospital.test),
                central=_scores(central, hospital.test),
                central_together=reference,
            )
        )
    return tuple(results)


def run(
    hospitals: Mapping[str, Hospital], seed: int, together: Mapping[str, Hospital] | None = None
) -> tuple[HospitalResult, ...]:
    """Train all arms with the same model, seed and number of passes over the rows, and score them.

    Args:
        hospitals: prepared at each hospital.
        seed: of the first parameters and of the shuffling.
        together: the same patients on pooled scales, for the second central arm.
    """
    return hospital_results(
        hospitals,
        local={name: models.train(hospital.train, seed) for name, hospital in hospitals.items()},
        swarm=train_swarm(hospitals, seed),
        central=models.train(pooled(hospitals), seed),
        together=together,
        central_together=None if together is None else models.train(pooled(together), seed),
    )


def _scores(model: MLPClassifier, rows: Rows) -> tuple[float, ...]:
    return tuple(float(p) for p in models.probabilities(model, rows))
