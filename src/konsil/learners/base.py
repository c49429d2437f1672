"""What a learner is, which of its parameters travel, and which adapter fits a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from konsil.core.parameters import Schema
from konsil.errors import ConfigError

Array = NDArray[Any]


@runtime_checkable
class Learner(Protocol):
    """The adapter around a model. To support another framework, write these two methods.

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


class Shared:
    """The part of a learner's parameters that travels.

    Floating-point arrays travel. Integer and boolean ones (such as BatchNorm's counter) stay, since their
    mean means nothing, and so does every name that matches a pattern of ``local``.
    """

    def __init__(self, learner: Learner, local: Sequence[str] = ()) -> None:
        """Wrap a learner; ``local`` are patterns as in ``fnmatch``, with case."""
        self._learner = learner
        self._local = tuple(local)

    def parameters(self) -> dict[str, Array]:
        """The arrays that travel, sorted by name.

        Raises:
            ConfigError: none is left to travel.
        """
        arrays = self._learner.parameters()
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

    def _travels(self, name: str, array: Array) -> bool:
        floating = np.issubdtype(array.dtype, np.floating) or name in self._bf16
        return floating and not any(fnmatchcase(name, pattern) for pattern in self._local)

    @property
    def _bf16(self) -> Collection[str]:
        names: Collection[str] = getattr(self._learner, "bf16", ())
        return names


_adapters: dict[str, str | Callable[[Any], Learner]] = {
    "builtins.dict": "konsil.learners.arrays:ArraysLearner",
    "sklearn.base.BaseEstimator": "konsil.learners.sklearn:learner_of",
    "torch.nn.modules.module.Module": "konsil.learners.torch:TorchLearner",
}


def register(base: str, adapter: str | Callable[[Any], Learner]) -> None:
    """Let ``learner_for`` know another kind of model.

    Args:
        base: the full name of a class, "module.Class": models of this class or derived from it. A name,
            so that nothing is imported for those who do not use that framework.
        adapter: makes a learner of a model; or "module:name" of what does, imported when first needed.
    """
    _adapters[base] = adapter


def learner_for(model: Any, local: Sequence[str] = ()) -> Shared:
    """The learner for a model: the model itself, if it is one, else the adapter for its class.

    Args:
        model: a dict of numpy arrays, a scikit-learn estimator, a PyTorch module, an object of a
            registered class, or a ``Learner``.
        local: patterns of names that stay here.

    Raises:
        ConfigError: no adapter for this kind of model, or the adapter cannot use this one.
    """
    for kind in type(model).__mro__:
        adapter = _adapters.get(f"{kind.__module__}.{kind.__qualname__}")
        if isinstance(adapter, str):
            module, _, name = adapter.partition(":")
            adapter = getattr(import_module(module), name)
        if adapter is not None:
            return Shared(adapter(model), local)
    if isinstance(model, Learner):
        return Shared(model, local)
    raise ConfigError(
        f"No learner for a model of type {type(model).__module__}.{type(model).__qualname__}.",
        safe="Nothing was sent; the model is untouched.",
        do="Pass a dict of numpy arrays, a scikit-learn estimator, a torch.nn.Module, or an object with"
        " `parameters()` and `load(arrays)` as konsil.learners.Learner has them.",
    )
