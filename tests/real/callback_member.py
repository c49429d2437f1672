"""A hospital's training script for tests of the callbacks: two studies, one after the other.

callback_member.py FRAMEWORK SOCKET PLACE
With KONSIL_TEST_DEVICE=cuda the frameworks take the accelerator, else the CPU.
One JSON object a study on standard output: what its model holds, how long it trained, what it measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings

import numpy as np

from konsil.learners import learner_for

warnings.simplefilter("ignore")  # of the frameworks, which give advice as warnings

STUDIES = ("epochs", "steps")
EPOCHS = 1000
FRAMEWORK, SOCKET, PLACE = sys.argv[1], sys.argv[2], int(sys.argv[3])
CUDA = os.environ.get("KONSIL_TEST_DEVICE") == "cuda"
TRAIN, HELD_OUT = (22, 30, 18)[PLACE], 5 + PLACE

rng = np.random.default_rng(PLACE)
x = rng.normal(size=(TRAIN, 6)).astype(np.float32)
held_x = rng.normal(size=(HELD_OUT, 6)).astype(np.float32)
y, held_y = ((values.sum(axis=1) > 0).astype(np.int64) for values in (x, held_x))


def fit_keras(study, seed):
    import keras  # noqa: PLC0415 - one framework a process

    from konsil.callbacks.keras import SwarmCallback  # noqa: PLC0415 - as above

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=EPOCHS,
        verbose=0,
        validation_data=(held_x, held_y),
        callbacks=[SwarmCallback(study, node=SOCKET)],
    ).history
    return model, history["val_loss"], int(history["konsil_round"][-1])


def fit_lightning(study, seed):
    import lightning.pytorch as pl  # noqa: PLC0415 - one framework a process
    import torch  # noqa: PLC0415 - as above

    from konsil.callbacks.lightning import SwarmCallback  # noqa: PLC0415 - as above

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
            )
            self.losses = []

        def training_step(self, batch):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch):
            self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def on_validation_end(self):
            if not self.trainer.sanity_checking:
                self.losses.append(float(self.trainer.callback_metrics["val_loss"]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    def loader(values, labels):
        data = torch.utils.data.TensorDataset(torch.from_numpy(values), torch.from_numpy(labels))
        return torch.utils.data.DataLoader(data, batch_size=8)

    torch.manual_seed(seed)
    module = Module()
    callback = SwarmCallback(study, node=SOCKET)
    seen = []
    with callback:
        pl.Trainer(
            accelerator="gpu" if CUDA else "cpu",
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
        ).fit(module, loader(x, y), loader(held_x, held_y))
        seen.append(callback.swarm.last.round)
    return module, module.losses, seen[0]


def fit_huggingface(study, seed):
    import torch  # noqa: PLC0415 - one framework a process
    import transformers  # noqa: PLC0415 - as above

    from konsil.callbacks.huggingface import SwarmCallback  # noqa: PLC0415 - as above

    transformers.set_seed(seed)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config)

    def rows(values, labels):
        tokens = torch.from_numpy(np.digitize(values, np.linspace(-2, 2, 16)) + 1)
        return [{"input_ids": t, "labels": int(label)} for t, label in zip(tokens, labels, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=8,
                learning_rate=0.01,
                lr_scheduler_type="constant",
                eval_strategy="epoch",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not CUDA,
            ),
            train_dataset=rows(x, y),
            eval_dataset=rows(held_x, held_y),
            callbacks=[SwarmCallback(study, node=SOCKET)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    history = trainer.state.log_history
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return model, losses, int([entry for entry in history if "konsil_round" in entry][-1]["konsil_round"])


fit = {"keras": fit_keras, "lightning": fit_lightning, "huggingface": fit_huggingface}[FRAMEWORK]
for number, name in enumerate(STUDIES):
    fitted, measured, last = fit(name, PLACE + 100 * number)
    held = learner_for(fitted).parameters()
    digest = hashlib.sha256(b"".join(np.asarray(held[key]).tobytes() for key in sorted(held))).hexdigest()
    word = {"study": name, "digest": digest, "losses": measured, "round": last, "arrays": len(held)}
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()
