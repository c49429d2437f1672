"""One hospital's Hugging Face script: a transformer reads blood values and tells which acute leukaemia it is.

    python examples/huggingface_trainer.py PLACE HOSPITALS

KONSIL_DATA is the folder with the tables of six French hospitals in `aipal-leukaemia`; PLACE counts from 0.
The node is the one in KONSIL_DIR.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from konsil.callbacks.huggingface import SwarmCallback

TABLES = ("lyon", "grenoble", "clermont")
KINDS = ("ALL", "AML", "APL")
VALUES, WIDTH = 14, 32
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
QUIET = {"eval_strategy": "epoch", "report_to": "none", "save_strategy": "no", "use_cpu": True}


class _Reader(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Each of a patient's values is a word: its name is where it stands, and its size scales it.
        self.words = torch.nn.Parameter(torch.randn(VALUES, WIDTH) / 4)
        self.bert = BertForSequenceClassification(BertConfig(vocab_size=1, num_labels=len(KINDS), **SHAPE))

    def forward(self, values: torch.Tensor, labels: torch.Tensor) -> Any:
        return self.bert(inputs_embeds=values[:, :, None] * self.words, labels=labels)


def main() -> None:
    path = Path(os.environ["KONSIL_DATA"]) / "aipal-leukaemia" / f"{TABLES[int(sys.argv[1])]}.csv"
    kinds = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=0, dtype=str)
    values = np.log1p(np.genfromtxt(path, delimiter=",", skip_header=1)[:, 1:])  # NaN: not measured
    held_out, train = np.split(np.random.default_rng(0).permutation(len(kinds)), [len(kinds) // 4])
    # Scaled by the hospital's own training patients; what was not measured counts as their mean.
    values = (values - np.nanmean(values[train], axis=0)) / np.nanstd(values[train], axis=0)
    values = np.nan_to_num(values).astype("float32")
    patients = [
        {"values": row, "labels": KINDS.index(kind.strip('"'))}
        for row, kind in zip(values, kinds, strict=True)
    ]
    parts = {"train_dataset": [patients[i] for i in train], "eval_dataset": [patients[i] for i in held_out]}
    settings = TrainingArguments(tempfile.gettempdir(), num_train_epochs=100, learning_rate=5e-4, **QUIET)
    Trainer(_Reader(), settings, **parts, callbacks=[SwarmCallback("leukaemia")]).train()


if __name__ == "__main__":
    main()
