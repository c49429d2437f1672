"""A hospital's training script for tests of FedProx through a callback: one study by one training, one by two.

steered_member.py FRAMEWORK SOCKET PLACE
The loss is linear with the same gradient in every batch, so where a steered training ends can be computed.
One JSON object a study on standard output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from functools import partial

import torch

warnings.simplefilter("ignore")  # of the frameworks, which give advice as warnings

RATE, ROWS, BATCH = 0.1, 24, 8
UNTIL_THE_STUDY_ENDS = 1000
FRAMEWORK, SOCKET, PLACE = sys.argv[1], sys.argv[2], int(sys.argv[3])

X = torch.full((ROWS, 2), 1.0 + 2 * PLACE)


def train_lightning(module, callback, epochs):
    import lightning.pytorch as pl  # noqa: PLC0415 - one framework a process

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=BATCH)
    pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    ).fit(module, data)


def lightning():
    import lightning.pytorch as pl  # noqa: PLC0415 - one framework a process

    from konsil.callbacks.lightning import SwarmCallback  # noqa: PLC0415 - as above

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))
            self.used = []

        def training_step(self, batch):
            return (self.w * batch[0].mean(dim=0)).sum()

        def configure_optimizers(self):
            self.used.append(torch.optim.SGD(self.parameters(), lr=RATE))
            return self.used[-1]

    module = Module()
    return module, module.used, SwarmCallback, train_lightning


def train_huggingface(used, model, callback, epochs):
    import transformers  # noqa: PLC0415 - one framework a process

    used.append(torch.optim.SGD(model.parameters(), lr=RATE))
    schedule = torch.optim.lr_scheduler.LambdaLR(used[-1], lambda _: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH,
                max_grad_norm=0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=[{"x": row} for row in X],
            callbacks=[callback],
            optimizers=(used[-1], schedule),
        ).train()


def huggingface():
    from konsil.callbacks.huggingface import SwarmCallback  # noqa: PLC0415 - one framework a process

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return {"loss": (self.w * x.mean(dim=0)).sum()}

    used = []
    return Model(), used, SwarmCallback, partial(train_huggingface, used)


def say(study, model, used):
    hooks = [len(optimizer._optimizer_step_pre_hooks) for optimizer in used]
    word = {"study": study, "w": model.w.detach().tolist(), "optimizers": len(used), "hooks": sum(hooks)}
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


made = {"lightning": lightning, "huggingface": huggingface}[FRAMEWORK]

fitted, optimizers, callback_type, train = made()
train(fitted, callback_type("once", node=SOCKET), UNTIL_THE_STUDY_ENDS)
say("once", fitted, optimizers)

fitted, optimizers, callback_type, train = made()
with callback_type("twice", node=SOCKET) as kept:
    train(fitted, kept, 2)  # 6 steps: a round and a half
    train(fitted, kept, UNTIL_THE_STUDY_ENDS)
say("twice", fitted, optimizers)
