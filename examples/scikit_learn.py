"""One hospital's training script: a linear model on a table, trained together with the other hospitals.

    python examples/scikit_learn.py PLACE HOSPITALS

Each hospital takes another part of scikit-learn's breast cancer patients: PLACE counts from 0. The node is
the one in KONSIL_DIR, or in ~/.konsil; the study is that of examples/study.toml.
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score

import konsil


def main() -> None:
    place, hospitals = (int(word) for word in sys.argv[1:3])
    values, labels = load_breast_cancer(return_X_y=True)
    rng = np.random.default_rng(place)
    own = rng.permutation(np.arange(place, len(labels), hospitals))
    held_out, train = np.split(own, [len(own) // 5])
    # Scaled by the hospital's own training patients: nothing about them has to be told to anybody.
    values = (values - values[train].mean(axis=0)) / values[train].std(axis=0)

    model = SGDClassifier(loss="log_loss", alpha=0.01, random_state=0)
    konsil.prepare(model, n_features=values.shape[1], classes=[0, 1])  # its shapes, before it saw a patient

    def evaluate(merged):
        found = merged.predict_proba(values[held_out])[:, 1]
        loss, auc = log_loss(labels[held_out], found), roc_auc_score(labels[held_out], found)
        return {"examples": len(held_out), "loss": loss, "auc": auc}

    with konsil.join("tumours", model, evaluate=evaluate) as swarm:
        while not swarm.finished:
            order = rng.permutation(train)
            model.partial_fit(values[order], labels[order])
            if swarm.epoch(examples=len(train)):
                auc, absent = swarm.figures["konsil/own_auc"], dict(swarm.last.absent) or "nobody"
                print(f"round {swarm.last.round}: auc {auc:.3f}; absent: {absent}", flush=True)
        print(swarm.ended)


if __name__ == "__main__":
    main()
