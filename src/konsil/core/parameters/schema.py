"""Which arrays a study merges, and where they lie: a safetensors header that has only one form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Buffer, Digest, schema_digest
from konsil.core.parameters.marks import differing_marks, is_mark
from konsil.errors import ParametersError, SchemaMismatch

MAX_HEADER_BYTES = 8 * 1024 * 1024
"""About 80,000 named tensors: more than any model has. Half of the room that a manifest has."""

MAX_DATA_BYTES = 1 << 40
"""1 TiB: what the leaves in the other half of a manifest can stand for."""

PREFIX_BYTES = 8
"""A header begins with the length of what follows, 64 bits, little-endian."""

METADATA = "__metadata__"
"""The one name in a header that is no tensor's."""

MAX_DIMENSIONS = 32
"""The least that the numpy versions we run with can hold."""

ARRAY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
}
"""Dtypes that are merged -> how numpy sees them (bfloat16 as its bits), in the order of the layout."""

Run = tuple[str, int, int]
"""Elements of one dtype side by side: dtype, start and stop in bytes."""

_RANK = {code: rank for rank, code in enumerate(ARRAY_DTYPES)}
_CODES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_DIFFERENCES_SHOWN = 5
_NAME_SHOWN = 80
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs: names go into headers, messages and reports."""

_TELL = "The bytes come from another program than Konsil; compare versions: `konsil doctor`."

_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_DATA_BYTES)]


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor in a header, as JSON has it."""

    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


_entries = msgspec.json.Decoder(dict[str, Entry])


@dataclass(frozen=True)
class Tensor:
    """A named array without its values. ``dtype``: F64, F32, BF16 or F16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many values; 1 for a scalar, 0 for an empty array."""
        return math.prod(self.shape)

    @property
    def data_bytes(self) -> int:
        """How many bytes the values take."""
        return self.elements * ARRAY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Schema:
    """Which arrays a study merges. ``tensors``: in the order of the layout.

    Raises:
        ParametersError: a dtype, name or size that cannot be merged, another order, or nothing to merge.
    """

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for tensor in self.tensors:
            _check(tensor)
        keys = [_place(tensor) for tensor in self.tensors]
        if keys != sorted(keys):
            raise ParametersError("The tensors are not in the order of the layout.", do=_TELL)
        if len({tensor.name for tensor in self.tensors}) != len(keys):
            raise ParametersError("Two tensors have one name.", do=_TELL)
        if not 0 < self.data_bytes <= MAX_DATA_BYTES:
            raise ParametersError(
                f"There are {self.data_bytes} bytes of parameters; it must be 1 to {MAX_DATA_BYTES}.",
                do="Check the study's `local` patterns and what the learner hands over.",
            )
        if len(self.header) > MAX_HEADER_BYTES:
            raise ParametersError(
                f"The header of {len(self.header)} bytes is over the limit of {MAX_HEADER_BYTES}.",
                do="Use fewer tensors or shorter names.",
            )

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], bf16: Collection[str] = ()) -> Schema:
        """The schema of named arrays.

        Args:
            arrays: name -> array of any shape, contiguity and byte order.
            bf16: names of uint16 arrays that hold the bits of bfloat16 values.

        Raises:
            ParametersError: an array that cannot be merged, by name, or nothing to merge.
        """
        tensors = [
            Tensor(name, _code(array, is_bf16=name in bf16), array.shape) for name, array in arrays.items()
        ]
        return cls.of_tensors(tensors)

    @classmethod
    def of_tensors(cls, tensors: Iterable[Tensor]) -> Schema:
        """The schema of tensors that come in any order.

        Raises:
            ParametersError: one that cannot be merged, by name, or nothing to merge.
        """
        found = list(tensors)
        for tensor in found:
            _check(tensor)  # before the order, which knows only dtypes that are merged
        return cls(tuple(sorted(found, key=_place)))

    @classmethod
    def from_header(cls, data: Buffer) -> Schema:
        """Bytes of a stranger as a schema: only Konsil's canonical header passes.

        Raises:
            ParametersError: over the limits, not a header, a dtype that is not merged, or any other layout
                than ours (holes, overlaps, another order, metadata).
        """
        if len(data) > MAX_HEADER_BYTES:
            raise malformed_header(f"{len(data)} bytes are over the limit of {MAX_HEADER_BYTES}")
        raw = bytes(data)
        if int.from_bytes(raw[:PREFIX_BYTES], "little") != len(raw) - PREFIX_BYTES:
            raise malformed_header("its length is not what its first 8 bytes say")
        try:
            entries = _entries.decode(raw[PREFIX_BYTES:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise malformed_header(str(error)) from error
        schema = cls(tuple(Tensor(name, entry.dtype, entry.shape) for name, entry in entries.items()))
        if schema.header != raw:
            raise malformed_header("offsets, spaces or names are not as Konsil writes them")
        return schema

    @cached_property
    def header(self) -> bytes:
        """The safetensors header, with its 8 bytes of length; the data follows it in a file."""
        entries = {
            tensor.name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, stop)}
            for tensor, (start, stop) in zip(self.tensors, pairwise(self.offsets), strict=True)
        }
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % PREFIX_BYTES)
        return len(text).to_bytes(PREFIX_BYTES, "little") + text

    @cached_property
    def digest(self) -> Digest:
        """The digest of the header: what the ledger knows of the schema."""
        return schema_digest(self.header)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor starts in the data section, in bytes, and where the last one stops."""
        offsets = [0]
        for tensor in self.tensors:
            offsets.append(offsets[-1] + tensor.data_bytes)
        return tuple(offsets)

    @property
    def data_bytes(self) -> int:
        """The length of the data section."""
        return self.offsets[-1]

    @cached_property
    def _dtype_runs(self) -> tuple[Run, ...]:
        """The whole data section as at most one run a dtype."""
        runs: list[Run] = []
        for tensor, (start, stop) in zip(self.tensors, pairwise(self.offsets), strict=True):
            if start == stop:
                continue
            if runs and runs[-1][0] == tensor.dtype:
                runs[-1] = (tensor.dtype, runs[-1][1], stop)
            else:
                runs.append((tensor.dtype, start, stop))
        return tuple(runs)

    def runs(self, start: int, stop: int) -> list[Run]:
        """The dtypes in a byte range of the data section, e.g. a chunk.

        Returns:
            Dtype, start and stop of each run, in bytes *counted from* ``start``: offsets into the chunk.

        Raises:
            ParametersError: the range is outside of the data section or cuts an element in two.
        """
        if not 0 <= start <= stop <= self.data_bytes:
            raise ParametersError(f"Bytes {start} to {stop} are outside of {self.data_bytes} bytes of data.")
        runs: list[Run] = []
        for dtype, first, last in self._dtype_runs:
            begin, end = max(first, start), min(last, stop)
            if begin >= end:
                continue
            if (begin - first) % ARRAY_DTYPES[dtype].itemsize or (end - first) % ARRAY_DTYPES[dtype].itemsize:
                raise ParametersError(f"Bytes {start} to {stop} cut an element in two.")
            runs.append((dtype, begin - start, end - start))
        return runs

    def differences(self, other: Schema) -> list[str]:
        """What is different in another schema, in sentences, by the tensors' names; empty if equal."""
        ours = {tensor.name: tensor for tensor in self.tensors}
        theirs = {tensor.name: tensor for tensor in other.tensors}
        first = differing_marks(ours, theirs)
        ours, theirs = _without_marks(ours), _without_marks(theirs)
        found = [f"{shown_name(name)} is missing." for name in ours if name not in theirs]
        found += [f"{shown_name(name)} is not expected." for name in theirs if name not in ours]
        for name in ours.keys() & theirs.keys():
            mine, its = ours[name], theirs[name]
            if mine.dtype != its.dtype:
                found.append(f"{shown_name(name)} is {its.dtype} instead of {mine.dtype}.")
            if mine.shape != its.shape:
                found.append(f"{shown_name(name)} has shape {its.shape} instead of {mine.shape}.")
        return first + sorted(found)

    def require_same(self, other: Schema) -> None:
        """See that another schema is this one.

        Raises:
            SchemaMismatch: it is not; the message names the first tensors that differ.
        """
        if self.tensors == other.tensors:
            return
        found = self.differences(other)
        more = f" And {len(found) - _DIFFERENCES_SHOWN} more." if len(found) > _DIFFERENCES_SHOWN else ""
        raise SchemaMismatch(
            f"The parameters are not those of the study: {' '.join(found[:_DIFFERENCES_SHOWN])}{more}",
            safe="Nothing was merged or loaded.",
            do="Build the model exactly as the study says, or keep what is your own local with `local`.",
            differences=found,
        )


