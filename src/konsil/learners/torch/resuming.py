"""What a PyTorch training needs besides its parameters when it is started again, as named arrays.

Tensors that stay at the member (local ones, integer buffers, SCAFFOLD's own control) and the optimiser's
state: its moments and step counters by the number of their parameter, and its numbers, such as the learning
rate, by the number of their group. Nothing is pickled: what is no tensor and no number is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from konsil.errors import ConfigError
from konsil.learners.protocols import Array
from konsil.learners.strangers import different, spoils
from konsil.learners.torch.host import on_host

_STAYS, _TENSOR, _BF16, _NUMBER, _GROUP = "stays/", "tensor/", "bf16/", "number/", "group/"
_OPTIMIZER = (_TENSOR, _BF16, _NUMBER, _GROUP)

_PARTS = 3
"""Of the name of an entry: its kind, the number of its parameter or group, and what it is."""

_ONE_VALUE = frozenset({"step", "mu_product"})
_AS_PARAMETER = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "sum", "prev", "step_size", "ax",
})  # fmt: skip
"""What the optimisers in ``torch.optim`` keep of each parameter; of others' entries the shape is theirs."""


def local_state(
    staying: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None
) -> dict[str, Array]:
    """Named arrays of what stays here and of the optimiser's state.

    Args:
        staying: tensors by name.
        optimizer: what trains the model; None if the script did not name it.

    Raises:
        ConfigError: the optimiser keeps something that is no tensor and no number.
    """
    found = {_STAYS + name: _copied(tensor) for name, tensor in staying.items()}
    return found if optimizer is None else found | _state_of(optimizer)


def load_local_state(
    staying: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer | None, arrays: Mapping[str, Array]
) -> None:
    """Give back what ``local_state`` gave.

    Raises:
        ConfigError: it is another model's or another optimiser's; nothing was changed.
    """
    given = {name.removeprefix(_STAYS): array for name, array in arrays.items() if name.startswith(_STAYS)}
    bf16 = {name for name, tensor in staying.items() if tensor.dtype == torch.bfloat16}
    wrong = different({name: _copied(tensor) for name, tensor in staying.items()}, given, bf16)
    wrong += [f"'{name}' is not expected" for name in arrays if not name.startswith((_STAYS, *_OPTIMIZER))]
    state = {name: array for name, array in arrays.items() if name.startswith(_OPTIMIZER)}
    if optimizer is None and state:
        wrong.append("it has an optimiser's state, and `optimizer=` names none")
    if optimizer is not None and not state:
        wrong.append("it has no optimiser's state, and `optimizer=` names one")
    if wrong:
        raise _another(wrong)
    if optimizer is not None:
        _load_state(optimizer, state)
    with torch.no_grad():
        for name, array in given.items():
            staying[name].copy_(_tensor(array, bf16=staying[name].dtype == torch.bfloat16))


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a module: parameters and buffers, frozen or not, of any kind."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


def restore(module: torch.nn.Module, kept: Mapping[str, torch.Tensor]) -> None:
    """Put every tensor back, in place, bit for bit."""
    with torch.no_grad():
        for name, tensor in _tensors(module).items():
            tensor.copy_(kept[name])


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and all buffers, those too that a state dict leaves out."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(
        module.named_buffers(remove_duplicate=False)
    )


# --- the optimiser -------------------------------------------------------------------------------


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    known = optimizer.state_dict()
    found: dict[str, Array] = {}
    for index, entries in known["state"].items():
        for key, value in entries.items():
            if value is not None:
                found |= _entry(f"{index}/{key}", value, optimizer)
    for number, group in enumerate(known["param_groups"]):
        for key, value in _numbers(group).items():
            found[f"{_GROUP}{number}/{key}"] = np.asarray(value)
    return found


