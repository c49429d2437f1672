import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.parameters import (
    CLASSES,
    COLUMNS,
    FROZEN,
    LARGEST_F64,
    MAX_HEADER_BYTES,
    Schema,
    Tensor,
    check_finite,
    mark,
    pack,
    read_safetensors,
    views,
)
from konsil.errors import NonFinite, ParametersError, SchemaMismatch

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
dtypes = st.sampled_from(["<f8", "<f4", "<f2", ">f4"])
models = st.dictionaries(names, st.tuples(dtypes, shapes), min_size=1, max_size=6).map(
    lambda model: {
        name: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for name, (dtype, shape) in model.items()
    }
)
mergeable = models.filter(lambda model: any(array.size for array in model.values()))


def packed(arrays, bf16=()):
    schema = Schema.of(arrays, bf16)
    data = bytearray(schema.data_bytes)
    pack(schema, arrays, memoryview(data))
    return schema, data


def header(text):
    raw = text if isinstance(text, bytes) else text.encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


@given(mergeable)
def test_arrays_come_back_as_they_were(arrays):
    schema, data = packed(arrays)
    back = views(schema, data)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("<")


@given(mergeable)
def test_what_we_write_the_safetensors_library_reads_and_writes_alike(arrays):
    schema, data = packed(arrays)
    file = bytes(schema.header + data)
    read = safetensors.numpy.load(file)
    native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()}
    for name, array in native.items():
        np.testing.assert_array_equal(read[name], array)
    assert safetensors.numpy.save(native) == file


@given(mergeable)
def test_the_order_in_which_arrays_are_named_changes_nothing(arrays):
    backwards = dict(reversed(arrays.items()))
    assert Schema.of(arrays).digest == Schema.of(backwards).digest
    assert packed(arrays)[1] == packed(backwards)[1]


@given(mergeable)
def test_a_schema_comes_back_from_its_header(arrays):
    schema = Schema.of(arrays)
    assert Schema.from_header(memoryview(schema.header)) == schema
    assert len(schema.header) % 8 == 0


def test_wide_elements_come_first_then_names():
    arrays = {
        "b": np.zeros(1, np.float16),
        "z": np.zeros(3, np.float64),
        "é": np.zeros((2, 2), np.float32),
        "a": np.zeros(1, np.float32),
        "bits": np.zeros(2, np.uint16),
    }
    schema = Schema.of(arrays, bf16=["bits"])
    assert [tensor.name for tensor in schema.tensors] == ["z", "a", "é", "bits", "b"]
    assert schema.runs(0, schema.data_bytes) == [
        ("F64", 0, 24),
        ("F32", 24, 44),
        ("BF16", 44, 48),
        ("F16", 48, 50),
    ]
    assert schema.runs(8, 28) == [("F64", 0, 16), ("F32", 16, 20)]
    assert schema.runs(24, 24) == []


@pytest.mark.parametrize(("start", "stop"), [(-8, 8), (0, 51), (16, 8), (4, 8), (0, 4), (24, 26), (45, 48)])
def test_a_range_that_cuts_an_element_or_leaves_the_data_is_refused(start, stop):
    arrays = {"d": np.zeros(3), "f": np.zeros(5, np.float32), "h": np.zeros(3, np.float16)}
    with pytest.raises(ParametersError, match=r"cut an element|outside"):
        Schema.of(arrays).runs(start, stop)


@pytest.mark.parametrize(
    "array", [np.arange(3), np.array([True]), np.zeros(2, np.uint8), np.zeros(2, complex)]
)
def test_arrays_that_are_not_merged_are_refused_by_name(array):
    with pytest.raises(ParametersError, match=r"'bn\.steps' is (int64|bool|uint8|complex128)"):
        Schema.of({"w": np.zeros(2), "bn.steps": array})


@pytest.mark.parametrize("name", ["", "__metadata__", "a\nb", "\x00", "\x7f", "\x9b31m", "\ud800"])
def test_a_name_that_cannot_be_written_is_refused(name):
    with pytest.raises(ParametersError, match="cannot be the name"):
        Schema.of({name: np.zeros(2)})


@pytest.mark.parametrize("arrays", [{}, {"w": np.zeros((0, 3))}])
def test_nothing_to_merge_is_refused(arrays):
    with pytest.raises(ParametersError, match="0 bytes"):
        Schema.of(arrays)


def test_a_schema_out_of_order_or_with_a_name_twice_is_refused():
    a, b, narrow = Tensor("a", "F32", (1,)), Tensor("b", "F32", (1,)), Tensor("a", "F16", (1,))
    with pytest.raises(ParametersError, match="order"):
        Schema((b, a))
    with pytest.raises(ParametersError, match="one name"):
        Schema((a, narrow))


