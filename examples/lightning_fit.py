"""One hospital's Lightning script: pneumonia in children's chest X-rays, with the other hospitals.

    python examples/lightning_fit.py PLACE HOSPITALS

PLACE, from 0, says which part of PneumoniaMNIST in KONSIL_DATA is the hospital's. The node is in KONSIL_DIR.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from konsil.callbacks.lightning import SwarmCallback

IMAGES = 400  # a hospital's: enough to see it learn in a minute


class _Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        first = (torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        second = (torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.MaxPool2d(2))
        self.net = torch.nn.Sequential(*first, *second, torch.nn.Flatten(), torch.nn.Linear(16 * 7 * 7, 1))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        found = self.net(batch[0])
        self.log("val_loss", functional.binary_cross_entropy_with_logits(found, batch[1]))
        self.log("val_accuracy", ((found > 0) == batch[1].bool()).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main() -> None:
    start = int(sys.argv[1]) * IMAGES
    path = Path(os.environ["KONSIL_DATA"]) / "pneumoniamnist" / "pneumoniamnist_reconstructed.npz"
    with np.load(path) as files:
        images, labels = files["train_images"], files["train_labels"]
    own = np.random.default_rng(0).permutation(len(images))[start : start + IMAGES]
    data = TensorDataset(torch.tensor(images[own, None] / 255.0).float(), torch.tensor(labels[own]).float())
    held_out, train = torch.utils.data.random_split(data, [0.25, 0.75])
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=100, callbacks=[SwarmCallback("xrays")], accelerator="cpu", **quiet)
    trainer.fit(_Net(), DataLoader(train, batch_size=25, shuffle=True), DataLoader(held_out, batch_size=50))
    print(f"accuracy {float(trainer.callback_metrics['val_accuracy']):.3f}")


if __name__ == "__main__":
    main()
