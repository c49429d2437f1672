"""Which tensors of a module travel, and what of it must be the same at all members because it does not.

Parameters that require a gradient travel, and floating-point buffers (such as BatchNorm's statistics) unless
all parameters of their own module are frozen. What is frozen stays: a merge of adapters makes sense only on
one and the same base. So the digest of all that is frozen goes into the schema, as a tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from konsil.core.digest import bytes_digest
from konsil.errors import ConfigError
from konsil.learners.torch.host import ARRAY_DTYPES, on_host

_WRAPPERS = ("DataParallel", "DistributedDataParallel")  # they hold the model as `module`
_COMPILED = "_orig_mod"  # and a compiled module holds it under this name


@dataclass(frozen=True)
class Choice:
    """What of a module travels, by name. ``trained``: those that an optimiser changes; the rest are buffers.

    A tensor with several names (tied) has the first of them in the order of the alphabet; where they are
    parameters of their own on one memory, the first that requires a gradient.
    ``frozen``: what must be the same at all members.
    """

    travelling: tuple[str, ...]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside of compiled and data-parallel ones, however they are nested."""
    while True:
        if isinstance(inner := getattr(module, _COMPILED, None), torch.nn.Module):
            module = inner
        elif type(module).__name__ in _WRAPPERS:
            module = module.module
        else:
            return module


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their names in the state dict, compiled or not."""
    state: dict[str, Any] = module.state_dict(keep_vars=True)
    return {
        name.replace(f"{_COMPILED}.", ""): value
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def choose(module: torch.nn.Module, local: Sequence[str]) -> Choice:
    """Choose what travels.

    Args:
        module: not wrapped.
        local: patterns of names that stay. A tied tensor stays if one of its names matches.

    Raises:
        ConfigError: a tensor that has no values yet or none that can be merged, by name; or all is frozen.
    """
    tensors = tensors_of(module)
    parameters = {id(each) for each in module.parameters()}
    sleeping = _buffers_of_frozen_modules(module)
    travelling, trained, frozen = [], [], []
    for names in _tied(tensors):
        name = next((each for each in names if tensors[each].requires_grad), names[0])
        tensor = tensors[name]
        _require_values(name, tensor)
        if any(fnmatchcase(each, pattern) for each in names for pattern in local):
            continue
        is_parameter = id(tensor) in parameters
        if is_parameter and tensor.requires_grad:
            _require_mergeable(name, tensor)
            trained.append(name)
        elif is_parameter or (tensor.is_floating_point() and id(tensor) in sleeping):
            frozen.append(name)
            continue
        elif not (tensor.is_floating_point() and tensor.dtype in ARRAY_DTYPES):
            continue
        travelling.append(name)
    if frozen and not travelling:
        raise ConfigError(
            "All of the model's parameters are frozen (`requires_grad` is False): nothing would travel.",
            safe="Nothing was sent; the model is untouched.",
            do="Unfreeze what shall be trained together before `konsil.join`.",
        )
    return Choice(tuple(sorted(travelling)), tuple(sorted(trained)), tuple(sorted(frozen)))


def frozen_digest(tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> str:
    """The digest of these tensors' names, dtypes, shapes and bits; one of them is on the host at a time."""
    lines = []
    for name in names:
        tensor = tensors[name]
        plain = tensor if tensor.layout == torch.strided else tensor.to_dense()
        host = on_host(plain).contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = bytes_digest(host.data, "frozen")
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}")
        del plain, host
    return bytes_digest("\n".join(lines).encode(), "frozen")


def _buffers_of_frozen_modules(module: torch.nn.Module) -> set[int]:
    found = set()
    for each in module.modules():
        own = list(each.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            found |= {id(buffer) for buffer in each.buffers(recurse=False)}
    return found


def _tied(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The names, those of one and the same tensor together, each group in the order of the alphabet."""
    groups: dict[object, list[str]] = {}
    for name in sorted(tensors):
        groups.setdefault(place(tensors[name]), []).append(name)
    return list(groups.values())


def place(tensor: torch.Tensor) -> object:
    """What two names of one tensor have in common: where its values lie, else the object itself."""
    if _is_uninitialised(tensor) or tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    try:
        start = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    except RuntimeError:  # a kind of tensor that has no memory of its own
        return id(tensor)
    return (*start, tensor.dtype, tuple(tensor.shape), tensor.stride())


def _is_uninitialised(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)


def _require_values(name: str, tensor: torch.Tensor) -> None:
    if _is_uninitialised(tensor):
        problem = "has no shape yet: its module is lazy"
        do = "Pass one batch through the model before `konsil.join`."
    elif type(tensor).__name__ == "DTensor":
        problem = "is spread over several processes"
        do = "Train with DistributedDataParallel, where every process has the whole model."
    elif tensor.is_meta:
        problem = "is on the meta device, which has no values"
        do = "Load the model's values first: `model.to_empty(device=...)` and `model.load_state_dict(...)`."
    elif tensor.is_inference():
        problem = "was made under `torch.inference_mode()`, so no merge can be loaded into it for training"
        do = "Build the model outside of `torch.inference_mode()`; `torch.no_grad()` is fine."
    else:
        return
    raise ConfigError(
        f"The tensor {name!r} {problem}.", safe="Nothing was sent; the model is untouched.", do=do
    )


def _require_mergeable(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype in ARRAY_DTYPES and tensor.layout == torch.strided:
        return
    kind = str(tensor.dtype).removeprefix("torch.")
    kind = kind if tensor.layout == torch.strided else f"a tensor of layout {tensor.layout}"
    raise ConfigError(
        f"The parameter {name!r} is trained, but it is {kind}, which cannot be merged.",
        safe="Nothing was sent; the model is untouched.",
        do="Train it as float64, float32, float16 or bfloat16, freeze it, or name it in the study's `local`.",
    )
