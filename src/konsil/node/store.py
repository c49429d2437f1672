"""What this node can serve: models and parts in memory, found by their digest."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from konsil.core.digest import Manifest, chunk_count, chunk_range, leaf
from konsil.core.parameters import Schema
from konsil.errors import NodeError, SchemaMismatch
from konsil.wall.memory import SealedMemory, make_writable, seal_written


@dataclass(frozen=True)
class Model:
    """Parameters in sealed memory (safetensors layout), with the digests that prove them."""

    schema: Schema
    manifest: Manifest
    memory: SealedMemory

    @property
    def digest(self) -> str:
        """The root over header and leaves."""
        return self.manifest.digest

    def data(self) -> memoryview:
        """The data section, read only."""
        return self.memory.data[len(self.schema.header) :]

    def chunk(self, index: int) -> memoryview:
        """One chunk of the data section, in place."""
        start, stop = chunk_range(index, self.schema.data_bytes)
        return self.data()[start:stop]


def model_of(memory: SealedMemory, schema: Schema) -> Model:
    """A training process's parameters as a model of one group: reads and digests every byte once.

    Raises:
        SchemaMismatch: another header or length than the schema's.
    """
    header = schema.header
    if memory.size_bytes != len(header) + schema.data_bytes or memory.data[: len(header)] != header:
        raise SchemaMismatch(
            f"The parameters hold {memory.size_bytes} bytes; the study's schema needs "
            f"{len(header) + schema.data_bytes} with the same names, dtypes and shapes.",
            safe="Nothing was committed; accepted rounds are safe.",
            do="Build the model as the study's other members do; see `konsil doctor --model FILE`.",
        )
    data = memory.data[len(header) :]
    leaves = tuple(leaf(data[slice(*chunk_range(i, schema.data_bytes))]) for i in _chunks(schema))
    return Model(schema, Manifest(header, (leaves,)), memory)


def _chunks(schema: Schema) -> range:
    return range(chunk_count(schema.data_bytes))


class Assembly:
    """Memory in which a model is put together chunk by chunk, in any order, then sealed.

    Chunks are received or merged straight into it. What is served before it is sealed is copied, so
    that no view into the writable mapping is left when the seal is set.
    """

    def __init__(self, schema: Schema) -> None:
        """Reserve memory for a whole model."""
        self.schema = schema
        self.size_bytes = len(schema.header) + schema.data_bytes
        self._fd = make_writable(self.size_bytes)
        self._map: mmap.mmap | None = mmap.mmap(self._fd, self.size_bytes)
        self._map[: len(schema.header)] = schema.header
        self._model: Model | None = None

    def chunk(self, index: int) -> memoryview:
        """Where a chunk belongs; the caller releases the view."""
        if self._map is None:
            raise NodeError(
                "The round of this merge went on without it.",
                safe="Nothing is lost.",
                do="The accepted merge is fetched whole.",
            )
        offset = len(self.schema.header)
        start, stop = chunk_range(index, self.schema.data_bytes)
        with memoryview(self._map) as whole:
            return whole[offset + start : offset + stop]

    def whole(self) -> memoryview:
        """Where the whole data section belongs; the caller releases the view."""
        if self._map is None:
            raise NodeError(
                "These parameters were sealed or given back already.", safe="Nothing was written."
            )
        with memoryview(self._map) as whole:
            return whole[len(self.schema.header) :]

    def read(self, index: int) -> memoryview | bytes:
        """A chunk for a peer: a copy until the model is sealed, in place from then on."""
        if self._model is not None:
            return self._model.chunk(index)
        with self.chunk(index) as view:
            return bytes(view)

    def seal(self, groups: Sequence[Sequence[bytes]]) -> Model:
        """End writing: from here on the bytes are those behind these leaves, for ever."""
        if self._map is not None:
            self._map.close()
            self._map = None
        fd, self._fd = self._fd, -1
        memory = seal_written(fd, self.size_bytes)
        manifest = Manifest(self.schema.header, tuple(tuple(group) for group in groups))
        self._model = Model(self.schema, manifest, memory)
        return self._model

    def close(self) -> None:
        """Give the memory back, unless it was sealed into a model.

        A chunk that is still being received or merged keeps the memory until its view is gone.
        """
        mapping, self._map = self._map, None
        if mapping is not None:
            with contextlib.suppress(BufferError):
                mapping.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Slice:
    """A run of chunks under its group digest: a merge's part, in an assembly or in a whole model."""

    leaves: tuple[bytes, ...]
    first_chunk: int
    source: Assembly | Model

    def chunk(self, index: int) -> memoryview | bytes:
        """The part's chunk number ``index``, counted from the part's first."""
        if isinstance(self.source, Assembly):
            return self.source.read(self.first_chunk + index)
        return self.source.chunk(self.first_chunk + index)


class Store:
    """What this node serves of one study, by digest."""

    def __init__(self) -> None:
        """Start empty."""
        self._models: dict[str, Model] = {}
        self._parts: dict[str, Slice] = {}

    def add_model(self, model: Model) -> None:
        """Serve a model by its root digest, and each of its groups by its group digest."""
        known = self._models.get(model.digest)
        if known is not None and known is not model:
            model.memory.close()
            return
        self._models[model.digest] = model
        first = 0
        for digest, leaves in zip(model.manifest.group_digests, model.manifest.groups, strict=True):
            self._parts[digest] = Slice(leaves, first, model)
            first += len(leaves)

    def add_part(self, digest: str, part: Slice) -> None:
        """Serve a part that is not yet in a whole model."""
        self._parts.setdefault(digest, part)

    def model(self, digest: str) -> Model | None:
        """The model behind a root digest, if it is here."""
        return self._models.get(digest)

    def part(self, digest: str) -> Slice | None:
        """The part behind a group digest, if it is here."""
        return self._parts.get(digest)

    def manifest(self, digest: str) -> bytes | None:
        """The encoded manifest behind a digest: of a model, or of a part (without a header)."""
        if digest in self._models:
            return self._models[digest].manifest.encode()
        if digest in self._parts:
            return Manifest(b"", (self._parts[digest].leaves,)).encode()
        return None

    def chunk(self, digest: str, index: int) -> memoryview | bytes | None:
        """A chunk behind a digest; None if it is not here or has no such chunk."""
        if digest in self._models:
            model = self._models[digest]
            return model.chunk(index) if 0 <= index < len(model.manifest.leaves) else None
        if digest in self._parts:
            part = self._parts[digest]
            return part.chunk(index) if 0 <= index < len(part.leaves) else None
        return None

    def keep_only(self, models: Iterable[str], assembly: Assembly | None = None) -> None:
        """Forget every model that is not named, and every part that lies in none of what is kept."""
        kept = set(models)
        for digest in set(self._models) - kept:
            self._models.pop(digest).memory.close()
        alive = {id(source) for source in (*self._models.values(), assembly)}
        self._parts = {digest: part for digest, part in self._parts.items() if id(part.source) in alive}

    def close(self) -> None:
        """Give all memory back."""
        self.keep_only(())
