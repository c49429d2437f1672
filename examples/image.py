"""One hospital's training script: pneumonia on chest X-rays of children (PneumoniaMNIST), a small network.

    KONSIL_DATA=DATA python examples/image.py PLACE HOSPITALS

DATA/pneumoniamnist has the images. Hospitals differ in size and in how many of their children are ill; each
draws its own by PLACE, which counts from 0. The node is that of KONSIL_DIR; the study is examples/image.toml.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

import konsil


def main() -> None:
    place, hospitals = (int(word) for word in sys.argv[1:3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = np.load(Path(os.environ["KONSIL_DATA"]) / "pneumoniamnist" / "pneumoniamnist_reconstructed.npz")
    images = torch.from_numpy(data["train_images"]).float().div(255).sub(0.5).unsqueeze(1)
    labels = torch.from_numpy(data["train_labels"]).flatten().float()
    rng = np.random.default_rng(0)  # the same at all hospitals, so that no image is at two of them
    shares = rng.dirichlet(np.full(hospitals, 5.0), size=2)  # of the healthy and of the ill
    where = np.array([rng.choice(hospitals, p=shares[int(label)]) for label in labels])
    own = rng.permutation(np.flatnonzero(where == place))
    held_out, train = np.split(own, [len(own) // 5])

    convolutions = nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 6 * 6, 1), nn.Flatten(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    with konsil.join("xrays", model) as swarm:
        while not swarm.finished:
            for batch in torch.from_numpy(rng.permutation(train)).split(64):
                optimiser.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(model(images[batch]), labels[batch]).backward()
                optimiser.step()
            if swarm.epoch(examples=len(train)):
                with torch.no_grad():
                    found = model.eval()(images[held_out]).sigmoid()
                auc = roc_auc_score(labels[held_out], found)
                swarm.score(examples=len(held_out), loss=log_loss(labels[held_out], found), auc=auc)
                print(f"round {swarm.last.round}: auc {auc:.3f} on {len(held_out)} of its own", flush=True)
                model.train()
        print(swarm.ended)


if __name__ == "__main__":
    main()
