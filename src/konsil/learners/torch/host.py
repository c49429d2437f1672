"""Tensors as numpy arrays and back: views on the CPU, one copy a tensor from and to another device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from konsil.learners.protocols import Array

ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),
}
"""Dtypes that are merged -> how numpy sees them; bfloat16, which numpy does not have, as its bits."""


class Deferred:
    """An array that is made when numpy asks for its values, and not kept: at most one of a model at a time.

    ``shape`` and ``dtype`` are known before. ``numpy.asarray`` and all that calls it make the values.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], Array]) -> None:
        """``make``: gives a new array of this shape and dtype."""
        self.shape = shape
        self.dtype = dtype
        self._make = make

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        del copy  # what is made is new every time
        made = self._make()
        return made if dtype is None else made.astype(dtype, copy=False)


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor's values: on the CPU its own memory, from elsewhere an array that is copied when read."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return _memory(tensor)
    return deferred(tuple(tensor.shape), ARRAY_DTYPES[tensor.dtype], lambda: tensor)


def deferred(shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], torch.Tensor]) -> Array:
    """An array of what ``make`` gives, made when it is read."""
    return cast("Array", Deferred(shape, dtype, lambda: _memory(on_host(make()))))


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; contiguous if it came from another device, so that nobody has to copy it again."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor
    return tensor.to("cpu", memory_format=torch.contiguous_format)


def copy_in(values: Array, into: torch.Tensor) -> None:
    """Copy an array's values into a tensor, wherever it is, in place: one copy.

    Optimisers go on with the very tensors that they hold, and autograd sees that these have changed.
    """
    with warnings.catch_warnings():
        # PyTorch warns that writing to a read-only array is undefined; this tensor is only read.
        warnings.simplefilter("ignore", UserWarning)
        if into.dtype == torch.bfloat16:
            source = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            source = torch.from_numpy(values)
    with torch.no_grad():
        into.copy_(source)


def _memory(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: Array = tensor.numpy()
    return array
