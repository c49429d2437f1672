"""One hospital's Keras script: which acute leukaemia, from age and 13 blood values, with other hospitals.

    python examples/keras_fit.py PLACE HOSPITALS

KONSIL_DATA is the folder with the tables of six French hospitals in `aipal-leukaemia`; PLACE counts from 0.
The node is the one in KONSIL_DIR.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import keras
import numpy as np

from konsil.callbacks.keras import SwarmCallback

TABLES = ("lyon", "grenoble", "clermont", "nantes", "mondor", "cochin")
KINDS = ("ALL", "AML", "APL")
MCHC, G_PER_DL = 3, 100.0  # in g/L; below this median a hospital has it in g/dL


def read(table: str) -> tuple[np.ndarray, np.ndarray]:
    path = Path(os.environ["KONSIL_DATA"]) / "aipal-leukaemia" / f"{table}.csv"
    kinds = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=0, dtype=str)
    values = np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:]  # NaN: not measured
    if np.nanmedian(values[:, MCHC]) < G_PER_DL:
        values[:, MCHC] *= 10
    return np.log1p(values), np.array([KINDS.index(kind.strip('"')) for kind in kinds])


def main() -> None:
    values, kinds = read(TABLES[int(sys.argv[1])])
    order = np.random.default_rng(0).permutation(len(kinds))
    held_out, train = np.split(order, [len(order) // 4])
    # Scaled by the hospital's own training patients; what was not measured counts as their mean.
    values = (values - np.nanmean(values[train], axis=0)) / np.nanstd(values[train], axis=0)
    values = np.nan_to_num(values).astype("float32")

    model = keras.Sequential(
        [
            keras.Input((values.shape[1],)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(len(KINDS), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = {"x": values[train], "y": kinds[train], "validation_data": (values[held_out], kinds[held_out])}
    seen = model.fit(**data, epochs=500, verbose=0, callbacks=[SwarmCallback("leukaemia")]).history
    for number, accuracy in zip(seen["konsil_round"], seen["val_accuracy"], strict=True):
        print(f"round {number:.0f}: accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
