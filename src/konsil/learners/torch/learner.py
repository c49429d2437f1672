"""The adapter: a ``torch.nn.Module`` gives and takes what of it travels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from konsil.core.parameters import FROZEN, mark
from konsil.learners.protocols import Array, LocalTraining
from konsil.learners.torch import resuming
from konsil.learners.torch.host import as_array, copy_in
from konsil.learners.torch.steering import CONTROL, Steering, plain, steering_for
from konsil.learners.torch.travelling import Choice, choose, frozen_digest, place, tensors_of, unwrapped


class TorchLearner:
    """A ``torch.nn.Module``.

    On the CPU its arrays are views of its memory. On another device each is copied to the host when it is
    read, and not kept; a merge is copied in tensor by tensor.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Use a module; of a compiled or data-parallel one, the module inside, whose names are the same
        at members that do not use these. What is frozen later, or unfrozen, changes nothing any more.
        """
        self._module = unwrapped(module)
        self._training = LocalTraining()
        self._steering: Steering | None = None

    def train_with(self, training: LocalTraining) -> None:
        """Take what the study and the script ask.

        Raises:
            ConfigError: a tensor that cannot travel, by name; no optimiser where one is needed, or one that
                does not train this model.
        """
        self._training = training
        self._steering = steering_for(training, self._trained())
        _ = self._marker  # what is frozen is looked at now, not when the first update is due

    def go_on_with(self, optimizer: Any) -> None:
        """From here on this optimiser trains the model, with what was asked of the one before.

        Raises:
            ConfigError: no optimiser where one is needed, or one that does not train this model.
        """
        if plain(optimizer) is plain(self._training.optimizer):
            return
        training = replace(self._training, optimizer=optimizer)
        steering = steering_for(training, self._trained())
        if steering is not None and self._steering is not None:
            steering.follow(self._steering)
        self._training, self._steering = training, steering

    def begin_round(self) -> None:
        """The model was just loaded: training starts from what it holds now."""
        if self._steering is not None:
            self._steering.begin_round()

    def end(self) -> None:
        """The study is over: leave the optimiser alone from now on."""
        if self._steering is not None:
            self._steering.end()

    @property
    def bf16(self) -> frozenset[str]:
        """The tensors whose arrays are the bits of bfloat16 values, which numpy does not have."""
        return frozenset(name for name, tensor in self._tensors().items() if tensor.dtype == torch.bfloat16)

    def parameters(self) -> dict[str, Array]:
        """What travels, by its names in the state dict; and a name that stands for what is frozen."""
        arrays = {name: as_array(tensor) for name, tensor in self._tensors().items()}
        if self._marker:
            arrays[self._marker] = np.zeros(0, np.float32)
        if self._steering is not None:
            arrays |= self._steering.controls()
        return arrays

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values in, in place: optimisers go on with the very tensors that they hold."""
        tensors = self._tensors() | self.control_tensors()
        for name, values in arrays.items():
            if name != self._marker:
                copy_in(values, tensors[name])

    def tensors(self) -> list[torch.Tensor]:
        """All tensors that ``load`` writes, where they are, in an order that is the same in every process."""
        return [*self._tensors().values(), *self.control_tensors().values()]

    def control_tensors(self) -> dict[str, torch.Tensor]:
        """SCAFFOLD's global control variates, by the names under which they travel; else none."""
        if self._steering is None:
            return {}
        return {CONTROL + name: tensor for name, tensor in self._steering.control.items()}

    def local_state(self) -> dict[str, Array]:
        """What stays here and a script needs that is started again; the optimiser's state, if it is known."""
        return resuming.local_state(self._staying(), plain(self._training.optimizer))

    def load_local_state(self, arrays: Mapping[str, Array]) -> None:
        """Take it back.

        Raises:
            ConfigError: it is another model's or another optimiser's; nothing was changed.
        """
        resuming.load_local_state(self._staying(), plain(self._training.optimizer), arrays)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of every tensor of the module, of any kind."""
        return resuming.snapshot(self._module)

    def restore(self, kept: Mapping[str, torch.Tensor]) -> None:
        """Put every tensor back, bit for bit."""
        resuming.restore(self._module, kept)

    def _trained(self) -> dict[str, torch.Tensor]:
        tensors = tensors_of(self._module)
        return {name: tensors[name] for name in self._choice.trained}

    def _staying(self) -> dict[str, torch.Tensor]:
        """What neither travels nor is frozen, and SCAFFOLD's own control."""
        tensors = tensors_of(self._module)
        elsewhere = {place(tensors[name]) for name in (*self._choice.travelling, *self._choice.frozen)}
        staying = {name: tensor for name, tensor in tensors.items() if place(tensor) not in elsewhere}
        return staying | (self._steering.own_controls() if self._steering is not None else {})

    @cached_property
    def _choice(self) -> Choice:
        return choose(self._module, self._training.local)

    @cached_property
    def _marker(self) -> str:
        if not self._choice.frozen:
            return ""
        return mark(FROZEN, frozen_digest(tensors_of(self._module), self._choice.frozen))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Looked up anew each time: a module that moves to another device replaces its buffers."""
        tensors = tensors_of(self._module)
        return {name: tensors[name] for name in self._choice.travelling}
