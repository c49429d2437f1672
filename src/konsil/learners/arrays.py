"""Plain named numpy arrays as a model: for one's own training loop, and for frameworks without an adapter."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from konsil.errors import ConfigError
from konsil.learners.protocols import Array


class ArraysLearner:
    """A dict of arrays, loaded in place: whoever holds one of the arrays sees the merge."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        """Use these arrays.

        Args:
            arrays: name to array of any shape. Replacing an entry by another array later is fine, as long
                as its dtype and shape stay.

        Raises:
            ConfigError: a key is no string, or a value is no writable array.
        """
        for name, array in arrays.items():
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise ConfigError(
                    f"{name!r} is of type {type(array).__name__}; a model as a dict has names and arrays.",
                    safe="Nothing was sent.",
                    do="Use numpy arrays: `numpy.asarray(value)`; of a PyTorch module pass the module, not"
                    " its `state_dict()`.",
                )
            if not array.flags.writeable:
                raise ConfigError(
                    f"The array {name!r} is read-only, so a merge cannot be loaded into it.",
                    safe="Nothing was sent.",
                    do="Use a copy: `array.copy()`.",
                )
        self._arrays = arrays

    def parameters(self) -> dict[str, Array]:
        """The arrays themselves."""
        return dict(self._arrays)

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in."""
        for name, values in arrays.items():
            np.copyto(self._arrays[name], values)
