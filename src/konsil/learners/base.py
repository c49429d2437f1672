"""What a learner is, which of its parameters travel, and which adapter fits a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from konsil.core.parameters import Schema
from konsil.core.rules.settings import StudySettings
from konsil.errors import ConfigError, KonsilError, StudyError

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


_BF16_INFINITE = 0x7F80
"""The bits of a bfloat16's exponent, all set: an infinity or a NaN."""

_HELD, _STATE = "held/", "state/"
"""Before the names of arrays that stay, and of a learner's further state, in ``local_state``."""


class Shared:
    """The part of a learner's parameters that travels.

    Floating-point arrays travel. Integer and boolean ones (such as BatchNorm's counter) stay, since their
    mean means nothing, and so does every name that matches a pattern of ``local``.
    """

    def __init__(self, learner: Learner, local: Sequence[str] = ()) -> None:
        """Wrap a learner; ``local`` are patterns as in ``fnmatch``, with case."""
        self._learner = learner
        self._local = tuple(local)

    @property
    def learner(self) -> Learner:
        """What is wrapped."""
        return self._learner

    def parameters(self) -> dict[str, Array]:
        """The arrays that travel, sorted by name.

        Raises:
            ConfigError: none is left to travel.
        """
        arrays = self._read()
        travelling = {name: arrays[name] for name in sorted(arrays) if self._travels(name, arrays[name])}
        if not travelling:
            raise ConfigError(
                f"None of the model's {len(arrays)} arrays would travel.",
                safe="Nothing was sent.",
                do="Only floating-point arrays do, and no name that matches the study's `local` patterns"
                f" ({', '.join(self._local) or 'none'}).",
            )
        return travelling

    def schema(self) -> Schema:
        """Names, dtypes and shapes of what travels.

        Raises:
            ConfigError: nothing is left to travel.
            ParametersError: an array that cannot be merged, by name.
        """
        arrays = self.parameters()
        return Schema.of(arrays, arrays.keys() & set(self._bf16))

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy values into the model, in place."""
        self._learner.load(arrays)

    def begin_round(self) -> None:
        """The model was just loaded: training starts from here."""
        if isinstance(self._learner, Steered):
            self._learner.begin_round()

    def go_on_with(self, optimizer: Any) -> None:
        """From here on this optimiser trains the model; what the study and the script ask goes on with it.

        Raises:
            ConfigError: it cannot be done with it; nothing was changed.
        """
        if isinstance(self._learner, GoingOn):
            self._learner.go_on_with(optimizer)

    def local_state(self) -> dict[str, Array]:
        """What does not travel, as named arrays: those that stay here, and the learner's further state."""
        arrays = self._read()
        state = {_HELD + name: array for name, array in arrays.items() if not self._travels(name, array)}
        if isinstance(self._learner, Resuming):
            state |= {_STATE + name: array for name, array in self._learner.local_state().items()}
        return state

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take back what ``local_state`` gave.

        Raises:
            ConfigError: it is not of this model, or of another optimiser; nothing was changed.
        """
        held = {name: array for name, array in self._read().items() if not self._travels(name, array)}
        given, state = _under(_HELD, arrays), _under(_STATE, arrays)
        wrong = different(held, given, set(self._bf16))
        wrong += [f"'{name}' is not expected" for name in arrays if not name.startswith((_HELD, _STATE))]
        if state and not isinstance(self._learner, Resuming):
            wrong.append(f"a {type(self._learner).__name__} has no further state")
        if wrong:
            raise ConfigError(
                f"The local state is another model's: {'; '.join(wrong[:5])}.",
                safe="Nothing was loaded.",
                do="Build the model and its optimiser as before.",
            )
        if isinstance(self._learner, Resuming):
            self._learner.load_local_state(state)
        self._learner.load(given)

    def end(self) -> None:
        """The session is over: the framework's training is left alone from now on."""
        if isinstance(self._learner, Ending):
            self._learner.end()

    @property
    def fitted(self) -> bool:
        """Whether the model can be used: all preprocessing is fitted, or there is none."""
        return bool(getattr(self._learner, "fitted", True))

    def require_rounds(self, left: int) -> None:
        """See that a study has as many rounds left as fitting the preprocessing takes.

        Raises:
            StudyError: it has not, so nobody could ever use what came out.
        """
        needed = int(getattr(self._learner, "rounds_to_fit", 0))
        if needed > left:
            raise StudyError(
                f"Fitting the preprocessing takes {needed} rounds more, one for each mean, and the study has"
                f" {left} left.",
                safe="Nothing was sent.",
                do="Give the study more `rounds`: those of the preprocessing, and then those in which the"
                " model is trained.",
            )

    def require_fitted(self, ended: str) -> None:
        """See that the preprocessing is fitted, now that a study is over. ``ended``: why it is.

        Raises:
            StudyError: it is not.
        """
        if not self.fitted:
            raise StudyError(
                f"The study is over before the preprocessing was fitted together: {ended}",
                safe="Nothing more was sent. The model cannot be used: its preprocessing is not fitted.",
                do="Take part in a study with more rounds, and one that ends neither on a score nor on time"
                " before that.",
            )

    def observe(self, data: Any, weight: int) -> bool:
        """Prepare the merge that fits the next step of the preprocessing; False once all are fitted.

        Raises:
            ConfigError: this kind of model has no preprocessing that is fitted together.
        """
        if not isinstance(self._learner, Observing):
            raise ConfigError(
                f"{type(self._learner).__name__} has no preprocessing that could be fitted together.",
                safe="Nothing was sent.",
                do="Join with a scikit-learn Pipeline whose steps can: docs/data-scientist.md names them.",
            )
        return self._learner.observe(data, weight)

    def _read(self) -> dict[str, Array]:
        try:
            return self._learner.parameters()
        except KonsilError:
            raise
        except Exception as error:
            raise ConfigError(
                f"The model's parameters cannot be read: {type(error).__name__}: {error}",
                safe="Nothing was sent; the others go on.",
                do=f"See the error above this one; the learner is {type(self._learner).__qualname__}.",
            ) from error

    def _travels(self, name: str, array: Array) -> bool:
        floating = np.issubdtype(array.dtype, np.floating) or name in self._bf16
        return floating and not any(fnmatchcase(name, pattern) for pattern in self._local)

    @property
    def _bf16(self) -> Collection[str]:
        names: Collection[str] = getattr(self._learner, "bf16", ())
        return names


