"""A model as a file: its parameters as safetensors, its card in the metadata, a page for people beside it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

from konsil.core.digest import CHUNK_BYTES, chunk_count, group_digest, leaf, root_from
from konsil.core.model_card import CARD_KEY, ModelCard, decode_card
from konsil.core.parameters import (
    MAX_FILE_HEADER_BYTES,
    PREFIX_BYTES,
    Schema,
    Tensor,
    annotated_header,
    header_of_file,
)
from konsil.errors import ConfigError, DigestMismatch, ParametersError
from konsil.files import BY_UMASK, write_whole
from konsil.wall.layout import read_arrays
from konsil.wall.memory import SealedMemory
from konsil.wall.model_page import page_of

PAGE_SUFFIX = ".card.md"


@dataclass(frozen=True)
class ModelFile:
    """A file that was looked into. ``digest``: of the arrays that are in it now."""

    card: ModelCard
    digest: str


def page_path(path: Path) -> Path:
    """Where the page that goes with a model file is: beside it."""
    return path.with_suffix(PAGE_SUFFIX)


def write_model_file(path: Path, memory: SealedMemory, card: bytes) -> ModelCard:
    """Write a model and its card, and the page beside it: each whole, or not at all.

    Args:
        path: where; an older file there is replaced.
        memory: the model as it came over the wall.
        card: its card as JSON.

    Raises:
        ConfigError: it cannot be written there.
        ParametersError: model or card are not as the node must send them.
    """
    schema, data = read_arrays(memory)
    read = decode_card(card)
    header = annotated_header(schema, {CARD_KEY: bytes(card).decode()})
    try:
        write_whole(path, (header, data), mode=BY_UMASK)
        write_whole(page_path(path), (page_of(read, path.name).encode(),), mode=BY_UMASK)
    except OSError as error:
        raise ConfigError(
            f"The model cannot be written to {path}: {error.strerror}.",
            safe="Nothing was left half written there.",
            do="Name another place.",
        ) from error
    return read


def bare_header(stream: BinaryIO) -> bytes:
    """The header at a file's beginning as Konsil's one form has it: without metadata. Reads no further.

    What cannot be made so comes back as it is: whoever takes it says what is wrong.
    """
    prefix = stream.read(PREFIX_BYTES)
    size = int.from_bytes(prefix, "little")
    raw = prefix + stream.read(min(size, MAX_FILE_HEADER_BYTES))
    try:
        entries, metadata, _ = header_of_file(raw)
        schema = Schema.of_tensors(Tensor(name, entry.dtype, entry.shape) for name, entry in entries.items())
    except ParametersError:
        return raw
    lies = [entries[tensor.name].data_offsets for tensor in schema.tensors]
    return schema.header if metadata and lies == list(pairwise(schema.offsets)) else raw


def check_model_file(path: Path) -> ModelFile:
    """Compute a file's digest again from its arrays, and see that it is the one that its card names.

    Nothing else is needed: no node, no network.

    Raises:
        ConfigError: it cannot be read.
        ParametersError: it is no model file, or has no card.
        DigestMismatch: the arrays are not those of the card.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            try:
                return _checked(path, view)
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The model {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            safe="Nothing was changed.",
            do="Give the path of a file that `konsil study model` wrote.",
        ) from error


def _checked(path: Path, data: memoryview) -> ModelFile:
    entries, metadata, begin = header_of_file(data)
    if CARD_KEY not in metadata:
        raise ParametersError(
            f"{path} has no model card.",
            safe="Nothing was changed.",
            do="Get the model again: `konsil study model NAME --out FILE`, or `swarm.save(FILE)`.",
        )
    card = decode_card(metadata[CARD_KEY])
    # Another program may have saved it again in another order: the arrays count, not where they lie.
    tensors = [Tensor(name, entry.dtype, entry.shape) for name, entry in entries.items()]
    schema = Schema.of_tensors(tensors)
    if schema.digest != card.schema or chunk_count(schema.data_bytes) != sum(card.groups):
        raise _other(path, card, "names, dtypes or shapes of its arrays differ")
    runs = []
    for tensor in schema.tensors:
        start, stop = entries[tensor.name].data_offsets
        if stop - start != tensor.data_bytes or begin + stop > len(data):
            raise _misfit(path)
        runs.append((begin + start, begin + stop))
    # Else a small file with many names for the same bytes would be digested for hours.
    if any(
        start < before for (_, before), (start, _) in pairwise(sorted(run for run in runs if run[0] < run[1]))
    ):
        raise _misfit(path)
    leaves = [leaf(chunk) for chunk in _chunks(data, runs)]
    ends = accumulate(card.groups)
    groups = [group_digest(leaves[end - count : end]) for end, count in zip(ends, card.groups, strict=True)]
    digest = root_from(schema.digest, groups)
    if digest != card.digest:
        raise _other(path, card, f"their digest is {digest}")
    return ModelFile(card, digest)


def _chunks(data: memoryview, runs: Sequence[tuple[int, int]]) -> Iterator[bytes | memoryview]:
    """The data section in the order of the layout, cut as it is digested; in place where it lies so."""
    joined: list[tuple[int, int]] = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif start < stop:
            joined.append((start, stop))
    if len(joined) == 1:
        start, stop = joined[0]
        for at in range(start, stop, CHUNK_BYTES):
            with data[at : min(at + CHUNK_BYTES, stop)] as chunk:
                yield chunk
        return
    waiting = bytearray()
    for start, stop in joined:
        at = start
        while at < stop:
            take = min(stop - at, CHUNK_BYTES - len(waiting))
            waiting += data[at : at + take]
            at += take
            if len(waiting) == CHUNK_BYTES:
                yield bytes(waiting)
                waiting.clear()
    if waiting:
        yield bytes(waiting)


def _misfit(path: Path) -> ParametersError:
    return ParametersError(
        f"{path} is cut short, its arrays overlap, or its header does not fit its data.",
        safe="Nothing was changed.",
        do="Do not use it. Get it again from any member: `konsil study model`.",
    )


def _other(path: Path, card: ModelCard, why: str) -> DigestMismatch:
    return DigestMismatch(
        f"{path} is not the model of round {card.round} of study '{card.study}' that its card names: {why};"
        f" the card says {card.digest}.",
        safe="Nothing was changed.",
        do="Do not use it. Get it again from any member: `konsil study model`.",
        digest=card.digest,
    )
