"""One hospital's training script for a real table: gaps, scales and a linear model, all fitted together.

    KONSIL_DATA=FOLDER python examples/tabular.py PLACE HOSPITALS

Is an acute leukaemia myeloid, by age and 13 laboratory values? Six French hospitals (Alcazer et al., Lancet
Digit Health 2024;6:e323) as FOLDER/aipal-leukaemia/*.csv; fewer members share their tables out, PLACE counts
from 0. The study is examples/tabular.toml. Without these tables: examples/scikit_learn.py brings its data.
"""

import os
import sys
from pathlib import Path

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import konsil

MCHC, G_DL_BELOW = 3, 100.0  # the column of MCHC_g_L; what is below was written in g/dL
SOMEBODY = [[60.0, 20.0, 90.0, np.nan, 20.0, 4.0, 30.0, 6.0, 10.0, 2.0, 80.0, 80.0, 4.0, 400.0]]


def main() -> None:
    place, hospitals = (int(word) for word in sys.argv[1:3])
    paths = sorted(Path(os.environ.get("KONSIL_DATA", "")).glob("aipal-leukaemia/*.csv"))[place::hospitals]
    if not paths:
        sys.exit("KONSIL_DATA must name the folder that has aipal-leukaemia/*.csv. Nothing was started.")
    values = np.concatenate([np.genfromtxt(path, delimiter=",")[1:, 1:] for path in paths])
    names = [np.genfromtxt(path, str, delimiter=",", usecols=0)[1:] for path in paths]
    labels = np.array(np.concatenate(names) == '"AML"', int)
    values[values[:, MCHC] < G_DL_BELOW, MCHC] *= 10  # three hospitals use g/dL, one of them now and then
    rng = np.random.default_rng(place)
    held_out, train = np.split(rng.permutation(len(labels)), [len(labels) // 4])
    model = SGDClassifier(loss="log_loss", alpha=0.01, random_state=0)
    pipeline = make_pipeline(FunctionTransformer(np.log1p), SimpleImputer(), StandardScaler(), model)

    def evaluate(merged):
        found = merged.predict_proba(values[held_out])[:, 1]
        auc = roc_auc_score(labels[held_out], found)
        print(f"auc {auc:.3f} on {len(held_out)} held out", flush=True)
        return {"examples": len(held_out), "loss": log_loss(labels[held_out], found), "auc": auc}

    konsil.prepare(pipeline, n_features=values.shape[1], classes=[0, 1])
    # Gaps and scales first: three rounds, in which only sums and counts travel.
    with konsil.join("leukaemia", pipeline, preprocessing=values[train], evaluate=evaluate) as swarm:
        scaled = pipeline[:-1].transform(values[train])
        while not swarm.finished:
            model.partial_fit(scaled, labels[train])
            swarm.epoch(examples=len(train))
        print(f"somebody, by every hospital's model: {float(pipeline.predict_proba(SOMEBODY)[0, 1])!r}")
        print(swarm.ended)


if __name__ == "__main__":
    main()