_adapters: dict[str, str | Callable[[Any], Learner]] = {
    "builtins.dict": "konsil.learners.arrays:ArraysLearner",
    "catboost.core.CatBoost": "konsil.learners.sklearn:learner_of",  # it says why trees cannot be merged
    "keras.src.models.model.Model": "konsil.learners.keras:KerasLearner",
    "lightgbm.basic.Booster": "konsil.learners.sklearn:learner_of",
    "sklearn.base.BaseEstimator": "konsil.learners.sklearn:learner_of",
    "torch.nn.modules.module.Module": "konsil.learners.torch:TorchLearner",
    "xgboost.core.Booster": "konsil.learners.sklearn:learner_of",
}


def register(base: str, adapter: str | Callable[[Any], Learner]) -> None:
    """Let ``learner_for`` know another kind of model.

    Args:
        base: the full name of a class, "module.Class": models of this class or derived from it. A name,
            so that nothing is imported for those who do not use that framework.
        adapter: makes a learner of a model; or "module:name" of what does, imported when first needed.
    """
    _adapters[base] = adapter


def learner_for(
    model: Any,
    local: Sequence[str] = (),
    training: LocalTraining = LocalTraining(),
) -> Shared:
    """The learner for a model: the model itself, if it is one, else the adapter for its class.

    Args:
        model: a dict of numpy arrays, a scikit-learn estimator, a PyTorch module, an object of a
            registered class, or a ``Learner``.
        local: patterns of names that stay here.
        training: what the study and the script ask of the training between merges.

    Raises:
        ConfigError: no adapter for this kind of model, or the adapter cannot use this one, or not so.
    """
    learner = adapted(model)
    if isinstance(learner, Steered):
        learner.train_with(replace(training, local=tuple(local)))
    elif training.asks:
        raise ConfigError(
            f"A model of type {type(model).__qualname__} cannot be trained with `optimizer`,"
            " `reset_optimizer`, or the study's `prox` or `scaffold`: Konsil does not reach into it.",
            safe="Nothing was sent; the model is untouched.",
            do="These need a torch.nn.Module; take another model, or propose a study without them.",
        )
    return Shared(learner, local)


