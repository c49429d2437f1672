"""PyTorch modules: every floating-point tensor of the state dict.

A module on the CPU is read and loaded in place; from and to another device there is one copy each way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from konsil.learners.base import Array

_WRAPPERS = ("DataParallel", "DistributedDataParallel")  # they hold the model as `module`


class TorchLearner:
    """A ``torch.nn.Module``."""

    def __init__(self, module: torch.nn.Module) -> None:
        """Use a module; of a compiled or data-parallel one, the module inside, whose names are the same
        at members that do not use these.
        """
        inner = getattr(module, "_orig_mod", module)
        self._module = inner.module if type(inner).__name__ in _WRAPPERS else inner

    @property
    def bf16(self) -> frozenset[str]:
        """The tensors whose arrays are the bits of bfloat16 values, which numpy does not have."""
        return frozenset(name for name, tensor in self._floating().items() if tensor.dtype == torch.bfloat16)

    def parameters(self) -> dict[str, Array]:
        """Parameters and floating-point buffers by their names in the state dict."""
        return {name: _array(tensor.cpu()) for name, tensor in self._floating().items()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in, in place: optimisers go on with the very tensors that they hold."""
        tensors = self._floating()
        for name, values in arrays.items():
            tensor = tensors[name]
            if tensor.device.type == "cpu":
                np.copyto(_array(tensor), values)
            else:
                tensor.copy_(_as_tensor(values, tensor.dtype))

    def _floating(self) -> dict[str, torch.Tensor]:
        state: dict[str, Any] = self._module.state_dict()
        return {
            name: value.detach()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }


def _array(tensor: torch.Tensor) -> Array:
    """The memory of a tensor on the CPU as an array."""
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: Array = tensor.numpy()
    return array


def _as_tensor(values: Array, dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings():
        # PyTorch warns that writing to a read-only array is undefined; this tensor is only read.
        warnings.simplefilter("ignore", UserWarning)
        if dtype == torch.bfloat16:
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)
