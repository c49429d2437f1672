"""Keras 3 models, on any backend: what trains, and the statistics that go with it.

Keras numbers its automatic names through a whole process: the second model built from one code has a
``dense_2`` where the first has ``dense``. A name here is therefore the variable's place among the model's and
its path without such numbers: ``0003/sequential/batch_normalization/beta``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras  # type: ignore[import-untyped]
import numpy as np
from ml_dtypes import bfloat16

from konsil.errors import ConfigError
from konsil.learners.protocols import Array, LocalTraining

_NUMBERED = re.compile(r"_\d+(?=/|$)")
_COUNTERS = ("iteration", "learning_rate", "step_counter", "dynamic_scale")
"""Variables of optimisers that are no memory of past gradients."""


class KerasLearner:
    """A Keras 3 model. What travels is decided when it joins.

    Trainable variables travel, and the floating-point statistics (such as BatchNormalization's) of layers
    that train. What is frozen then, integers and the states of random generators stay.
    """

    def __init__(self, model: Any) -> None:
        """Use a model.

        Raises:
            ConfigError: it is not built, so its variables do not exist yet.
        """
        if not model.built:
            raise ConfigError(
                f"The Keras model {model.name!r} is not built: it has no variables yet.",
                safe="Nothing was sent; the model is untouched.",
                do="Give it an `Input`, call `model.build(input_shape)`, or call it once on a batch.",
            )
        self._model = model
        layers = model._flatten_layers()  # noqa: SLF001 - `layers` does not show nested ones
        travelling = {id(variable) for layer in layers for variable in _travelling(layer)}
        # A Normalization that was adapted computes with copies of its variables.
        self._derived = [layer for layer in layers if hasattr(layer, "finalize_state") and _travelling(layer)]
        self._variables = {
            f"{place:04d}/{_NUMBERED.sub('', variable.path)}": variable
            for place, variable in enumerate(model.weights)
            if id(variable) in travelling
        }
        self._forgotten: dict[int, tuple[Any, Array]] = {}
        self._training, self._optimizer = LocalTraining(), None

    @property
    def bf16(self) -> frozenset[str]:
        """The variables whose arrays are the bits of bfloat16 values."""
        return frozenset(name for name, variable in self._variables.items() if variable.dtype == "bfloat16")

    def parameters(self) -> dict[str, Array]:
        """The values that travel, copied from the backend."""
        self._bring_back()
        return {name: _array(variable) for name, variable in self._variables.items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Assign the values; moving averages that the optimiser keeps of them begin anew there."""
        self._bring_back()
        for name, values in arrays.items():
            variable = self._variables[name]
            # A copy, since JAX goes on using the very memory of an array, and this one's will be gone.
            own = np.array(values)
            variable.assign(own.view(bfloat16) if variable.dtype == "bfloat16" else own)
        for layer in self._derived:
            layer.finalize_state()
        self._restart_averages()

    def train_with(self, training: LocalTraining) -> None:
        """Prepare to forget the optimiser's state after each merge, if that is asked.

        Raises:
            ConfigError: FedProx or SCAFFOLD, or another optimiser than the model was compiled with.
        """
        optimizer = getattr(self._model, "optimizer", None)
        if training.prox > 0 or training.scaffold:
            raise ConfigError(
                "The study asks for `prox` (FedProx) or `scaffold`, which Konsil cannot do in a Keras model.",
                safe="Nothing was sent; the model is untouched.",
                do="Take a torch.nn.Module, or agree on a study without them.",
            )
        if training.optimizer is not None and training.optimizer is not optimizer:
            raise ConfigError(
                "`optimizer` is not the one that this Keras model was compiled with.",
                safe="Nothing was sent; the model is untouched.",
                do="Leave it out: Konsil finds it in `model.optimizer`.",
            )
        if training.reset_optimizer:
            self._forgotten = _memory(self._model, optimizer)
        self._training, self._optimizer = training, optimizer

    def go_on_with(self, optimizer: Any) -> None:
        """See whether the model was compiled anew: what was asked goes on with the optimiser it has now.

        Raises:
            ConfigError: another optimiser than the model's own.
        """
        now = getattr(self._model, "optimizer", None)
        if now is not self._optimizer or (optimizer is not None and optimizer is not now):
            self.train_with(replace(self._training, optimizer=optimizer))

    def begin_round(self) -> None:
        """The model was just loaded: forget the optimiser's state, if that is asked."""
        if not self._forgotten:
            return
        self._bring_back()
        for variable, values in self._forgotten.values():
            variable.assign(np.array(values))
        self._restart_averages()

    def _bring_back(self) -> None:
        """On JAX, `fit` keeps the values elsewhere during an epoch: have them in the variables.

        `fit` itself takes them from there for the next batch, merged or not. Other backends need nothing.
        """
        if hasattr(self._model, "jax_state_sync"):
            self._model.jax_state_sync()

    def _restart_averages(self) -> None:
        """An optimiser with ``use_ema`` writes its averages over the variables, at the latest after `fit`.

        From a merge on they are averages of what comes after it; else `fit` would undo the merge.
        """
        optimizer: Any = getattr(self._model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if getattr(optimizer, "use_ema", False) and optimizer.built:
            averages = optimizer._model_variables_moving_average  # noqa: SLF001 - there is no other way to them
            for variable, average in zip(optimizer._trainable_variables, averages, strict=True):  # noqa: SLF001 - as above
                if average is not None:
                    # Another copy: JAX may not have one piece of memory behind two variables.
                    average.assign(np.array(keras.ops.convert_to_numpy(variable.value)))


def _travelling(layer: Any) -> list[Any]:
    """Those of a layer's own variables that travel.

    Keras does not say publicly whether a variable is a statistic or a frozen kernel: a layer keeps those that
    never train apart from those that would.
    """
    variables = [variable for variable in layer._trainable_variables if variable.trainable]  # noqa: SLF001 - see above
    if layer.trainable:
        variables += layer._non_trainable_variables  # noqa: SLF001 - see above
    return [variable for variable in variables if _is_floating(variable)]


def _is_floating(variable: Any) -> bool:
    return variable.dtype in {"float64", "float32", "float16", "bfloat16"}


def _array(variable: Any) -> Array:
    array: Array = keras.ops.convert_to_numpy(variable.value)
    return array.view(np.uint16) if variable.dtype == "bfloat16" else array


def _memory(model: Any, optimizer: Any) -> dict[int, tuple[Any, Array]]:
    """An optimiser's variables that remember gradients, with their values now.

    The count of steps belongs to them (Adam corrects its bias by it), unless a schedule of the learning rate
    counts on it.
    """
    if optimizer is None:
        raise ConfigError(
            "`reset_optimizer` is asked, but the Keras model is not compiled.",
            safe="Nothing was sent; the model is untouched.",
            do="Call `model.compile(optimizer, loss)` first.",
        )
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    scheduled = isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule)  # noqa: SLF001 - the public property gives a number
    kept = _COUNTERS if scheduled else _COUNTERS[1:]
    return {
        id(variable): (variable, np.array(keras.ops.convert_to_numpy(variable.value)))
        for variable in optimizer.variables
        if variable.name not in kept
    }
