"""The demo's learner: a small multilayer perceptron of scikit-learn, trained batch by batch.

One model and one setting serve all data sets. They were chosen on the validation patients of the leukaemia
set, never on held-out ones, where the *rivals* (each hospital alone, all data in one place) were at their
best, so that the swarm does not win against a weak opponent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from konsil.evaluation.preparation import Rows
from konsil.learners.sklearn import prepare

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

HIDDEN_UNITS = 16
LEARNING_RATE = 0.003
L2 = 0.1
"""scikit-learn's alpha: strength of the squared penalty, divided by the batch's size."""

BATCH = 32
"""Patients a step, at most."""

ROUNDS = 20
EPOCHS_PER_ROUND = 5

Floats = npt.NDArray[np.float64]


def classifier(features: int, seed: int) -> MLPClassifier:
    """A model whose arrays exist, equal for equal seeds, that has seen no patient.

    Args:
        features: columns of the rows it will see.
        seed: of the first parameters and of the optimiser.
    """
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415 - costs a second; only training needs it

    model = MLPClassifier(
        hidden_layer_sizes=(HIDDEN_UNITS,),
        alpha=L2,
        learning_rate_init=LEARNING_RATE,
        random_state=seed,
        shuffle=False,
    )
    prepare(model, features, classes=[0, 1])
    return model


def parameters(model: MLPClassifier) -> list[Floats]:
    """The model's own arrays (not copies): matrices, then biases."""
    return [*model.coefs_, *model.intercepts_]


def batches(patients: int, rng: np.random.Generator) -> list[npt.NDArray[np.intp]]:
    """One epoch: every patient once, shuffled, in nearly equal batches of at most `BATCH`."""
    return np.array_split(rng.permutation(patients), -(-patients // BATCH))


def train_epoch(model: MLPClassifier, rows: Rows, rng: np.random.Generator) -> None:
    """One pass over the rows, one optimiser step a batch."""
    for batch in batches(len(rows), rng):
        model.partial_fit(rows.values[batch], rows.labels[batch])


def train(rows: Rows, seed: int, epochs: int = ROUNDS * EPOCHS_PER_ROUND) -> MLPClassifier:
    """A model trained on these rows alone."""
    model = classifier(rows.values.shape[1], seed)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        train_epoch(model, rows, rng)
    return model


def probabilities(model: MLPClassifier, rows: Rows) -> Floats:
    """Probability of the positive class, float64 [patients]."""
    return np.asarray(model.predict_proba(rows.values)[:, 1], dtype=np.float64)
