"""The outer optimisers: held against the paper's formulas, written down a second time and another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konsil.core.outer import advance, check_state, first, layout_of, take_model
from konsil.core.parameters import ARRAY_DTYPES, Schema, check_finite, pack, views
from konsil.core.rules import Outer
from konsil.errors import NonFinite, ParametersError

METHODS = ("adam", "yogi")
NUMBERS = st.floats(-1e3, 1e3, width=32)
OUTERS = st.builds(
    Outer,
    method=st.sampled_from(METHODS),
    learning_rate=st.floats(1e-4, 10),
    beta1=st.floats(0, 0.999),
    beta2=st.floats(0, 0.999),
    tau=st.floats(1e-6, 1),
)


class Study:
    """A model's way over rounds, as the code under test goes."""

    def __init__(self, outer, initial, bf16=()):
        self.outer = outer
        self.schema = Schema.of(initial, bf16)
        self.layout = layout_of(self.schema)
        self.state = bytearray(self.layout.state.data_bytes)
        self.model = bytearray(self.packed(initial))
        first(outer, self.layout, self.packed(initial), memoryview(self.state))

    def packed(self, arrays):
        data = bytearray(self.schema.data_bytes)
        pack(self.schema, arrays, memoryview(data))
        return bytes(data)

    def round(self, merge):
        after = bytearray(len(self.state))
        advance(
            self.outer, self.layout, self.read, self.packed(merge), memoryview(after), memoryview(self.model)
        )
        self.state = after
        return self.arrays()

    def read(self, start, stop):
        return memoryview(self.state)[start:stop]

    def arrays(self):
        return {name: array.copy() for name, array in views(self.schema, bytes(self.model)).items()}

    def part(self, name):
        return views(self.layout.state, bytes(self.state))[name].copy()


def by_the_paper(outer, x, merges, moments=np.float64):
    """Algorithm 2 of Reddi et al. for one array: x and its two moments after each merge."""
    kind = x.dtype
    m, v = np.zeros(x.shape, moments), np.full(x.shape, outer.tau**2).astype(moments)
    for merge in merges:
        x64, delta = x.astype(np.float64), merge.astype(np.float64) - x.astype(np.float64)
        m64 = outer.beta1 * m.astype(np.float64) + (1 - outer.beta1) * delta
        v64, square = v.astype(np.float64), delta**2
        if outer.method == "adam":
            v64 = outer.beta2 * v64 + (1 - outer.beta2) * square
        else:
            v64 = v64 - (1 - outer.beta2) * square * np.sign(v64 - square)
        x = (x64 + outer.learning_rate * m64 / (np.sqrt(v64) + outer.tau)).astype(kind)
        m, v = m64.astype(moments), v64.astype(moments)
        yield x, m, v


@settings(max_examples=60, deadline=None, derandomize=True)
@given(outer=OUTERS, rounds=st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=2, max_size=5))
def test_every_round_is_that_of_the_paper_to_the_last_bit(outer, rounds):
    kinds = {"w": np.float32, "b": np.float64, "h": np.float16}
    values = [{name: np.array(row).astype(kind) for name, kind in kinds.items()} for row in rounds]
    study = Study(outer, values[0])
    expected = {
        name: list(
            by_the_paper(
                outer,
                values[0][name],
                [merge[name] for merge in values[1:]],
                np.float64 if kind is np.float64 else np.float32,
            )
        )
        for name, kind in kinds.items()
    }
    codes = {"w": "F32", "b": "F64", "h": "F16"}
    for number, merge in enumerate(values[1:]):
        found = study.round(merge)
        for name, code in codes.items():
            x, m, v = expected[name][number]
            np.testing.assert_array_equal(found[name], x)
            np.testing.assert_array_equal(study.part(f"x/{code}"), x)
            np.testing.assert_array_equal(study.part(f"m/{code}"), m)
            np.testing.assert_array_equal(study.part(f"v/{code}"), v)


