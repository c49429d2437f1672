"""What this node can serve: models and parts in memory, found by their digest."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from konsil.core.digest import Manifest, check_leaf, chunk_count, chunk_range, leaf
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

    def reader(self) -> Callable[[int, int], memoryview]:
        """What gives bytes of the data section, in place: they stay for as long as it does."""
        data = self.data()
        return lambda start, stop: data[start:stop]

    def chunk(self, index: int) -> memoryview:
        """One chunk of the data section, in place."""
        start, stop = chunk_range(index, self.schema.data_bytes)
        return self.data()[start:stop]

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()


class StoredModel:
    """Parameters in a file of this node: read where they are asked for, so that they take no memory.

    Read with ``pread``, not mapped: where a disk fails, that is an error and not the end of the process.
    """

    def __init__(self, manifest: Manifest, fd: int) -> None:
        """Take over a descriptor that is open for reading."""
        self.manifest = manifest
        self.schema = Schema.from_header(manifest.header)
        self._fd = fd

    @property
    def digest(self) -> str:
        """The root over header and leaves."""
        return self.manifest.digest

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the data section.

        Raises:
            NodeError: the disk refuses, or the file was cut short.
        """
        try:
            data = os.pread(self._fd, stop - start, len(self.schema.header) + start)
        except OSError as error:
            raise _cannot_read(self.digest, str(error.strerror)) from error
        if len(data) != stop - start:
            raise _cannot_read(self.digest, "it was cut short")
        return data

    def reader(self) -> Callable[[int, int], bytes]:
        """What gives bytes of the data section, as ``Model.reader``."""
        return self.read

    def chunk(self, index: int) -> bytes:
        """One chunk of the data section."""
        return self.read(*chunk_range(index, self.schema.data_bytes))

    def check(self) -> None:
        """See that every byte is what the digest says.

        Raises:
            DigestMismatch: a chunk is another.
            NodeError: the disk refuses.
        """
        for index, expected in enumerate(self.manifest.leaves):
            check_leaf(self.chunk(index), expected, index=index, digest=self.digest)

    def close(self) -> None:
        """Give the descriptor back. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _cannot_read(digest: str, why: str) -> NodeError:
    return NodeError(
        f"What is behind {digest[:12]} cannot be read from this node's disk: {why}.",
        safe="The other members hold it.",
        do="Check the disk. It is fetched from a peer.",
    )


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
            raise _given_back()
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
        """End writing: from here on the bytes are those behind these leaves, for ever.

        Raises:
            NodeError: it was given back meanwhile.
        """
        if self._map is None:
            raise _given_back()
        self._map.close()
        self._map = None
        memory = seal_written(self._fd, self.size_bytes)
        self._fd = -1
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


def _given_back() -> NodeError:
    return NodeError(
        "The round of this merge went on without it.",
        safe="Nothing is lost.",
        do="The accepted merge is fetched whole.",
    )


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
        self._stored: dict[str, StoredModel] = {}
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

    def put_aside(self, stored: StoredModel) -> None:
        """Serve a model from its file from now on, and give its memory back."""
        known = self._stored.get(stored.digest)
        if known is not None and known is not stored:
            stored.close()
        self._stored.setdefault(stored.digest, stored)
        model = self._models.pop(stored.digest, None)
        if model is not None:
            model.close()
            self._parts = {digest: part for digest, part in self._parts.items() if part.source is not model}

    def stored(self, digest: str) -> StoredModel | None:
        """The file behind a root digest, if its model was put aside."""
        return self._stored.get(digest)

    def drop_stored(self, digest: str) -> None:
        """Forget a file that is damaged."""
        stored = self._stored.pop(digest, None)
        if stored is not None:
            stored.close()

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
        whole = self._models.get(digest) or self._stored.get(digest)
        if whole is not None:
            return whole.manifest.encode()
        if digest in self._parts:
            return Manifest(b"", (self._parts[digest].leaves,)).encode()
        return None

    def chunk(self, digest: str, index: int) -> memoryview | bytes | None:
        """A chunk behind a digest; None if it is not here or has no such chunk."""
        whole = self._models.get(digest) or self._stored.get(digest)
        if whole is not None:
            return whole.chunk(index) if 0 <= index < len(whole.manifest.leaves) else None
        if digest in self._parts:
            part = self._parts[digest]
            return part.chunk(index) if 0 <= index < len(part.leaves) else None
        return None

    def keep_only(self, models: Iterable[str], assembly: Assembly | None = None) -> None:
        """Forget every model that is not named, and every part that lies in none of what is kept."""
        kept = set(models)
        for digest in set(self._models) - kept:
            self._models.pop(digest).close()
        for digest in set(self._stored) - kept:
            self._stored.pop(digest).close()
        alive = {id(source) for source in (*self._models.values(), assembly)}
        self._parts = {digest: part for digest, part in self._parts.items() if id(part.source) in alive}

    def close(self) -> None:
        """Give all memory back."""
        self.keep_only(())
