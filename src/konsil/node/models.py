"""Accepted merges on disk: what survives a node, one file a model, named by its digest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from konsil.core.digest import Manifest, chunk_range, leaf
from konsil.core.parameters import Schema
from konsil.errors import KonsilError, NodeError
from konsil.files import UNFINISHED, make_private_folder, write_whole
from konsil.node.store import Assembly, Model, StoredModel

Needed = Callable[[], Collection[str]]

T = TypeVar("T", Model, StoredModel | None)

KEPT = 2
"""The newest accepted merge and the one before it, which peers may still fetch."""

_log = structlog.get_logger(__name__)


class Models:
    """The models of one node's studies in its directory."""

    def __init__(self, directory: Path) -> None:
        """Use a directory that exists; what a killed node left half written there is removed."""
        self.directory = directory
        for path in (*directory.glob(f"*/*{UNFINISHED}"), *directory.glob("*/*.safetensors")):
            if path.suffix == UNFINISHED or not path.with_suffix(".manifest").exists():
                path.unlink(missing_ok=True)
        self._dropping = threading.Lock()
        self._saving: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def save(self, study: str, model: Model, needed: Needed = frozenset) -> None:
        """Write a model down, fsynced, unless it is there already.

        Args:
            study: its study.
            model: to be written.
            needed: gives the digests of models that must stay on disk, however old they are. It is asked,
                in a thread, when the model is written: what is needed may have changed until then.

        Raises:
            NodeError: the disk refuses.
        """
        key = study, model.digest  # two studies may begin with the same model
        if key not in self._saving:
            task = asyncio.create_task(asyncio.to_thread(self._write, study, model, needed))
            self._saving[key] = task
            task.add_done_callback(lambda _: self._saving.pop(key, None))
        await asyncio.shield(self._saving[key])

    async def close(self) -> None:
        """Let what is being written be written to its end."""
        await asyncio.gather(*self._saving.values(), return_exceptions=True)

    async def load(self, study: str, digest: str) -> Model | None:
        """A model from disk, every byte checked against its digest; None if it is not there or damaged."""
        if not digest:
            return None
        try:
            return await _kept_or_closed(self._read, study, digest)
        except FileNotFoundError:
            return None
        except (OSError, KonsilError, ValueError, msgspec.DecodeError) as error:
            _log.warning("a stored model is damaged; it is fetched again", digest=digest, why=str(error))
            if not isinstance(error, OSError):  # the bytes are wrong: the next save must write them anew
                _remove(*self._paths(study, digest))
            return None

    async def has(self, study: str, digest: str) -> bool:
        """Whether a model was written down here whole; one that is being written is waited for.

        Raises:
            NodeError: the disk refuses.
        """
        if (study, digest) in self._saving:
            await asyncio.shield(self._saving[study, digest])
        return await asyncio.to_thread(self._paths(study, digest)[1].exists)

    async def open(self, study: str, digest: str) -> StoredModel | None:
        """A model left on disk, to be read where it is needed; None if it is not there.

        What is read is not yet checked: ``StoredModel.check``.
        """
        return await _kept_or_closed(self._open, study, digest)

    async def remove(self, study: str, digest: str) -> None:
        """Forget a model whose file is damaged: the next save writes it anew."""
        await asyncio.to_thread(_remove, *reversed(self._paths(study, digest)))

    def _open(self, study: str, digest: str) -> StoredModel | None:
        data, manifest_file = self._paths(study, digest)
        try:
            manifest = Manifest.decode(manifest_file.read_bytes())
            if manifest.digest != digest:
                return None
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, KonsilError):
            return None
        try:
            return StoredModel(manifest, fd)
        except KonsilError:
            os.close(fd)
            return None

    def _paths(self, study: str, digest: str) -> tuple[Path, Path]:
        folder = self.directory / study
        return folder / f"{digest}.safetensors", folder / f"{digest}.manifest"

    def _write(self, study: str, model: Model, needed: Needed) -> None:
        data, manifest = self._paths(study, model.digest)
        if manifest.exists():
            return
        try:
            make_private_folder(data.parent)
            write_whole(data, (model.memory.data,))
            write_whole(manifest, (model.manifest.encode(),))
        except OSError as error:
            _remove(manifest, data)
            raise NodeError(
                f"The merge {model.digest[:12]} of study {study!r} could not be written: {error.strerror}.",
                safe="The members hold it; the previous merge is on disk here. Nothing new is promised.",
                do="Free disk space; the node tries again by itself.",
            ) from error
        with self._dropping:
            self._drop_old(data.parent, frozenset(needed()))

    def _drop_old(self, folder: Path, needed: frozenset[str]) -> None:
        for manifest in sorted(folder.glob("*.manifest"), key=_written_ns)[:-KEPT]:
            if manifest.stem in needed:
                continue
            manifest.unlink(missing_ok=True)
            manifest.with_suffix(".safetensors").unlink(missing_ok=True)

    def _read(self, study: str, digest: str) -> Model:
        data, manifest_file = self._paths(study, digest)
        manifest = Manifest.decode(manifest_file.read_bytes())
        if manifest.digest != digest:
            raise ValueError("the manifest has another digest")
        schema = Schema.from_header(manifest.header)
        assembly = Assembly(schema)
        try:
            with data.open("rb") as file:
                file.seek(len(schema.header))
                for index, expected in enumerate(manifest.leaves):
                    start, stop = chunk_range(index, schema.data_bytes)
                    with assembly.chunk(index) as into:
                        if file.readinto(into) != stop - start or leaf(into) != expected:
                            raise ValueError(f"chunk {index} is damaged")
            return assembly.seal(manifest.groups)
        finally:
            assembly.close()


async def _kept_or_closed(read: Callable[[str, str], T], study: str, digest: str) -> T:
    """Read in a thread; who is cancelled meanwhile leaves nothing open."""
    reading = asyncio.ensure_future(asyncio.to_thread(read, study, digest))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        reading.add_done_callback(_close_it)
        raise


def _close_it(reading: asyncio.Future[T]) -> None:
    found = None if reading.cancelled() or reading.exception() else reading.result()
    if found is not None:
        found.close()


def _written_ns(path: Path) -> int:
    """When a file was written; 0 if it was removed a moment ago."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