GOOD = '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 8,
        header(GOOD)[:-1],
        header(GOOD) + b"        ",
        header(GOOD + " " * 8),
        header(" " + GOOD),
        header(GOOD.replace(":", ": ")),
        header("[]"),
        header("{}"),
        header("[" * 100_000),
        header(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        header(GOOD.replace('"w"', '"__metadata__"')),
        header(GOOD.replace("{", '{"__metadata__":{"a":"b"},', 1)),
        header(GOOD.replace("F32", "I32")),
        header(GOOD.replace("F32", "F8_E4M3")),
        header(GOOD.replace("[2]", "[-2]")),
        header(GOOD.replace("[2]", "[2.0]")),
        header(GOOD.replace("[2]", "[3]")),
        header(GOOD.replace("[2]", "[2" + "0" * 5000 + "]")),
        header(GOOD.replace("[2]", "[2" + ",1" * 40 + "]")),
        header(GOOD.replace("[2]", "[0,1099511627776,1099511627776]").replace("8]", "0]")),
        header(GOOD.replace("[0,8]", "[4,12]")),
        header(GOOD.replace("[0,8]", "[0,8,8]")),
        header(GOOD.replace('"F32"', '"F32","more":1')),
        header(GOOD[:-1] + ',"v":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'),
        header(GOOD[:-1] + ',"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'),
        header(GOOD[:-1] + ',"x":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}'),
        header(GOOD[:-1] + ',"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        header(GOOD.replace('"w"', '"\\u0077"')),
        header(GOOD.replace('"w"', '"\\ud800"')),
        bytes(MAX_HEADER_BYTES + 1),
    ],
)
def test_a_hostile_header_is_refused(raw):
    with pytest.raises(ParametersError):
        Schema.from_header(raw)


def test_the_header_that_the_hostile_ones_are_made_from_is_good():
    assert Schema.from_header(header(GOOD)).tensors == (Tensor("w", "F32", (2,)),)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_header_or_a_parameters_error(raw):
    for data in (raw, header(raw)):
        try:
            schema = Schema.from_header(data)
        except ParametersError:
            continue
        assert schema.header == data


def test_another_schema_is_refused_with_every_difference_by_name():
    study = Schema.of({"a": np.zeros(2), "b": np.zeros((2, 3)), "c": np.zeros(1), "same": np.zeros(1)})
    mine = Schema.of({"a": np.zeros(2, "f4"), "b": np.zeros((3, 2)), "d": np.zeros(1), "same": np.zeros(1)})
    assert study.differences(mine) == [
        "'a' is F32 instead of F64.",
        "'b' has shape (3, 2) instead of (2, 3).",
        "'c' is missing.",
        "'d' is not expected.",
    ]
    study.require_same(Schema(study.tensors))
    with pytest.raises(SchemaMismatch, match="'c' is missing") as caught:
        study.require_same(mine)
    assert len(caught.value.fields["differences"]) == 4


def test_a_message_names_five_differences_and_counts_the_rest():
    study = Schema.of({f"layer{i}": np.zeros(1) for i in range(9)})
    with pytest.raises(SchemaMismatch, match="And 3 more"):
        study.require_same(Schema.of({"layer0": np.zeros(1)}))


def test_arrays_of_any_contiguity_are_packed():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"t": base.T, "step": base[::2, ::-1], "scalar": np.array(7.0), "f": np.asfortranarray(base)}
    schema, data = packed(arrays)
    for name, view in views(schema, data).items():
        np.testing.assert_array_equal(view, arrays[name])


def test_packing_other_arrays_than_the_schemas_is_refused():
    schema = Schema.of({"w": np.zeros(3)})
    with pytest.raises(SchemaMismatch, match="shape"):
        pack(schema, {"w": np.zeros(4)}, memoryview(bytearray(24)))
    with pytest.raises(ParametersError, match="23 bytes where their schema says 24"):
        pack(schema, {"w": np.zeros(3)}, memoryview(bytearray(23)))


