"""What an estimator needs besides its parameters when its script is started again, as named arrays.

The counters that learning-rate schedules follow and, of a perceptron, its optimiser's moments: what
scikit-learn keeps on the estimator between two calls of `partial_fit`. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.protocols import Array
from konsil.learners.strangers import different

_BEST = "best_loss_"
_COUNTERS = ("t_", "n_iter_", _BEST, "_no_improvement_count")
"""Of an estimator, where it has them: samples seen, epochs, and what an adaptive learning rate looks at."""

_NUMBERS = ("t", "learning_rate")
_MOMENTS = ("ms", "vs", "velocities")
_OPTIMIZER = "optimizer/"


def linear_state(model: Any) -> dict[str, Array]:
    """The step counter of a model that is trained by `partial_fit`, float64 []; nothing of others."""
    return {"t_": np.array(float(model.t_))} if hasattr(model, "t_") else {}


def load_linear_state(model: Any, arrays: Mapping[str, Array]) -> None:
    """Give it back.

    Raises:
        ConfigError: it is another model's; nothing was changed.
    """
    _require_same(linear_state(model), arrays)
    if arrays:
        model.t_ = float(arrays["t_"])


def perceptron_state(model: Any) -> dict[str, Array]:
    """Counters []; and of the optimiser, once there was a step, numbers [] and moments like the layers'."""
    found = _numbers(model, _COUNTERS)
    optimizer = getattr(model, "_optimizer", None)
    if optimizer is not None:
        state = _numbers(optimizer, _NUMBERS) | _moments(optimizer)
        found |= {_OPTIMIZER + name: array for name, array in state.items()}
    return found


def load_perceptron_state(model: Any, arrays: Mapping[str, Array]) -> None:
    """Give it back; the optimiser is made as the estimator's settings say, and then gets its state.

    Raises:
        ConfigError: it is another model's or another optimiser's; nothing was changed.
    """
    steps = any(name.startswith(_OPTIMIZER) for name in arrays)
    optimizer = _new_optimizer(model) if steps else None
    expected = _numbers(model, _COUNTERS)
    if optimizer is not None:
        state = _numbers(optimizer, _NUMBERS) | _moments(optimizer)
        expected |= {_OPTIMIZER + name: array for name, array in state.items()}
    _require_same(expected, arrays)
    _set_numbers(model, "", _COUNTERS, arrays)
    vars(model).pop("_optimizer", None)
    if optimizer is not None:
        _set_numbers(optimizer, _OPTIMIZER, _NUMBERS, arrays)
        for name in _moments(optimizer):
            kind, _, number = name.partition(".")
            np.copyto(getattr(optimizer, kind)[int(number)], arrays[_OPTIMIZER + name])
        model._optimizer = optimizer  # noqa: SLF001 - where scikit-learn keeps it, and there is no other way


def _numbers(holder: Any, names: tuple[str, ...]) -> dict[str, Array]:
    """Those numbers that an object has, float64 []: counters fit in exactly below 2^53."""
    found = {name: getattr(holder, name, None) for name in names}
    return {name: np.array(float(value)) for name, value in found.items() if value is not None}


def _set_numbers(holder: Any, prefix: str, names: tuple[str, ...], arrays: Mapping[str, Array]) -> None:
    for name in _numbers(holder, names):
        value = float(arrays[prefix + name])
        setattr(holder, name, int(value) if isinstance(getattr(holder, name), int) else value)


def _moments(optimizer: Any) -> dict[str, Array]:
    """Arrays like the layers' coefficients and then intercepts, copied."""
    return {
        f"{kind}.{number}": np.array(array)
        for kind in _MOMENTS
        for number, array in enumerate(getattr(optimizer, kind, ()))
    }


def _new_optimizer(model: Any) -> Any:
    """The optimiser that scikit-learn makes before a perceptron's first step."""
    from sklearn.neural_network import _stochastic_optimizers as optimizers  # noqa: PLC0415 - scikit-learn is there, if this is reached

    parameters = [*model.coefs_, *model.intercepts_]
    if model.solver == "sgd":
        return optimizers.SGDOptimizer(
            parameters,
            model.learning_rate_init,
            model.learning_rate,
            model.momentum,
            model.nesterovs_momentum,
            model.power_t,
        )
    return optimizers.AdamOptimizer(
        parameters, model.learning_rate_init, model.beta_1, model.beta_2, model.epsilon
    )


def _require_same(held: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    # Before its first epoch a perceptron's best loss is an infinity.
    none_yet = given.get(_BEST)
    if _BEST in held and none_yet is not None and none_yet.shape == () and np.isposinf(none_yet):
        held = dict(held) | {_BEST: none_yet}
    wrong = different(held, given)
    if wrong:
        raise ConfigError(
            f"The optimiser's state is another model's: {'; '.join(wrong[:5])}.",
            safe="Nothing was loaded.",
            do="Build the model with the same settings as before.",
        )
