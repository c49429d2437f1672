"""Training between merges: FedProx and SCAFFOLD in the optimiser's gradients, and its state after a merge.

A hook runs before each step of the optimiser, after gradients were accumulated, averaged over processes,
unscaled and clipped: so it acts once a step, on the gradient that the step would use.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from konsil.errors import ConfigError
from konsil.learners.protocols import Array, LocalTraining
from konsil.learners.torch.host import deferred

CONTROL = "konsil.control/"
"""Begins the name under which a parameter's control variate travels."""

OWN = "konsil.own/"
"""Begins the name under which a member's own control variate is kept; it never travels under it."""

_SHOWN = 5

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_hooks: weakref.WeakKeyDictionary[torch.optim.Optimizer, Any] = weakref.WeakKeyDictionary()
"""The one hook that steers an optimiser: a session that begins takes the place of one that never ended."""


class Steering:
    """One optimiser's training of what travels.

    **FedProx** (Li et al., *Federated optimization in heterogeneous networks*, MLSys 2020): the local loss
    gets the term prox/2 * ||w - w0||^2, with w0 the model at the round's beginning. Its gradient
    prox * (w - w0) is added to the loss's.

    **SCAFFOLD** (Karimireddy et al., *SCAFFOLD: stochastic controlled averaging for federated learning*, ICML
    2020): a member steps along g + c - c_i, where its own control c_i estimates its gradient and c the mean
    of all. The source's option II sets after K steps of size h, from x to y_i:

        c_i+ = c_i - c + (x - y_i) / (K h),   and for plain SGD   x - y_i = h * sum_k (g_k + c - c_i),

    so c_i+ = c_i - c + mean(g) + c - c_i = mean(g): the mean of the round's raw gradients. That is what is
    computed here, so it is defined for any optimiser. It travels as ``konsil.control/NAME``; with equal
    weights the merge's mean over the roster is the new c.

    c is the mean over this round's roster, where the source keeps the last c_i of everyone: with all members
    in each round that is the same. A member that handed nothing over keeps its c_i. One that starts, or
    starts again, takes c_i = c: it has no estimate of its own, and its first round is not corrected.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, training: LocalTraining, trained: Mapping[str, torch.Tensor]
    ) -> None:
        """Use ``steering_for``."""
        self._optimizer = optimizer
        self._prox = training.prox
        self._reset = training.reset_optimizer
        self._trained = dict(trained)
        self._start: dict[str, torch.Tensor] = {}
        self.control = _zeros(trained) if training.scaffold else {}
        self._own = _zeros(trained) if training.scaffold else {}
        self._sums = _zeros(trained) if training.scaffold else {}
        self._steps = 0
        self._begun = False
        self._given = False
        self._hook: Any = None

    def follow(self, former: Steering) -> None:
        """Go on where another optimiser's steering stands, on the device where the parameters are now."""
        former.end()
        self._start = self._here(former._start)
        self.control = self._here(former.control)
        self._own = self._here(former._own)
        self._sums = self._here(former._sums)
        self._steps, self._begun, self._given = former._steps, former._begun, former._given
        if self._begun:
            self._take_over()

    def begin_round(self) -> None:
        """Training starts from what the parameters hold now, and from the control that was loaded.

        The first one takes the optimiser over: until then the session has not joined, and may never.
        """
        if not self._begun:
            self._take_over()
        if self._reset:
            forget(self._optimizer)
        if self._prox > 0:
            self._start = {name: tensor.detach().clone() for name, tensor in self._trained.items()}
        for name, own in self._own.items():
            if not self._begun:
                own.copy_(self.control[name])
            elif self._given:
                own.copy_(self._sums[name]).div_(self._steps)
            self._sums[name].zero_()
        self._steps = 0
        self._begun, self._given = True, False

    def controls(self) -> dict[str, Array]:
        """This member's control variates, as they shall travel: float32, of the parameters' shapes."""
        self._given = self._steps > 0
        return {
            CONTROL + name: deferred(tuple(own.shape), np.dtype(np.float32), self._newest(name))
            for name, own in self._own.items()
        }

    def own_controls(self) -> dict[str, torch.Tensor]:
        """SCAFFOLD's c_i of this member, which a script needs that is started again; else none."""
        return {OWN + name: own for name, own in self._own.items()}

    def _take_over(self) -> None:
        if self._prox > 0 or self.control:
            self._hook = _hook(self._optimizer, self)

    def end(self) -> None:
        """Take this session's hook away, and no other's."""
        if self._hook is None:
            return
        self._hook.remove()
        if _hooks.get(self._optimizer) is self._hook:
            del _hooks[self._optimizer]
        self._hook = None

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Correct the gradients of the step that is about to be made.

        With a closure, which computes the gradients inside of the step, they are corrected after it.
        """
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimiser
        if closure is None:
            self._correct()
            return None

        def corrected() -> Any:
            loss = closure()
            self._correct()
            return loss

        if len(args) > 1:
            return (args[0], corrected, *args[2:]), kwargs
        return args, {**kwargs, "closure": corrected}

    @torch.no_grad()  # type: ignore[untyped-decorator]  # PyTorch's types are not read
    def _correct(self) -> None:
        # A fused optimiser under GradScaler gets gradients that are still scaled, with how much beside them,
        # and skips the step by itself where one overflowed.
        scale = getattr(self._optimizer, "grad_scale", None)
        overflow = getattr(self._optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            return
        for name, tensor in self._trained.items():
            gradient = tensor.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise _sparse(name)
            if self._sums:
                raw = gradient.float()
                self._sums[name] += raw if scale is None else raw / scale
            correction = self._correction(name, tensor)
            gradient += correction if scale is None else correction * scale
        self._steps += 1

    def _correction(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is added to a parameter's gradient."""
        found = self.control[name] - self._own[name] if self._own else None
        if self._prox > 0 and name in self._start:
            drift = (tensor.detach() - self._start[name]) * self._prox
            found = drift if found is None else found + drift
        return torch.zeros_like(tensor) if found is None else found.to(tensor.dtype)

    def _here(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._trained[name].device) for name, tensor in tensors.items()}

    def _newest(self, name: str) -> Callable[[], torch.Tensor]:
        def mean() -> torch.Tensor:
            return self._sums[name] / self._steps if self._steps else self._own[name]

        return mean


