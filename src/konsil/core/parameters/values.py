"""The values of named arrays: copied into their layout, seen in it, checked, and read from foreign files."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer
from konsil.core.parameters.schema import (
    ARRAY_DTYPES,
    MAX_DATA_BYTES,
    MAX_DIMENSIONS,
    METADATA,
    PREFIX_BYTES,
    Entry,
    Schema,
    malformed_header,
    shown_name,
)
from konsil.errors import NonFinite, ParametersError

LARGEST_F64 = 2.0**400
"""A 64-bit value from here on (2.6e120) is refused like an infinity. No model has one, and without them
squares and sums over a trillion of them stay finite: one hostile value cannot spoil a merge."""

MAX_FILE_HEADER_BYTES = 100_000_000
"""The longest header of a file, as the safetensors library has it: a model's card may stand in it."""

OTHER_DTYPES = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
"""Dtypes that files hold and that are never merged -> how numpy sees them."""

_BITS = {"F64": ("<u8", 63), "F32": ("<u4", 31), "BF16": ("<u2", 15), "F16": ("<u2", 15)}
_REFUSED_FROM = {
    "F64": int(np.array(LARGEST_F64, "<f8").view("<u8")), "F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00,
}  # fmt: skip
_FINITE_BLOCK_BYTES = 256 * 1024
_raw_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry = msgspec.json.Decoder(Entry)


def pack(schema: Schema, arrays: Mapping[str, NDArray[Any]], out: memoryview) -> None:
    """Copy named arrays into the memory of a data section.

    Args:
        schema: the layout. Where it says BF16, an array is bfloat16 or uint16 bits of it.
        arrays: exactly the schema's names, dtypes and shapes; any contiguity and byte order.
        out: ``schema.data_bytes`` writable bytes.

    Raises:
        SchemaMismatch: the arrays are not the schema's.
        ParametersError: ``out`` has another length.
    """
    bits = {tensor.name for tensor in schema.tensors if tensor.dtype == "BF16"}
    schema.require_same(Schema.of(arrays, bits))
    for name, target in views(schema, out).items():
        array = arrays[name]
        np.copyto(target, array.view(np.uint16) if name in bits and array.dtype.kind != "u" else array)


def views(schema: Schema, data: Buffer) -> dict[str, NDArray[Any]]:
    """The named arrays in a data section, without a copy; read-only where the memory is.

    BF16 comes as uint16 arrays of its bits: numpy has no bfloat16.

    Raises:
        ParametersError: the data has another length than the schema says.
    """
    _require_length(schema.data_bytes, data)
    return {
        tensor.name: np.ndarray(tensor.shape, ARRAY_DTYPES[tensor.dtype], buffer=data, offset=start)
        for tensor, start in zip(schema.tensors, schema.offsets, strict=False)
    }


def check_finite(schema: Schema, data: Buffer, start: int = 0) -> None:
    """See that there is no NaN, no infinity and no absurd 64-bit value (``LARGEST_F64``).

    Args:
        schema: the layout.
        data: the data section, or an element-aligned range of it, e.g. a chunk.
        start: where the range starts in the data section, in bytes.

    Raises:
        NonFinite: the first bad value, by its tensor's name and flat index.
        ParametersError: the range does not fit the schema.
    """
    for dtype, first, last in schema.runs(start, start + len(data)):
        kind, sign_bit = _BITS[dtype]
        bits = np.frombuffer(data, kind, (last - first) // np.dtype(kind).itemsize, first)
        block = _FINITE_BLOCK_BYTES // bits.itemsize
        scratch = np.empty(min(block, bits.size), kind)
        magnitude = (1 << sign_bit) - 1
        for at in range(0, bits.size, block):
            part = bits[at : at + block]
            # Without the sign, IEEE 754 values are in the order of their bits; NaN is above infinity.
            found = np.bitwise_and(part, magnitude, out=scratch[: part.size])
            if found.max() >= _REFUSED_FROM[dtype]:
                index = at + int(np.argmax(found >= _REFUSED_FROM[dtype]))
                value = _value(dtype, bits[index : index + 1])
                raise _non_finite(schema, start + first + index * bits.itemsize, value)


def read_safetensors(data: Buffer) -> dict[str, NDArray[Any]]:
    """The arrays of any safetensors file, without a copy: any order, metadata, integers, booleans.

    BF16 comes as uint16 arrays of its bits. Such arrays may be handed to ``Schema.of`` (without the
    integers) and ``pack``.

    Raises:
        ParametersError: not a safetensors file, or one with a dtype that numpy lacks, by name.
    """
    header_bytes = int.from_bytes(data[:PREFIX_BYTES], "little")
    begin = PREFIX_BYTES + header_bytes
    if header_bytes > MAX_FILE_HEADER_BYTES or begin > len(data):
        raise malformed_header("its length is not what its first 8 bytes say")
    try:
        raw = _raw_entries.decode(data[PREFIX_BYTES:begin])
        entries = {name: _entry.decode(entry) for name, entry in raw.items() if name != METADATA}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed_header(str(error)) from error
    dtypes = {**ARRAY_DTYPES, **{code: np.dtype(kind) for code, kind in OTHER_DTYPES.items()}}
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in dtypes:
            raise ParametersError(
                f"Tensor {shown_name(name)} is {entry.dtype[:20]}, which cannot be read here."
            )
        dtype, (start, stop) = dtypes[entry.dtype], entry.data_offsets
        # numpy multiplies the sizes of an empty array, too, leaving out the zeros.
        reach = math.prod(size for size in entry.shape if size) if len(entry.shape) <= MAX_DIMENSIONS else -1
        if not 0 < reach <= MAX_DATA_BYTES or stop - start != math.prod(entry.shape) * dtype.itemsize:
            raise malformed_header(f"the shape of {shown_name(name)} does not fit its bytes")
        if start != at or begin + stop > len(data):
            raise malformed_header(
                f"{shown_name(name)} overlaps another tensor, leaves a hole, or is cut short"
            )
        arrays[name] = np.ndarray(entry.shape, dtype, buffer=data, offset=begin + start)
        at = stop
    if begin + at != len(data):
        raise malformed_header("bytes follow its last tensor")
    return arrays


def _require_length(expected: int, data: Buffer) -> None:
    if len(data) != expected:
        raise ParametersError(
            f"The parameters have {len(data)} bytes where their schema says {expected}.",
            safe="Nothing was merged or loaded.",
            do="The bytes were cut short, or belong to another model.",
        )


def _value(dtype: str, bits: NDArray[Any]) -> float:
    """One value from its bits."""
    if dtype == "BF16":
        return float((bits.astype("<u4") << 16).view("<f4")[0])
    return float(bits.view(ARRAY_DTYPES[dtype])[0])


def _non_finite(schema: Schema, offset: int, value: float) -> NonFinite:
    """The error for a value at an offset of the data section."""
    number = bisect_right(schema.offsets, offset) - 1
    tensor = schema.tensors[number]
    index = (offset - schema.offsets[number]) // ARRAY_DTYPES[tensor.dtype].itemsize
    problem = f"{value}" if not math.isfinite(value) else f"{value:.3g}, which no model can mean"
    return NonFinite(
        f"Tensor {shown_name(tensor.name)}, shape {tensor.shape}, holds at flat index {index} the value "
        f"{problem}.",
        safe="Nothing was merged; the model before this update is untouched.",
        do="Lower the learning rate, clip gradients, or look for a division by zero in the loss.",
        name=tensor.name,
        index=index,
        value=value,
    )
