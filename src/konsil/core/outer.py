"""FedAdam and FedYogi: an optimiser over rounds, whose gradient is what the agreed merge changed.

Reddi et al., *Adaptive federated optimization* (ICLR 2021), algorithm 2: with x the model that training
started from, D the merge of what came out of it, and d = D - x,

    m <- b1 m + (1 - b1) d
    v <- b2 v + (1 - b2) d^2                        (adam)
    v <- v - (1 - b2) d^2 sign(v - d^2)             (yogi)
    x <- x + learning_rate m / (sqrt(v) + tau)

There is no bias correction; m begins at 0 and v at tau^2, as in the paper. x, m and v together are the
*outer state*. Each member computes it alike from the agreed merge: float64, one IEEE operation at a time, one
rounding of each stored value, so that its digest is the same on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer
from konsil.core.merge.blocks import load, store
from konsil.core.parameters import ARRAY_DTYPES, LARGEST_F64, Schema, Tensor, check_finite
from konsil.core.rules.settings import Outer
from konsil.errors import ParametersError

Floats = NDArray[np.float64]

Read = Callable[[int, int], Buffer]
"""(start, stop) -> these bytes of a state's data section: a state need not be in memory."""

_MOMENT_DTYPE = {"F64": "F64", "F32": "F32", "BF16": "F32", "F16": "F32"}
"""A second moment in 16 bits would lose what it is for; in 64 it would double the state of a 32-bit model."""

_LARGEST = {
    "F64": math.nextafter(LARGEST_F64, 0.0),
    "F32": float(np.finfo(np.float32).max),
    "BF16": 2.0**127 * (2 - 2.0**-7),
    "F16": float(np.finfo(np.float16).max),
}
"""The largest value of each dtype that is not refused. What would be larger is held there: one absurd merge
must not put an infinity into a state that all later rounds are made from."""

_BLOCK = 16_384
"""Six rows of float64 stay in a core's second-level cache. Changes the speed, not a bit of the result."""

_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class _Run:
    """Elements of one dtype: how many, and where they begin in bytes, in the model and in the state."""

    dtype: str
    elements: int
    model: int
    x: int
    m: int
    v: int

    @property
    def moment(self) -> str:
        """The dtype of the moments."""
        return _MOMENT_DTYPE[self.dtype]


