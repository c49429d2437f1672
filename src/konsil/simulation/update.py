"""A model's parameters as chunks: where they lie if a chunk is in one array, else copied together once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import chunk_count, chunk_range, group_digest, leaf, root_from
from konsil.core.parameters import ARRAY_DTYPES, Schema, check_finite


@dataclass(frozen=True)
class Parcel:
    """Parameters by their digest. ``chunks``: of the data section, until somebody changes what is behind."""

    digest: str
    chunks: Sequence[memoryview]

    def copied(self) -> Parcel:
        """The same, in memory of its own."""
        return Parcel(self.digest, [memoryview(bytes(chunk)) for chunk in self.chunks])


class _Piece(NamedTuple):
    """Bytes of one tensor in a chunk: where they are in the tensor, and where in the chunk."""

    name: str
    start: int
    stop: int
    at: int


class Layout:
    """Which bytes of which tensor are in which chunk."""

    def __init__(self, schema: Schema) -> None:
        """For a study's schema."""
        self.schema = schema
        self.spans = [
            chunk_range(index, schema.data_bytes) for index in range(chunk_count(schema.data_bytes))
        ]
        self._dtypes = {tensor.name: ARRAY_DTYPES[tensor.dtype] for tensor in schema.tensors}
        self._bits = frozenset(tensor.name for tensor in schema.tensors if tensor.dtype == "BF16")
        self._pieces = [self._of(start, stop) for start, stop in self.spans]

    def _of(self, start: int, stop: int) -> list[_Piece]:
        found = []
        for tensor, first in zip(self.schema.tensors, self.schema.offsets, strict=False):
            begin, end = max(first, start), min(first + tensor.data_bytes, stop)
            if begin < end:
                found.append(_Piece(tensor.name, begin - first, end - first, begin - start))
        return found

    def room(self) -> memoryview:
        """Memory for what has to be copied; what is not written to costs nothing."""
        return np.empty(self.schema.data_bytes, np.uint8).data

    def parcel(self, arrays: Mapping[str, NDArray[Any]], room: memoryview) -> Parcel:
        """Named arrays as what a member commits: checked, in chunks, with their digest.

        Args:
            arrays: exactly the schema's names, dtypes and shapes; BF16 as uint16 bits.
            room: ``schema.data_bytes`` writable bytes.

        Raises:
            SchemaMismatch: the arrays are not the schema's.
            NonFinite: a NaN or an infinity, by its tensor's name.
        """
        self.schema.require_same(Schema.of(arrays, self._bits & arrays.keys()))
        flat = {
            name: np.ascontiguousarray(arrays[name], dtype).reshape(-1).view(np.uint8).data
            for name, dtype in self._dtypes.items()
        }
        chunks, leaves = [], []
        for (start, stop), pieces in zip(self.spans, self._pieces, strict=True):
            chunk = room[start:stop]
            if len(pieces) == 1:
                chunk = flat[pieces[0].name][pieces[0].start : pieces[0].stop]
            else:
                for piece in pieces:
                    size = piece.stop - piece.start
                    chunk[piece.at : piece.at + size] = flat[piece.name][piece.start : piece.stop]
            check_finite(self.schema, chunk, start)
            chunks.append(chunk)
            leaves.append(leaf(chunk))
        return Parcel(root_from(self.schema.digest, [group_digest(leaves)]), chunks)

    def whole(self, data: memoryview) -> list[memoryview]:
        """The chunks of a data section."""
        return [data[start:stop] for start, stop in self.spans]
