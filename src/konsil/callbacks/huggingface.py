"""A callback for the Trainer of Hugging Face's transformers.

    Trainer(model, arguments, train_dataset=train, callbacks=[SwarmCallback("tumours")]).train()

Where the study merges by epochs, the evaluation at an epoch's end comes after the merge: ``eval_loss`` is
then the merge's.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from konsil.callbacks.attendance import Attendance, Attending, counted
from konsil.core.rules.calls import Contribution
from konsil.core.wall import Waiting

_EVALUATION = "eval_"
_NO_SCORES = ("runtime", "per_second", "preparation_time")
"""How the names of figures end that say how fast an evaluation was."""


class SwarmCallback(Attending, TrainerCallback):
    """Trains the model of a Hugging Face Trainer together with the swarm.

    It joins when ``train`` begins, counts each step of the optimiser with the true number of examples of all
    its batches, stops ``train`` when the study is over, and finishes when ``train`` ends. ``konsil_round``,
    ``konsil_members`` and ``konsil_absent`` go into the Trainer's log history after each merge, and into the
    logs for the callbacks that come after this one.

    Transformers tells no callback that ``train`` raised: in a ``with`` around it this member then leaves at
    once, else when the callback is garbage, ``train`` begins anew, or Python ends.
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
        """Prepare; nothing is connected before ``train``.

        Args:
            study: the study's name.
            node: as for ``konsil.join``, and so are ``timeout_s``, ``after``, ``on_waiting``,
                ``reset_optimizer`` and ``join_options``. The optimiser is the Trainer's.
            timeout_s: see there.
            after: see there.
            on_waiting: see there.
            reset_optimizer: see there.
            score: put an evaluation on the ledger, where it was measured on a merge.
            examples: how many examples each batch has, or a function from the model's named inputs to that.
                Without it: the length of the first tensor among them, as the Trainer itself finds it.
            **join_options: see there.
        """
        options = {
            "node": node,
            "timeout_s": timeout_s,
            "after": after,
            "on_waiting": on_waiting,
            "reset_optimizer": reset_optimizer,
        }
        self._attendance = Attendance(study, score=score, options=options | join_options)
        self._examples = examples
        self._watch: Any = None
        self._trained = 0
        self._evaluated = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Join: the model holds the study's parameters afterwards."""
        model = kwargs["model"]
        self._stop_watching()
        self._attendance.begin(model, optimizer=kwargs["optimizer"])
        # The Trainer tells no callback what a batch holds: the model sees it. It must not keep this callback.
        self._watch = model.register_forward_pre_hook(_weakly(self._see), with_kwargs=True)
        self._stop_when_over(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Count; where a merge is due, it is in the model when the next step begins."""
        examples, self._trained = self._trained, 0
        if self._attendance.step(examples):
            self._tell(state)
        self._stop_when_over(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Count the epoch."""
        examples, self._trained = self._trained, 0
        if self._attendance.epoch(examples):
            self._tell(state)
        self._stop_when_over(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Score, if nothing was trained between the merge and this evaluation."""
        examples, self._evaluated = self._evaluated, 0
        if self._watch is not None:
            self._attendance.score(examples, _scores(kwargs.get("metrics", {})))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Add the figures of the round for the callbacks that come after this one."""
        if self._watch is not None:
            kwargs["logs"].update(self._attendance.figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the Trainer's signature
        """Finish."""
        self._stop_watching()
        self._attendance.end()

    def leave(self) -> None:
        """Stop without finishing: the study goes on without this member. Never raises."""
        self._stop_watching()
        super().leave()

    def _see(self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count the examples that the model is about to see."""
        said = counted(self._examples, named or inputs)
        examples = find_batch_size((inputs, named)) if said is None else said  # type: ignore[no-untyped-call]
        if module.training:
            self._trained += examples or 0
            self._evaluated = 0
        else:
            self._evaluated += examples or 0

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
        self._watch = None
        self._trained = self._evaluated = 0

    def _stop_when_over(self, control: Any) -> None:
        if self._attendance.over:
            control.should_training_stop = True

    def _tell(self, state: Any) -> None:
        state.log_history.append(self._attendance.figures | {"epoch": state.epoch, "step": state.global_step})


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A method that does not keep its object alive, and does nothing without it."""
    weak = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        alive = weak()
        if alive is not None:
            alive(*arguments)

    return call


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation by their names without what marks them as such."""
    return {
        name.removeprefix(_EVALUATION): float(value)
        for name, value in metrics.items()
        if name.startswith(_EVALUATION) and not name.endswith(_NO_SCORES) and isinstance(value, int | float)
    }