def test_views_share_the_memory_and_its_protection():
    schema, data = packed({"w": np.arange(3.0)})
    views(schema, data)["w"][1] = 9.0
    assert np.frombuffer(data).tolist() == [0.0, 9.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        views(schema, bytes(data))["w"][0] = 1.0
    with pytest.raises(ParametersError, match="bytes where"):
        views(schema, data[:-1])


def test_bfloat16_travels_as_its_bits():
    bits = np.array([0x3F80, 0xC000], np.uint16)
    schema, data = packed({"w": bits}, bf16=["w"])
    assert schema.tensors == (Tensor("w", "BF16", (2,)),)
    assert bytes(data) == bits.tobytes()
    assert views(schema, data)["w"].tolist() == bits.tolist()


BAD = {
    "<f8": [np.nan, np.inf, -np.inf, LARGEST_F64, -LARGEST_F64],
    "<f4": [np.nan, np.inf, -np.inf],
    "<f2": [np.nan, np.inf, -np.inf],
}
GREATEST = {"<f8": np.nextafter(LARGEST_F64, 0), "<f4": np.finfo("f4").max, "<f2": np.finfo("f2").max}


@pytest.mark.parametrize(
    ("dtype", "value"), [(dtype, value) for dtype, values in BAD.items() for value in values]
)
def test_a_value_that_is_not_finite_is_named_with_its_place(dtype, value):
    array = np.zeros((300, 1000), dtype)
    schema = Schema.of(
        {"a": np.zeros(3, dtype), "w": array, "e": np.zeros(0, dtype), "z": np.zeros(1, dtype)}
    )
    for index in (0, 150_007, 299_999):
        array.reshape(-1)[:] = 0
        array.reshape(-1)[index] = value
        data = bytearray(schema.data_bytes)
        pack(
            schema,
            {"a": np.zeros(3, dtype), "w": array, "e": np.zeros(0, dtype), "z": np.zeros(1, dtype)},
            memoryview(data),
        )
        with pytest.raises(
            NonFinite, match=f"'w', shape \\(300, 1000\\), holds at flat index {index}"
        ) as caught:
            check_finite(schema, data)
        assert caught.value.fields["index"] == index
        np.testing.assert_equal(caught.value.fields["value"], value)


@pytest.mark.parametrize(("dtype", "value"), GREATEST.items())
def test_the_greatest_finite_values_and_both_zeros_pass(dtype, value):
    schema, data = packed({"w": np.array([value, -value, 0.0, -0.0, 5e-324], dtype)})
    check_finite(schema, data)


def test_a_bfloat16_that_is_not_finite_is_named():
    schema, data = packed({"w": np.array([0x7F7F, 0xFF80], np.uint16)}, bf16=["w"])
    with pytest.raises(NonFinite, match="flat index 1 the value -inf"):
        check_finite(schema, data)


def test_one_chunk_alone_is_checked_and_its_bad_value_named_in_the_whole():
    schema, data = packed({"a": np.zeros(4), "w": np.array([0, 0, 0, np.nan, 0], "f4")})
    check_finite(schema, data[:40])
    check_finite(schema, data[48:], start=48)
    with pytest.raises(NonFinite, match=r"'w'.* flat index 3 "):
        check_finite(schema, data[40:], start=40)
    with pytest.raises(ParametersError, match="outside"):
        check_finite(schema, data, start=8)


def test_any_safetensors_file_is_read_whatever_its_order():
    arrays = {
        "steps": np.array(7),
        "mask": np.array([True, False]),
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "pixels": np.arange(3, dtype=np.uint8),
        "empty": np.zeros((0, 2)),
    }
    read = read_safetensors(safetensors.numpy.save(arrays, metadata={"format": "np"}))
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_a_file_in_another_order_is_read():
    entries = {
        "second": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        "first": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
    }
    read = read_safetensors(
        header(json.dumps(entries)) + np.array(2, "<f2").tobytes() + np.array(5, "<f4").tobytes()
    )
    assert {name: array.tolist() for name, array in read.items()} == {"first": [2.0], "second": [5.0]}


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff" * 20,
        header(GOOD) + b"\0" * 7,
        header(GOOD) + b"\0" * 9,
        header("[]"),
        header("nonsense"),
        header('{"__metadata__":{},"w":3}'),
        header(GOOD.replace("F32", "F8_E4M3")) + b"\0" * 8,
        header(GOOD.replace("[2]", "[1]")) + b"\0" * 8,
        header(GOOD.replace("[0,8]", "[4,12]")) + b"\0" * 12,
        header(GOOD.replace("[0,8]", "[8,0]")) + b"\0" * 12,
        header(GOOD[:-1] + ',"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}') + b"\0" * 12,
    ],
)
def test_a_broken_file_is_refused(file):
    with pytest.raises(ParametersError):
        read_safetensors(file)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (FROZEN, "The frozen parts of the model differ: they do not travel"),
        (COLUMNS, "The columns of the rows differ, or their order: every member must give `konsil.prepare`"),
        (CLASSES, "The classes differ: every member must give `konsil.prepare` the same `classes`"),
    ],
)
def test_what_must_be_alike_but_does_not_travel_is_said_first_and_in_words(kind, sentence):
    def schema(digest, size=3):
        arrays = {"a": np.zeros(size, np.float32)}
        return Schema.of(arrays | ({mark(kind, digest): np.zeros(0, np.float32)} if digest else {}))

    study = schema("12ab")
    assert study.differences(schema("12ab")) == []
    for other in ("34cd", ""):
        (found,) = study.differences(schema(other))
        assert found.startswith(sentence)
    with pytest.raises(SchemaMismatch) as caught:
        study.require_same(schema("34cd", 4))
    assert f"those of the study: {sentence}" in str(caught.value)
    assert "'a' has shape (4,) instead of (3,)" in str(caught.value)
    assert "12ab" not in str(caught.value)
    assert Schema.from_header(study.header) == study
    assert list(views(study, bytes(12))) == ["a", f"{kind}12ab"]
