"""safetensors files with metadata beside the tensors: a model and its card, a training's local state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer
from konsil.core.parameters.schema import METADATA, PREFIX_BYTES, Entry, Schema, malformed_header, shown_name
from konsil.core.parameters.values import MAX_FILE_HEADER_BYTES, OTHER_DTYPES
from konsil.errors import ParametersError

_CODES = {np.dtype(kind): code for code, kind in OTHER_DTYPES.items()} | {
    np.dtype("<f8"): "F64",
    np.dtype("<f4"): "F32",
    np.dtype("<f2"): "F16",
}
_raw_entries = msgspec.json.Decoder(dict[str, msgspec.Raw])
_texts = msgspec.json.Decoder(dict[str, str])
_entry = msgspec.json.Decoder(Entry)


def annotated_header(schema: Schema, metadata: Mapping[str, str]) -> bytes:
    """The header of a model file with metadata; the data that follows it is that of the bare schema.

    Raises:
        ParametersError: it is longer than any reader takes.
    """
    entries: dict[str, object] = {METADATA: dict(metadata)}
    for tensor, (start, stop) in zip(schema.tensors, pairwise(schema.offsets), strict=True):
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (start, stop),
        }
    return _header(entries)


def header_of_file(data: Buffer) -> tuple[dict[str, Entry], dict[str, str], int]:
    """What a safetensors file of a stranger says of itself.

    Returns:
        Its tensors by name, its metadata, and where its data begins.

    Raises:
        ParametersError: not such a file.
    """
    size = int.from_bytes(data[:PREFIX_BYTES], "little")
    begin = PREFIX_BYTES + size
    if size > MAX_FILE_HEADER_BYTES or begin > len(data):
        raise malformed_header("its length is not what its first 8 bytes say")
    try:
        raw = _raw_entries.decode(bytes(data[PREFIX_BYTES:begin]))
        metadata = _texts.decode(raw.pop(METADATA, msgspec.Raw(b"{}")))
        entries = {name: _entry.decode(entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed_header(str(error)) from error
    return entries, metadata, begin


def file_pieces(
    arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """A safetensors file of any arrays that ``read_safetensors`` reads, piece by piece; one copy at most.

    Raises:
        ParametersError: an array of a dtype that such a file cannot hold, by name.
    """
    entries: dict[str, object] = {METADATA: dict(metadata)}
    held: list[NDArray[Any]] = []
    at = 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        little = array.dtype.newbyteorder("<")
        code = _CODES.get(little)
        if code is None:
            raise ParametersError(
                f"{shown_name(name)} is of dtype {array.dtype}, which a safetensors file cannot hold.",
                safe="Nothing was written.",
                do="Leave it out of what the learner gives.",
            )
        flat = np.ascontiguousarray(array, little).reshape(-1)
        entries[name] = {"dtype": code, "shape": array.shape, "data_offsets": (at, at + flat.nbytes)}
        at += flat.nbytes
        held.append(flat)
    yield _header(entries)
    for flat in held:
        if flat.size:
            yield flat.view(np.uint8).data


def _header(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    if len(text) > MAX_FILE_HEADER_BYTES:
        raise ParametersError(
            f"The file's header would have {len(text)} bytes, over the limit of {MAX_FILE_HEADER_BYTES}.",
            safe="Nothing was written.",
            do="It names too many tensors, or a study with too many rounds.",
        )
    return len(text).to_bytes(PREFIX_BYTES, "little") + text
