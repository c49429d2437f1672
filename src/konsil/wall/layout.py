"""Named arrays in and out of sealed memory: safetensors' layout, checked on both sides of the wall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konsil.core.parameters import ARRAY_DTYPES, MAX_HEADER_BYTES, Schema, check_finite
from konsil.errors import ParametersError
from konsil.wall.memory import SealedMemory, seal_pieces

_PREFIX_BYTES = 8  # safetensors: the header's length, little-endian


def seal_arrays(schema: Schema, arrays: Mapping[str, NDArray[Any]]) -> SealedMemory:
    """Named arrays as a sealed file: the schema's header, then the data. One copy.

    Args:
        schema: the layout.
        arrays: exactly the schema's names, dtypes and shapes; BF16 as uint16 bits; any contiguity. One that
            is made when it is read (``__array__``) is read once, and gone before the next.

    Raises:
        SchemaMismatch: the arrays are not the schema's.
        NonFinite: a NaN or an infinity, by its tensor's name; nothing was made.
        ConfigError: no memory, or no descriptor, left for it.
    """
    bits = {tensor.name for tensor in schema.tensors if tensor.dtype == "BF16"}
    schema.require_same(Schema.of(arrays, bits))
    return seal_pieces(_pieces(schema, arrays))


def read_arrays(sealed: SealedMemory, expected: Schema | None = None) -> tuple[Schema, memoryview]:
    """The schema and the data section of a sealed file that came over the wall; no copy.

    Args:
        sealed: the file.
        expected: the schema of the model that it is for; without it, any.

    Raises:
        ParametersError: no header as Konsil writes it, or another size than the header says.
        SchemaMismatch: the model is another than the file's.
    """
    data = sealed.data
    header_bytes = _PREFIX_BYTES + int.from_bytes(data[:_PREFIX_BYTES], "little")
    if header_bytes > min(len(data), MAX_HEADER_BYTES):
        raise _wrong_size(f"{len(data)} bytes cannot hold a header of {header_bytes}")
    header = bytes(data[:header_bytes])  # a view would keep the mapping while an error is looked at
    if expected is None or header != expected.header:
        schema = Schema.from_header(header)
        if expected is not None:
            schema.require_same(expected)  # what comes is the study's: the model here is what differs
    else:
        schema = expected
    if len(data) - header_bytes != schema.data_bytes:
        raise _wrong_size(
            f"{len(data) - header_bytes} bytes of data where its header says {schema.data_bytes}"
        )
    return schema, data[header_bytes:]


def _pieces(schema: Schema, arrays: Mapping[str, NDArray[Any]]) -> Iterator[memoryview | bytes]:
    yield schema.header
    for tensor, start in zip(schema.tensors, schema.offsets, strict=False):
        if not tensor.elements:
            continue
        flat = np.ascontiguousarray(arrays[tensor.name], ARRAY_DTYPES[tensor.dtype]).reshape(-1)
        values = flat.view(np.uint8).data
        check_finite(schema, values, start)
        yield values
        del flat, values  # before the next is made


def _wrong_size(what: str) -> ParametersError:
    return ParametersError(
        f"The parameters that came over the wall have a wrong length: {what}.",
        safe="Nothing was merged or loaded.",
        do="Training process and node must run the same version of Konsil.",
    )
