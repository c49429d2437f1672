"""What a learner is, and what else it may be able to do: small protocols, each of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]


@runtime_checkable
class Learner(Protocol):
    """The adapter around a model. To support another framework, write these two methods.

    A value may also be an object with ``shape``, ``dtype`` and ``__array__`` whose values are made when numpy
    asks for them, such as a tensor on an accelerator.

    A learner of bfloat16 values, which numpy does not have, gives their bits as uint16 arrays, and their
    names in an attribute ``bf16``.
    """

    def parameters(self) -> dict[str, Array]:
        """The model's named arrays, as they are now; views of the model's own memory where possible.

        Names and shapes must stay the same from call to call. Who calls reads them at once.
        """
        ...

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy values into the model, in place. What ``arrays`` does not name stays as it is.

        Args:
            arrays: read-only arrays, of names and shapes that ``parameters`` gave. They must be copied:
                their memory is gone after the call.
        """
        ...


@dataclass(frozen=True)
class LocalTraining:
    """What happens to a member's training between two merges.

    ``optimizer``: the framework's optimiser that trains the model, None if the script did not name it.
    ``reset_optimizer``: forget the optimiser's state after each merge. ``prox``: strength of FedProx's local
    term, 0 for none. ``scaffold``: correct the gradients by SCAFFOLD's control variates. ``local``: patterns
    of names that stay; what stays is neither held nor corrected.
    """

    optimizer: Any = None
    reset_optimizer: bool = False
    prox: float = 0.0
    scaffold: bool = False
    local: tuple[str, ...] = ()

    @property
    def asks(self) -> bool:
        """Whether anything is asked of the learner at all."""
        return self.optimizer is not None or self.reset_optimizer or self.prox > 0 or self.scaffold


@runtime_checkable
class Steered(Protocol):
    """A learner that reaches into its framework's training."""

    def train_with(self, training: LocalTraining) -> None:
        """Take what the study and the script ask; called once, before anything travels.

        Raises:
            ConfigError: it cannot be done for this model.
        """
        ...

    def begin_round(self) -> None:
        """The model was just loaded: training starts from what it holds now."""
        ...


@runtime_checkable
class GoingOn(Protocol):
    """A steered learner that goes on when another optimiser takes over, in the middle of a round too."""

    def go_on_with(self, optimizer: Any) -> None:
        """From here on this optimiser trains the model; None where it is not known. The same one: no change.

        Raises:
            ConfigError: it cannot be done with it; nothing was changed.
        """
        ...


@runtime_checkable
class Ending(Protocol):
    """A learner that lets go of its framework's training when the session ends."""

    def end(self) -> None:
        """The session is over: leave the training alone from now on."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A learner with preprocessing that is fitted together: its sums and counts travel as parameters.

    It may say in an attribute ``fitted`` whether all of it is: until then nothing is evaluated; and in one
    ``rounds_to_fit`` how many merges more that takes.
    """

    def observe(self, data: Any, weight: int) -> bool:
        """Put this member's sums and counts of the next step that is not fitted yet into the parameters.

        Args:
            data: this member's own training rows; they stay here.
            weight: how much this member counts in the merge that follows; the others count likewise.

        Returns:
            Whether there was such a step; False once all are fitted.
        """
        ...


@runtime_checkable
class Resuming(Protocol):
    """A learner with state beside its parameters that a script needs when it is started again."""

    def local_state(self) -> dict[str, Array]:
        """Named arrays of any kind: counters, the optimiser's moments and numbers."""
        ...

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take the state back.

        Raises:
            ConfigError: it is not of this model, or of another optimiser; nothing was changed.
        """
        ...


@runtime_checkable
class Restoring(Protocol):
    """A learner that can put its whole model back as it was, what does not travel included."""

    def snapshot(self) -> Any:
        """A copy of all that training may change in the model."""
        ...

    def restore(self, kept: Any) -> None:
        """Put it back, bit for bit."""
        ...
