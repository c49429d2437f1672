"""A callback for the Trainer of PyTorch Lightning, as ``lightning`` or as ``pytorch_lightning``.

    Trainer(max_epochs=100, callbacks=[SwarmCallback("tumours")]).fit(module, train, held_out)

The end of an epoch counts with its last batch, before the validation that follows: ``val_loss`` is then the
merge's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from konsil.callbacks.attendance import Attendance, Attending, counted
from konsil.core.rules.calls import Contribution
from konsil.core.wall import Waiting

# Both packages have the same classes under two names; the one that the script has imported is its own.
_NAME = "lightning.pytorch"
if "pytorch_lightning" in sys.modules and _NAME not in sys.modules:
    _NAME = "pytorch_lightning"
try:
    _callbacks = import_module(f"{_NAME}.callbacks")
except ModuleNotFoundError:
    _NAME = "pytorch_lightning"
    _callbacks = import_module(f"{_NAME}.callbacks")
_data = import_module(f"{_NAME}.utilities.data")

_VALIDATION = ("val_", "val/", "valid_", "valid/", "validation_", "validation/")
"""How the names of metrics begin that were logged for a validation."""


class SwarmCallback(Attending, _callbacks.Callback):  # type: ignore[misc,name-defined] # found at run time
    """Trains a LightningModule together with the swarm.

    It joins when ``fit`` begins, counts a step whenever an optimiser has stepped, with the true number of
    examples of its batches, stops ``fit`` when the study is over, and finishes when ``fit`` ends. When
    ``fit`` raises, this member leaves. Every logger of the Trainer gets ``konsil_round``, ``konsil_members``
    and ``konsil_absent`` after each merge.
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
        examples: int | Callable[[Any], int] | None = None,
        **join_options: Any,
    ) -> None:
        """Prepare; nothing is connected before ``fit``.

        Args:
            study: the study's name.
            node: as for ``konsil.join``, and so are ``timeout_s``, ``after``, ``on_waiting``,
                ``reset_optimizer`` and ``join_options``. The optimiser is the Trainer's, if it has one.
            timeout_s: see there.
            after: see there.
            on_waiting: see there.
            reset_optimizer: see there.
            score: put a validation on the ledger, where it was measured on a merge: the metrics whose names
                begin with ``val_``, ``valid_`` or ``validation_``, or with a slash for the underscore.
            examples: how many examples each batch has, or a function from a batch to that. Without it: the
                length of the first tensor in the batch, as Lightning itself infers it.
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
        self._pending_examples = 0
        self._steps_before = 0
        self._validated = 0
        self._epoch_counted = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Join: the module holds the study's parameters afterwards."""
        optimizers = trainer.optimizers
        self._attendance.begin(pl_module, optimizer=optimizers[0] if len(optimizers) == 1 else None)
        self._stop_when_over(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Count from here; a checkpoint that training goes on from has been read by now."""
        self._steps_before = trainer.global_step
        self._pending_examples = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """An epoch is to be counted."""
        self._epoch_counted = False

    def on_train_batch_end(
        self,
        trainer: Any,
        pl_module: Any,  # noqa: ARG002 - Lightning's signature
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002 - Lightning's signature
    ) -> None:
        """Count a step if an optimiser has stepped, and the epoch with its last batch."""
        self._pending_examples += self._examples_of(batch)
        merged = False
        if trainer.global_step > self._steps_before:
            self._steps_before = trainer.global_step
            merged = self._attendance.step(self._take_pending())
        else:
            self._attendance.fresh = False  # the statistics of layers have moved
        if merged:
            self._tell(trainer)
        if trainer.is_last_batch:
            self._count_epoch(trainer)
        self._stop_when_over(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Count the epoch, if nobody knew which batch was its last."""
        self._count_epoch(trainer)
        self._stop_when_over(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Count the examples of the validation."""
        self._validated = 0

    def on_validation_batch_end(
        self,
        trainer: Any,  # noqa: ARG002 - Lightning's signature
        pl_module: Any,  # noqa: ARG002 - Lightning's signature
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002 - Lightning's signature
        dataloader_idx: int = 0,  # noqa: ARG002 - Lightning's signature
    ) -> None:
        """Count the examples of the validation."""
        self._validated += self._examples_of(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Score, if nothing was trained between the merge and this validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._attendance.score(self._validated, _scores(trainer.callback_metrics))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's signature
        """Leave: the others go on."""
        self._attendance.leave()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002 - Lightning's signature
        """Finish."""
        self._attendance.end()

    def _examples_of(self, batch: Any) -> int:
        said = counted(self._examples, batch)
        return int(_data.extract_batch_size(batch)) if said is None else said

    def _count_epoch(self, trainer: Any) -> None:
        if not self._epoch_counted:
            self._epoch_counted = True
            if self._attendance.epoch(self._take_pending()):
                self._tell(trainer)

    def _take_pending(self) -> int:
        examples, self._pending_examples = self._pending_examples, 0
        return examples

    def _stop_when_over(self, trainer: Any) -> None:
        if self._attendance.over:
            trainer.should_stop = True

    def _tell(self, trainer: Any) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(self._attendance.figures, step=trainer.global_step)


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a validation by their names without what marks them as such."""
    return {
        name.removeprefix(mark): float(value)
        for name, value in metrics.items()
        for mark in _VALIDATION
        if name.startswith(mark)
    }
