"""A callback for ``model.fit`` of Keras 3, on any backend.

    model.fit(x, y, validation_data=held_out, epochs=100, callbacks=[SwarmCallback("tumours")])

Where the study merges by epochs, that is before an epoch's validation: ``val_loss`` is then the merge's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras  # type: ignore[import-untyped]

from konsil.callbacks.attendance import Attendance, Attending, counted
from konsil.core.rules.calls import Contribution
from konsil.core.wall import Waiting
from konsil.errors import ConfigError

_EXACT = float(1 << 24)
"""Keras counts examples in float32, which has all whole numbers up to here."""


class SwarmCallback(Attending, keras.callbacks.Callback):  # type: ignore[misc] # its base class has no types
    """Trains a Keras model together with the swarm.

    It joins when ``fit`` begins, counts each batch with its true number of examples, stops ``fit`` when the
    study is over, and finishes when ``fit`` ends. The logs of every epoch get ``konsil_round``,
    ``konsil_members`` and ``konsil_absent``; callbacks that read them, such as ``CSVLogger``, come after it.

    Keras tells no callback that ``fit`` raised: in a ``with`` around ``fit`` this member then leaves at once,
    else when the callback is garbage, ``fit`` begins anew, or Python ends.
    """

    def __init__(
        self,
        study: str,
        *,
        node: str | os.PathLike[str] | None = None,
        timeout_s: float | None = None,
        after: Contribution = "inactive",
        on_waiting: Callable[[Waiting], None] | None = None,
        reset_optimizer: bool = False,
        score: bool = True,
        examples: int | Callable[[int], int] | None = None,
        **join_options: Any,
    ) -> None:
        """Prepare; nothing is connected before ``fit``.

        Args:
            study: the study's name.
            node: as for ``konsil.join``, and so are ``timeout_s``, ``after``, ``on_waiting``,
                ``reset_optimizer`` and ``join_options``.
            timeout_s: see there.
            after: see there.
            on_waiting: see there.
            reset_optimizer: see there.
            score: put an epoch's validation on the ledger, where it was measured on a merge.
            examples: how many examples each batch has, or a function from the batch's place in its epoch to
                that. Without it: what Keras weighs the batch's loss by, which is the batch's true size;
                only a model with a ``train_step`` of its own may not have that.
            **join_options: see there.
        """
        super().__init__()
        options = {
            "node": node,
            "timeout_s": timeout_s,
            "after": after,
            "on_waiting": on_waiting,
            "reset_optimizer": reset_optimizer,
        }
        self._attendance = Attendance(study, score=score, options=options | join_options)
        self._examples = examples
        self._fitted: Any = None
        self._first_batch = 0
        self._seen_before = 0
        self._pending_examples = 0
        self._pending_batches = 0
        self._epoch_counted = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """Join: the model holds the study's parameters afterwards."""
        # Not `self.model`, later: it would make JAX put all of its state back, at each look.
        self._fitted = self.model
        self._pending_examples = self._pending_batches = 0
        self._attendance.begin(self._fitted)
        self._stop_when_over()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """An epoch is to be counted."""
        self._epoch_counted = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """Remember where the batch, or with ``steps_per_execution`` the run of them, begins."""
        self._first_batch = batch
        self._seen_before = self._seen()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """Count; where a merge is due, it is in the model when the next batch begins."""
        batches = batch - self._first_batch + 1
        self._pending_examples += self._examples_of(self._first_batch, batches)
        steps, self._pending_batches = divmod(self._pending_batches + batches, self._batches_a_step)
        if steps:
            self._attendance.step(self._take_pending(), steps)
        self._stop_when_over()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """The validation of an epoch: its training is over, so a merge that is due comes before."""
        self._count_epoch()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Score, if nothing was trained between the merge and this validation."""
        if self._fitted is not None:
            self._attendance.score(self._seen(), logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """Count the epoch, if it had no validation, and tell Keras's logs of the round."""
        self._count_epoch()
        if logs is not None:
            logs.update(self._attendance.figures)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras's signature
        """Finish."""
        self._fitted = None
        self._attendance.end()

    def _count_epoch(self) -> None:
        if not self._epoch_counted:
            self._epoch_counted = True
            self._attendance.epoch(self._take_pending())
            self._stop_when_over()

    def _stop_when_over(self) -> None:
        if self._attendance.over:
            self._fitted.stop_training = True

    def _take_pending(self) -> int:
        examples, self._pending_examples = self._pending_examples, 0
        return examples

    @property
    def _batches_a_step(self) -> int:
        """How many batches the optimiser collects before it changes the model."""
        optimizer = getattr(self._fitted.optimizer, "inner_optimizer", self._fitted.optimizer)
        return getattr(optimizer, "gradient_accumulation_steps", None) or 1

    def _examples_of(self, first: int, batches: int) -> int:
        if self._examples is not None:
            return sum(counted(self._examples, place) or 0 for place in range(first, first + batches))
        seen = self._seen()
        if not self._seen_before < seen < _EXACT:
            raise ConfigError(
                f"How many examples batch {first} had cannot be read from the model's own loss: Keras has"
                f" counted {seen} in this epoch.",
                safe="Nothing was sent; the model is trained up to here.",
                do="Say it: `SwarmCallback(..., examples=lambda batch: ...)`.",
            )
        return seen - self._seen_before

    def _seen(self) -> int:
        """Over how many examples Keras has averaged the loss in this epoch, or validation; 0 if unknown.

        Keras weighs each batch by its size. A mean in half precision would not count exactly.
        """
        means = (metric for metric in self._fitted.metrics if metric.name == "loss")
        count = getattr(next(means, None), "count", None)
        if count is None or count.dtype not in {"float32", "float64"}:
            return 0
        return int(keras.ops.convert_to_numpy(self._now(count)))

    def _now(self, variable: Any) -> Any:
        """The value of one of the metrics' variables: during an epoch JAX keeps it elsewhere."""
        state = getattr(self._fitted, "_jax_state", None)
        if not state or getattr(self._fitted, "_jax_state_synced", True):
            return variable.value
        places = [id(held) for held in self._fitted.metrics_variables]
        return state["metrics_variables"][places.index(id(variable))]