def steering_for(training: LocalTraining, trained: Mapping[str, torch.Tensor]) -> Steering | None:
    """What does what is asked; None if nothing is.

    Args:
        training: what the study and the script ask.
        trained: the parameters that travel and are trained, by name.

    Raises:
        ConfigError: no optimiser where one is needed, or one that cannot be used.
    """
    asked = _asked(training)
    if not asked:
        return None
    optimizer = plain(training.optimizer)
    if optimizer is None:
        raise ConfigError(
            f"{asked} needs the optimiser that trains the model, and `konsil.join` was not told which.",
            safe="Nothing was sent; the model is untouched.",
            do="Pass it: `konsil.join(study, model, optimizer=optimizer)`.",
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"`optimizer` is a {type(optimizer).__qualname__}, not a torch.optim.Optimizer.",
            safe="Nothing was sent; the model is untouched.",
            do="Pass the optimiser that trains the model: `konsil.join(study, model, optimizer=optimizer)`.",
        )
    steered = training.prox > 0 or training.scaffold
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, tensor in trained.items() if id(tensor) not in held]
    if len(missing) == len(trained) or (steered and missing):
        raise ConfigError(
            f"The optimiser lacks {len(missing)} of the {len(trained)} trained parameters that travel:"
            f" {', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}.",
            safe="Nothing was sent; the model is untouched.",
            do="Make the optimiser from this very model's parameters, after the model is complete; freeze"
            " what it shall not train (`requires_grad_(False)`).",
        )
    if steered and isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            f"{asked} changes gradients, but L-BFGS also compares losses along its way, which would not fit.",
            safe="Nothing was sent; the model is untouched.",
            do="Take another optimiser, for example torch.optim.SGD.",
        )
    return Steering(optimizer, training, trained)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimiser's state to where it was when it was made; its learning rates stay."""
    if not isinstance(optimizer, torch.optim.Adagrad):
        optimizer.state.clear()  # it is made anew at the next step
        return
    for (
        group
    ) in optimizer.param_groups:  # Adagrad makes its state when it is made, in older versions only then
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["step"].zero_()
            state["sum"].fill_(group["initial_accumulator_value"])


def _asked(training: LocalTraining) -> str:
    if training.prox > 0:
        return f"The study's `prox` = {training.prox:g} (FedProx)"
    if training.scaffold:
        return "The study's `scaffold` = true"
    return "`reset_optimizer`" if training.reset_optimizer else ""


def plain(optimizer: Any) -> Any:
    """The PyTorch optimiser inside of what Accelerate or Lightning wrap around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _hook(optimizer: torch.optim.Optimizer, steering: Steering) -> Any:
    """Register the one hook; what takes it away. It does not keep the session alive, and goes with it."""
    former = _hooks.pop(optimizer, None)
    if former is not None:
        former.remove()
    alive = weakref.ref(steering)

    def before_step(
        _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        now = alive()
        return None if now is None else now.before_step(args, kwargs)

    handle = optimizer.register_step_pre_hook(before_step)
    _hooks[optimizer] = handle
    weakref.finalize(steering, handle.remove)
    return handle


def _zeros(trained: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
        for name, tensor in trained.items()
    }


def _sparse(name: str) -> ConfigError:
    return ConfigError(
        f"The gradient of {name!r} is sparse, and the study's `prox` or `scaffold` would make it dense.",
        safe="Nothing was sent; this step was not made.",
        do="Use `torch.nn.Embedding(..., sparse=False)`, or propose a study without them.",
    )