def learner_in(settings: StudySettings, model: Any, training: LocalTraining) -> Shared:
    """The learner for a model in a study, whose settings say what stays local and how is trained.

    Args:
        settings: the study's.
        model: as for ``learner_for``.
        training: what the script asks; the study's part of it is filled in here.

    Raises:
        ConfigError: as ``learner_for``.
    """
    asked = replace(training, prox=settings.prox, scaffold=settings.scaffold)
    return learner_for(model, settings.local, asked)


def adapted(model: Any) -> Learner:
    """The adapter around a model, or the model itself if it is a ``Learner``.

    Raises:
        ConfigError: no adapter for this kind of model, or the adapter cannot use this one.
    """
    for kind in type(model).__mro__:
        adapter = _adapters.get(f"{kind.__module__}.{kind.__qualname__}")
        if isinstance(adapter, str):
            module, _, name = adapter.partition(":")
            adapter = getattr(import_module(module), name)
        if adapter is not None:
            return adapter(model)
    if isinstance(model, Learner):
        return model
    raise ConfigError(
        f"No learner for a model of type {type(model).__module__}.{type(model).__qualname__}.",
        safe="Nothing was sent; the model is untouched.",
        do="Pass a dict of numpy arrays, a scikit-learn estimator, a torch.nn.Module, or an object with"
        " `parameters()` and `load(arrays)` as konsil.learners.Learner has them.",
    )


def different(held: Mapping[str, Array], given: Mapping[str, Array], bf16: Collection[str] = ()) -> list[str]:
    """Why given arrays cannot take the place of those that are held, by name, in words.

    They have other names, shapes or dtypes, or a NaN or an infinity where there is another value now.

    Args:
        held: named arrays as they are.
        given: named arrays of a stranger.
        bf16: names of uint16 arrays that hold the bits of bfloat16 values.
    """
    found = [f"'{name}' is missing" for name in sorted(held.keys() - given.keys())]
    found += [f"'{name}' is not expected" for name in sorted(given.keys() - held.keys())]
    for name in sorted(held.keys() & given.keys()):
        mine, its = held[name], given[name]
        if (mine.shape, mine.dtype) != (its.shape, its.dtype):
            found.append(f"'{name}' is {its.dtype} {its.shape} instead of {mine.dtype} {mine.shape}")
        elif spoils(mine, its, bf16=name in bf16):
            found.append(f"'{name}' holds a NaN or an infinity")
    return found


def spoils(held: Array, given: Array, *, bf16: bool = False) -> bool:
    """Whether an array would bring a NaN or an infinity to where there is another value now.

    A mask of infinities that a model is built with is no such thing.

    Args:
        held: as it is, or one value.
        given: as it would be, any shape that broadcasts to the former.
        bf16: both hold the bits of bfloat16 values.
    """
    if bf16:
        strange = (given & _BF16_INFINITE) == _BF16_INFINITE
    elif given.dtype.kind == "f":
        strange = ~np.isfinite(given)
    else:
        return False
    same = (given == held) | ((given != given) & (held != held))  # noqa: PLR0124 - so a NaN is told
    return bool((strange & ~same).any())


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