def _place(tensor: Tensor) -> tuple[int, str]:
    return _RANK[tensor.dtype], tensor.name


def _without_marks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not is_mark(name)}


def shown_name(name: str) -> str:
    """A name as it may stand in a message."""
    return repr(name if len(name) <= _NAME_SHOWN else name[: _NAME_SHOWN - 3] + "...")


def _code(array: NDArray[Any], *, is_bf16: bool) -> str:
    """The dtype of an array as safetensors names it."""
    if is_bf16 and array.dtype == np.uint16:
        return "BF16"
    return _CODES.get(array.dtype.name, str(array.dtype))


def _check(tensor: Tensor) -> None:
    """See that a tensor can be merged and its name be written and read."""
    if tensor.dtype not in ARRAY_DTYPES:
        raise ParametersError(
            f"Tensor {shown_name(tensor.name)} is {tensor.dtype[:20]}; "
            f"only {', '.join(ARRAY_DTYPES)} are merged.",
            safe="Nothing was merged or loaded.",
            do="Keep it local with a pattern in the study's `local`, or let the learner leave it out.",
            name=tensor.name,
            dtype=tensor.dtype,
        )
    if _UNFIT.search(tensor.name) or tensor.name in {"", METADATA}:
        raise ParametersError(
            f"{shown_name(tensor.name)} cannot be the name of a tensor.", do="Give it another name."
        )
    # numpy multiplies the sizes of an empty array, too, leaving out the zeros.
    reach = math.prod(size for size in tensor.shape if size) if len(tensor.shape) <= MAX_DIMENSIONS else -1
    if not 0 < reach <= MAX_DATA_BYTES:
        raise ParametersError(
            f"Tensor {shown_name(tensor.name)} has {len(tensor.shape)} dimensions and {reach} elements.",
            do=f"At most {MAX_DIMENSIONS} dimensions and {MAX_DATA_BYTES} bytes can be merged.",
        )


def malformed_header(why: str) -> ParametersError:
    """The error for bytes that are no header."""
    return ParametersError(
        f"The header of the parameters cannot be read: {why}.",
        safe="Nothing was taken from it.",
        do=_TELL,
    )