@dataclass(frozen=True)
class Layout:
    """How an outer state lies in memory: one flat tensor for each of x, m, v and each dtype of the model.

    ``model``: the study's schema, with tensors of one dtype side by side, as all schemas have them.
    """

    model: Schema

    @cached_property
    def state(self) -> Schema:
        """The state's own schema: ``x/F32``, ``m/F32``, ``v/F32`` and so on."""
        tensors = [
            Tensor(f"{kind}/{dtype}", dtype if kind == "x" else _MOMENT_DTYPE[dtype], (count,))
            for dtype, count, _ in self._dtypes
            for kind in "xmv"
        ]
        order = list(ARRAY_DTYPES)
        return Schema(tuple(sorted(tensors, key=lambda tensor: (order.index(tensor.dtype), tensor.name))))

    @cached_property
    def runs(self) -> tuple[_Run, ...]:
        """Where each dtype's elements lie."""
        names = (tensor.name for tensor in self.state.tensors)
        at = dict(zip(names, self.state.offsets, strict=False))
        return tuple(
            _Run(dtype, count, start, at[f"x/{dtype}"], at[f"m/{dtype}"], at[f"v/{dtype}"])
            for dtype, count, start in self._dtypes
        )

    @cached_property
    def _dtypes(self) -> tuple[tuple[str, int, int], ...]:
        return tuple(
            (dtype, (stop - start) // ARRAY_DTYPES[dtype].itemsize, start)
            for dtype, start, stop in self.model.runs(0, self.model.data_bytes)
        )


@lru_cache(maxsize=16)
def layout_of(model: Schema) -> Layout:
    """The layout of the outer state of models with this schema."""
    return Layout(model)


def first(outer: Outer, layout: Layout, initial: Buffer, state: memoryview) -> None:
    """The outer state before round 1: x as the study began, m = 0, v = tau^2.

    Args:
        outer: the study's setting.
        layout: of its model.
        initial: data section of the initial parameters.
        state: data section to be written, of ``layout.state.data_bytes``.

    Raises:
        ParametersError: one of them has another length.
    """
    _require_lengths((layout.model, initial), (layout.state, state))
    begin = np.empty(_BLOCK)
    for run in layout.runs:
        size = run.elements * ARRAY_DTYPES[run.dtype].itemsize
        state[run.x : run.x + size] = initial[run.model : run.model + size]
        wide = ARRAY_DTYPES[run.moment].itemsize
        for kind, value in ((run.m, 0.0), (run.v, outer.tau * outer.tau)):
            begin.fill(value)
            for done in range(0, run.elements, _BLOCK):
                count = min(_BLOCK, run.elements - done)
                store(run.moment, begin[:count], state, kind + done * wide)


def advance(
    outer: Outer, layout: Layout, before: Read, merge: Buffer, after: memoryview, model: memoryview
) -> None:
    """The outer state after a round.

    Args:
        outer: the study's setting.
        layout: of its model.
        before: reads the state that the round's training started from.
        merge: data section of the accepted merge.
        after: data section of the new state, to be written.
        model: data section of a model, to be written: the new state's x, which training goes on from.

    Raises:
        ParametersError: one of them has another length.
    """
    _require_lengths((layout.model, merge), (layout.state, after), (layout.model, model))
    rows = np.empty((5, _BLOCK))
    for run in layout.runs:
        narrow, wide = ARRAY_DTYPES[run.dtype].itemsize, ARRAY_DTYPES[run.moment].itemsize
        for done in range(0, run.elements, _BLOCK):
            count = min(_BLOCK, run.elements - done)
            x, d, m, v, scratch = rows[:, :count]
            x_at, m_at, v_at = run.x + done * narrow, run.m + done * wide, run.v + done * wide
            model_at, more, more_wide = run.model + done * narrow, count * narrow, count * wide
            load(run.dtype, before(x_at, x_at + more), 0, more, x)
            load(run.dtype, merge, model_at, model_at + more, d)
            load(run.moment, before(m_at, m_at + more_wide), 0, more_wide, m)
            load(run.moment, before(v_at, v_at + more_wide), 0, more_wide, v)
            _step(outer, x, d, m, v, scratch, _LARGEST[run.dtype], _LARGEST[run.moment])
            store(run.dtype, x, after, x_at)
            store(run.moment, m, after, m_at)
            store(run.moment, v, after, v_at)
            model[model_at : model_at + more] = after[x_at : x_at + more]


def take_model(layout: Layout, state: Read, model: memoryview) -> None:
    """Copy a state's x into the data section of a model.

    Raises:
        ParametersError: the model has another length.
    """
    _require_lengths((layout.model, model))
    for run in layout.runs:
        size = run.elements * ARRAY_DTYPES[run.dtype].itemsize
        for done in range(0, size, _COPY_BYTES):
            more = min(_COPY_BYTES, size - done)
            model[run.model + done : run.model + done + more] = state(run.x + done, run.x + done + more)


def check_state(layout: Layout, state: Buffer) -> None:
    """See that a peer's outer state is one: finite, and no second moment below zero.

    Raises:
        NonFinite: a NaN or an infinity, by its tensor's name.
        ParametersError: another length, or a second moment with a sign.
    """
    _require_lengths((layout.state, state))
    check_finite(layout.state, state)
    block = np.empty(_BLOCK)
    for run in layout.runs:
        wide = ARRAY_DTYPES[run.moment].itemsize
        for done in range(0, run.elements, _BLOCK):
            at = run.v + done * wide
            count = load(run.moment, state, at, at + min(_BLOCK, run.elements - done) * wide, block)
            if np.signbit(block[:count]).any():
                raise ParametersError(
                    "An outer state has a second moment below zero, whose root is no number.",
                    safe="Nothing was taken from it.",
                    do="Ask the members who committed it to test their memory: `konsil ledger show`.",
                )


def _step(
    outer: Outer, x: Floats, d: Floats, m: Floats, v: Floats, scratch: Floats, top: float, top_moment: float
) -> None:
    """One step in place; ``d`` holds the merge. One ufunc at a time: no fused multiply-add, one order."""
    np.subtract(d, x, out=d)
    np.multiply(m, outer.beta1, out=m)
    np.multiply(d, 1.0 - outer.beta1, out=scratch)
    np.add(m, scratch, out=m)
    np.multiply(d, d, out=d)
    if outer.method == "adam":
        np.multiply(v, outer.beta2, out=v)
        np.multiply(d, 1.0 - outer.beta2, out=d)
        np.add(v, d, out=v)
    else:
        np.subtract(v, d, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(d, 1.0 - outer.beta2, out=d)
        np.multiply(d, scratch, out=d)
        np.subtract(v, d, out=v)
    np.clip(m, -top_moment, top_moment, out=m)
    np.minimum(v, top_moment, out=v)
    np.sqrt(v, out=scratch)
    np.add(scratch, outer.tau, out=scratch)
    np.multiply(m, outer.learning_rate, out=d)
    np.divide(d, scratch, out=d)
    np.add(x, d, out=x)
    np.clip(x, -top, top, out=x)


def _require_lengths(*pairs: tuple[Schema, Buffer]) -> None:
    for schema, data in pairs:
        if len(data) != schema.data_bytes:
            raise ParametersError(
                f"An outer optimiser's step got {len(data)} bytes where {schema.data_bytes} are needed.",
                safe="Nothing was changed.",
                do="The bytes belong to another model.",
            )
