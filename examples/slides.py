"""One hospital's training script: microsatellite instability of colorectal cancer, from slides.

    KONSIL_DATA=DATA python examples/slides.py PLACE

DATA/tcga-crc-resnet18 has three sites' tiles, 512 features of each; PLACE 0, 1 or 2 is the hospital's. Held
out are patients, not tiles, and a patient's score is the mean over the tiles. The node is that of KONSIL_DIR;
the study is examples/slides.toml.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

import konsil


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(os.environ["KONSIL_DATA"]) / "tcga-crc-resnet18" / "isMSIH" / "ABC"[int(sys.argv[1])]
    features = torch.from_numpy(np.load(folder / "features.npy"))
    unstable = torch.from_numpy(np.load(folder / "labels.npy") == 0).float()
    tiles = list(csv.DictReader((folder / "tiles.csv").open()))
    patients, tile_of = np.unique([tile["patient"] for tile in tiles], return_inverse=True)
    ill = np.array([unstable[tile_of == number].mean().item() for number in range(len(patients))]).round()
    rng = np.random.default_rng(1)
    kinds = [rng.permutation(np.flatnonzero(ill == kind)) for kind in (0, 1)]
    held_out = np.concatenate([kind[: -(-len(kind) // 3)] for kind in kinds])  # a third of each, rounded up
    train = np.flatnonzero(~np.isin(tile_of, held_out))

    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1), nn.Flatten(0))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3, weight_decay=1e-4)
    with konsil.join("slides", head) as swarm:
        while not swarm.finished:
            batch = torch.from_numpy(rng.choice(train, 124, replace=False))
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(head(features[batch]), unstable[batch]).backward()
            optimiser.step()
            if swarm.step(examples=len(batch)):
                with torch.no_grad():
                    scores = head.eval()(features).sigmoid().numpy()
                found = [scores[tile_of == number].mean() for number in held_out]
                auc = roc_auc_score(ill[held_out], found)
                swarm.score(examples=len(held_out), loss=log_loss(ill[held_out], found), auc=auc)
                print(f"round {swarm.last.round}: auc {auc:.3f} of {len(held_out)} patients", flush=True)
                head.train()
        print(swarm.ended)


if __name__ == "__main__":
    main()
