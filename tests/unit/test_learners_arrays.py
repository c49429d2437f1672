"""Learners: what travels, what stays, and that a merge is loaded in place."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from konsil.core.parameters import Schema, views
from konsil.errors import ConfigError, NonFinite
from konsil.learners import learner_for, register
from konsil.wall.layout import read_arrays, seal_arrays


def through_memory(learner):
    """A learner's own parameters as they come back over the wall: read-only views of sealed memory."""
    schema = learner.schema()
    sealed = seal_arrays(schema, learner.parameters())
    _, data = read_arrays(sealed, schema)
    return sealed, views(schema, data)


def test_floating_arrays_travel_and_integers_booleans_and_local_names_stay():
    arrays = {
        "layer1.weight": np.zeros(3, np.float32),
        "bn1.weight": np.zeros(3, np.float32),
        "half": np.zeros(3, np.float16),
        "scalar": np.array(1.5),
        "count": np.array(3),
        "mask": np.array([True]),
    }
    assert list(learner_for(arrays).parameters()) == ["bn1.weight", "half", "layer1.weight", "scalar"]
    kept = learner_for(arrays, local=("bn*", "sc?lar"))
    assert list(kept.parameters()) == ["half", "layer1.weight"]
    assert kept.schema() == Schema.of({"half": arrays["half"], "layer1.weight": arrays["layer1.weight"]})


def test_arrays_are_given_and_loaded_without_being_replaced():
    arrays = {"a": np.zeros((2, 3), np.float32), "t": np.arange(6.0).reshape(2, 3).T, "s": np.array(1.0)}
    held = dict(arrays)
    learner = learner_for(arrays)
    assert all(learner.parameters()[name] is array for name, array in arrays.items())
    sealed, values = through_memory(learner)
    for array in arrays.values():
        array[...] = -1
    learner.load(values)
    assert np.array_equal(held["t"], np.arange(6.0).reshape(2, 3).T)
    assert held["s"] == 1
    del values
    sealed.close()


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"a": 1.0}, "float"),
        ({"a": [1.0]}, "list"),
        ({1: np.zeros(2)}, "names and arrays"),
        ({"a": np.broadcast_to(np.zeros(1), 3)}, "read-only"),
        (object(), "No learner for a model of type builtins.object"),
    ],
)
def test_what_is_no_model_is_a_clear_error(model, complaint):
    with pytest.raises(ConfigError, match=complaint):
        learner_for(model)


def test_a_model_of_which_nothing_travels_is_a_clear_error():
    with pytest.raises(ConfigError, match="None of the model's 1 arrays"):
        learner_for({"a": np.zeros(3)}, local=("*",)).schema()


def test_a_learner_of_ones_own_is_used_as_it_is():
    class Own:
        value = np.zeros(2)

        def parameters(self):
            return {"value": self.value}

        def load(self, arrays):
            self.value = arrays["value"].copy()

    own = Own()
    learner = learner_for(own)
    learner.load({"value": np.ones(2)})
    assert np.array_equal(learner.parameters()["value"], np.ones(2))


class Strange:
    def __init__(self):
        self.numbers = {"n": np.zeros(2)}


class Stranger(Strange):
    pass


def test_another_kind_of_model_can_be_registered():
    register(f"{Strange.__module__}.Strange", lambda model: learner_for(model.numbers))
    assert list(learner_for(Stranger()).parameters()) == ["n"]


def test_choosing_a_learner_imports_no_framework():
    script = (
        "import sys, numpy, konsil.learners as l; l.learner_for({'a': numpy.zeros(1)});"
        "print(sorted({'torch', 'sklearn', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "[]\n"


def test_bits_of_bfloat16_are_checked_as_what_they_mean():
    class Half:
        bf16 = frozenset({"h"})

        def parameters(self):
            return {"h": np.array([0x3F80, 0x7F80], np.uint16), "n": np.array([1], np.uint16)}

        def load(self, arrays):
            raise NotImplementedError

    learner = learner_for(Half())
    assert [(tensor.name, tensor.dtype) for tensor in learner.schema().tensors] == [("h", "BF16")]
    with pytest.raises(NonFinite, match="inf"):
        seal_arrays(learner.schema(), learner.parameters())