def test_a_bfloat16_model_steps_in_float64_and_is_rounded_once():
    bits = np.array([0x3F80, 0xC000, 0x0000, 0x4248], np.uint16)  # 1, -2, 0, 50
    outer = Outer("yogi", learning_rate=0.3, tau=0.01)
    study = Study(outer, {"h": bits}, bf16={"h"})
    merge = np.array([0x4000, 0xBF80, 0x3C00, 0x4240], np.uint16)

    def wide(these):
        return (these.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    found = study.round({"h": merge})["h"]
    delta = wide(merge) - wide(bits)
    m = 0.1 * delta
    v = float(np.float32(1e-4)) - 0.01 * delta**2 * np.sign(1e-4 - delta**2)
    exact = wide(bits) + 0.3 * m / (np.sqrt(v) + 0.01)
    np.testing.assert_array_equal(
        wide(found), wide(((exact.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16))
    )
    assert study.part("m/BF16").dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
def test_without_memory_a_step_is_the_sign_of_the_change_or_with_a_large_tau_the_change(method):
    initial, merge = {"w": np.array([1.0, -2.0, 3.0])}, {"w": np.array([1.5, -2.0, 2.0])}
    delta = merge["w"] - initial["w"]
    small = Study(Outer("adam", 0.5, 0.0, 0.0, 1e-12), initial).round(merge)["w"]
    np.testing.assert_allclose(small, initial["w"] + 0.5 * np.sign(delta), rtol=1e-9)
    large = Study(Outer(method, 1.0, 0.0, 0.0, 1.0), initial)
    tiny = {"w": initial["w"] + delta * 1e-6}
    # Where the change is far below tau, v stays near tau^2 (yogi) or falls to the change's square (adam).
    spread = 2.0 if method == "yogi" else 1.0
    np.testing.assert_allclose(
        large.round(tiny)["w"] - initial["w"], delta * 1e-6 / spread, rtol=1e-4, atol=1e-15
    )


def test_adam_without_memory_is_the_change_over_its_size_and_tau():
    rng = np.random.default_rng(1)
    initial, merge = {"w": rng.standard_normal(1000)}, {"w": rng.standard_normal(1000)}
    delta = merge["w"] - initial["w"]
    found = Study(Outer("adam", 0.1, 0.0, 0.0, 0.01), initial).round(merge)["w"]
    np.testing.assert_allclose(found, initial["w"] + 0.1 * delta / (np.abs(delta) + 0.01), rtol=1e-15)


def test_yogi_lets_the_second_moment_fall_slower_than_adam():
    initial, jump, still = ({"w": np.array([value])} for value in (0.0, 10.0, 10.0))
    after = {}
    for method in METHODS:
        study = Study(Outer(method, 1e-9, 0.0, 0.5, 1e-3), initial)
        study.round(jump)
        large = study.part("v/F64")[0]
        study.round({"w": study.arrays()["w"]})  # nothing changes any more
        after[method] = study.part("v/F64")[0] / large
        assert large > 10
    assert after["adam"] == pytest.approx(0.5)
    assert after["yogi"] == 1.0
    assert still


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_an_absurd_merge_puts_no_infinity_and_no_nan_into_any_later_round(method, kind):
    largest = 2.0**399 if kind is np.float64 else float(np.finfo(kind).max)
    initial = {"w": np.array([-largest, largest, 0.0, 1.0], kind)}
    study = Study(Outer(method, 1000.0, 0.99, 0.0, 1e-30), initial)
    for value in (largest, -largest, 0.0, largest, 1.0, 1.0):
        with np.errstate(all="raise", under="ignore"):
            study.round({"w": np.full(4, value, kind)})
        check_state(study.layout, study.state)
        check_finite(study.schema, study.model)


def test_the_state_before_round_one_is_the_initial_model_no_momentum_and_tau_squared():
    initial = {"w": np.arange(40_000, dtype=np.float32), "b": np.ones(3)}
    study = Study(Outer(tau=0.5), initial)
    np.testing.assert_array_equal(study.part("x/F32"), initial["w"])
    assert not study.part("m/F32").any()
    assert np.all(study.part("v/F32") == 0.25)
    assert np.all(study.part("v/F64") == 0.25)


def test_the_states_model_is_the_model_that_training_goes_on_from():
    rng = np.random.default_rng(2)
    shapes = {"a": (17_000, 2), "z": (3,), "m": ()}
    kinds = {"a": np.float32, "z": np.float64, "m": np.float32}
    initial = {name: rng.standard_normal(shape).astype(kinds[name]) for name, shape in shapes.items()}
    study = Study(Outer(), initial)
    study.round({name: array + 1 for name, array in initial.items()})
    model = bytearray(study.schema.data_bytes)
    take_model(study.layout, study.read, memoryview(model))
    assert model == study.model
    assert study.layout.state.data_bytes == 3 * study.schema.data_bytes


def test_a_peers_state_that_is_none_is_refused():
    study = Study(Outer(), {"w": np.ones(20_000, np.float32)})
    good = bytes(study.state)
    views(study.layout.state, study.state)["v/F32"][19_999] = -0.0
    with pytest.raises(ParametersError, match="second moment below zero"):
        check_state(study.layout, study.state)
    study.state[:] = good
    views(study.layout.state, study.state)["m/F32"][3] = math.inf
    with pytest.raises(NonFinite, match="m/F32"):
        check_state(study.layout, study.state)
    with pytest.raises(ParametersError, match="bytes where"):
        check_state(study.layout, good[:-4])
    check_state(study.layout, good)


def test_a_state_lies_in_one_flat_tensor_a_moment_and_dtype():
    initial = {
        "w": np.ones((2, 3), np.float32),
        "b": np.ones(3),
        "c": np.ones(2, np.float32),
        "h": np.ones(4, np.float16),
    }
    state = layout_of(Schema.of(initial)).state
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in state.tensors} == {
        "m/F64": ("F64", (3,)),
        "v/F64": ("F64", (3,)),
        "x/F64": ("F64", (3,)),
        "m/F16": ("F32", (4,)),
        "m/F32": ("F32", (8,)),
        "v/F16": ("F32", (4,)),
        "v/F32": ("F32", (8,)),
        "x/F32": ("F32", (8,)),
        "x/F16": ("F16", (4,)),
    }
    assert set(ARRAY_DTYPES) >= {tensor.dtype for tensor in state.tensors}
