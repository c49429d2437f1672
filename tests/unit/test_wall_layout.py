"""Arrays in sealed memory: the layout is safetensors', and a receiver believes nothing."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import safetensors.numpy

from konsil.core.parameters import Schema, views
from konsil.errors import NonFinite, ParametersError, SchemaMismatch
from konsil.wall.layout import read_arrays, seal_arrays
from konsil.wall.memory import seal_pieces

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "foreign": np.arange(3).astype(">f4"),
    "scalar": np.array(2.5, np.float16),
    "empty": np.zeros((0, 4), np.float32),
}
SCHEMA = Schema.of(ARRAYS)


def test_any_array_comes_back_as_it_went_and_the_safetensors_library_reads_it():
    with seal_arrays(SCHEMA, ARRAYS) as sealed:
        schema, data = read_arrays(sealed)
        assert schema == SCHEMA
        found = {name: array.copy() for name, array in views(schema, data).items()}
        oracle = safetensors.numpy.load(bytes(sealed.data))
        del data
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array)
        assert found[name].shape == oracle[name].shape == array.shape
        assert np.array_equal(oracle[name], array)


@pytest.mark.parametrize("expected", [None, SCHEMA])
@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"1"])
def test_another_length_than_the_header_says_is_refused(expected, change):
    with seal_arrays(SCHEMA, ARRAYS) as sealed:
        whole = bytes(sealed.data)
    with seal_pieces([change(whole)]) as other, pytest.raises(ParametersError, match="wrong length"):
        read_arrays(other, expected)


@pytest.mark.parametrize("length", [0, 7, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length):
    with seal_pieces([length.to_bytes(8, "little"), b"{}"]) as sealed, pytest.raises(ParametersError):
        read_arrays(sealed)


def test_another_schema_and_a_nan_are_refused_by_name():
    with pytest.raises(SchemaMismatch, match="'scalar' is F64 instead of F16"):
        seal_arrays(SCHEMA, ARRAYS | {"scalar": np.array(2.5)})
    with pytest.raises(NonFinite, match=r"'turned'.*index 5"):
        seal_arrays(SCHEMA, ARRAYS | {"turned": np.array([[0, 1], [2, 3], [4, np.nan]])})


def test_a_model_that_is_not_the_studys_is_told_in_what_it_differs():
    mine = Schema.of(ARRAYS | {"scalar": np.array(2.5), "weight": np.zeros((2, 4), np.float32)})
    with seal_arrays(SCHEMA, ARRAYS) as sealed, pytest.raises(SchemaMismatch) as caught:
        read_arrays(sealed, mine)
    assert "'scalar' is F64 instead of F16. 'weight' has shape (2, 4) instead of (2, 3)." in str(caught.value)


class MadeWhenRead:
    """An array as a learner gives it whose model is on an accelerator."""

    alive = most_alive = made = 0

    def __init__(self, value):
        self.shape, self.dtype, self.value = (400_000,), np.dtype(np.float32), value

    def __array__(self, dtype=None, copy=None):
        made = np.full(self.shape, self.value, self.dtype)
        MadeWhenRead.made += 1
        MadeWhenRead.alive += 1
        MadeWhenRead.most_alive = max(MadeWhenRead.alive, MadeWhenRead.most_alive)
        weakref.finalize(made, MadeWhenRead.gone)
        return made

    @classmethod
    def gone(cls):
        cls.alive -= 1


def test_arrays_that_are_made_when_read_are_made_once_and_one_at_a_time():
    arrays = {f"layer{number}": MadeWhenRead(number) for number in range(5)}
    schema = Schema.of(arrays)
    assert MadeWhenRead.made == 0
    with seal_arrays(schema, arrays) as sealed:
        values = views(schema, read_arrays(sealed, schema)[1])
        assert [float(values[name][-1]) for name in arrays] == [0, 1, 2, 3, 4]
        del values
    assert (MadeWhenRead.made, MadeWhenRead.most_alive, MadeWhenRead.alive) == (5, 1, 0)