def _entry(name: str, value: Any, optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    if isinstance(value, torch.Tensor):
        prefix = _BF16 if value.dtype == torch.bfloat16 else _TENSOR
        return {prefix + name: _copied(value)}
    if isinstance(value, bool | int | float):
        return {_NUMBER + name: np.asarray(value)}
    kind = type(optimizer).__name__
    raise ConfigError(
        f"{kind} keeps under {name!r} a {type(value).__name__}, which `resume` cannot write.",
        safe="The model and the study go on; the last file is as it was.",
        do="Join without `resume`, or without `optimizer`, or take another optimiser.",
    )


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings that are numbers: learning rate, momentum, betas and so on."""
    found: dict[str, Any] = {}
    for key, value in group.items():
        if key == "params":
            continue
        plain = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        whole = plain if isinstance(plain, tuple | list) else (plain,)
        if whole and all(isinstance(each, bool | int | float) for each in whole):
            found[key] = plain
    return found


def _load_state(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Array]) -> None:
    groups = [dict(group) for group in optimizer.state_dict()["param_groups"]]
    settings = {
        f"{_GROUP}{number}/{key}": (number, key, np.asarray(value))
        for number, group in enumerate(groups)
        for key, value in _numbers(group).items()
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {str(index): parameters[index] for group in groups for index in group["params"]}
    state: dict[int, dict[str, Any]] = {}
    wrong = [f"'{name}' is missing" for name in sorted(settings.keys() - arrays.keys())]
    for name, array in arrays.items():
        if name in settings:
            number, key, value = settings[name]
            wrong += _unlike(name, value, array)
            if not wrong:
                groups[number][key] = _like(groups[number][key], array)
            continue
        parts = name.split("/", _PARTS - 1)
        if len(parts) != _PARTS or parts[0] + "/" == _GROUP:
            wrong.append(f"'{name}' is no setting of this {type(optimizer).__name__}")
        elif parts[1] not in held:
            wrong.append(f"the optimiser holds no parameter {parts[1]}")
        else:
            wrong += _unfit(name, tuple(held[parts[1]].shape), array)
            if not wrong:
                state.setdefault(int(parts[1]), {})[parts[2]] = _value(parts[0] + "/", array)
    if wrong:
        raise _another(wrong)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _unlike(name: str, held: Array, array: Array) -> list[str]:
    """Why an array cannot be a group's setting, in words."""
    if array.shape != held.shape or (array.dtype.kind == "b") != (held.dtype.kind == "b"):
        return [f"'{name}' is {array.dtype} {array.shape} instead of {held.dtype} {held.shape}"]
    return [f"'{name}' holds a NaN or an infinity"] if spoils(held, array) else []


def _unfit(name: str, shape: tuple[int, ...], array: Array) -> list[str]:
    """Why an array cannot be what the optimiser keeps of a parameter of this shape, in words."""
    kind, _, key = name.split("/", _PARTS - 1)
    is_bf16 = kind + "/" == _BF16
    if is_bf16 and array.dtype != np.uint16:
        return [f"'{name}' is {array.dtype} instead of the bits of bfloat16 values"]
    one = kind + "/" == _NUMBER or key in _ONE_VALUE
    # A moment with as many dimensions as its parameter is factored (Adafactor's), or has its shape.
    factored = array.ndim == len(shape) and all(
        mine in {1, its} for mine, its in zip(array.shape, shape, strict=True)
    )
    if (one and array.size != 1) or (key in _AS_PARAMETER and array.shape != shape and not one):
        return [f"'{name}' has shape {array.shape}, not {() if one else shape}"]
    if array.ndim == len(shape) and not factored:
        return [f"'{name}' has shape {array.shape}, not {shape}"]
    return (
        [f"'{name}' holds a NaN or an infinity"]
        if spoils(np.zeros((), array.dtype), array, bf16=is_bf16)
        else []
    )


def _value(kind: str, array: Array) -> Any:
    """An entry as the optimiser keeps it."""
    return array.item() if kind == _NUMBER else _tensor(array, bf16=kind == _BF16)


def _like(held: Any, array: Array) -> Any:
    """A group's setting as it was held: a number, several, or a tensor."""
    if isinstance(held, torch.Tensor):
        return torch.as_tensor(array.copy(), dtype=held.dtype, device=held.device).reshape(held.shape)
    return type(held)(array.tolist()) if isinstance(held, tuple | list) else array.item()


# --- arrays --------------------------------------------------------------------------------------


def _copied(tensor: torch.Tensor) -> Array:
    host = on_host(tensor)
    if host.dtype == torch.bfloat16:
        bits: Array = host.view(torch.int16).numpy().view(np.uint16).copy()
        return bits
    values: Array = host.numpy().copy()
    return values


def _tensor(array: Array, *, bf16: bool) -> torch.Tensor:
    if bf16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _another(wrong: list[str]) -> ConfigError:
    return ConfigError(
        f"It is another model's or optimiser's: {'; '.join(wrong[:5])}.",
        safe="Nothing was changed.",
        do="Build the model and its optimiser as before, and pass `optimizer=` as before.",
    )
