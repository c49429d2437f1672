"""What stays at a member between two runs of its script: a file that is written after each merge.

The accepted merge comes from the node. This file has the rest: parameters that stay local, counters, the
optimiser's state. It is safetensors with a word in its metadata about whose it is; no code is ever in it. It
can tell of patients as the model itself can, so it is its owner's alone to read.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.parameters import file_pieces, header_of_file, read_safetensors
from konsil.errors import ConfigError, ParametersError
from konsil.files import make_private_folder, remove_unfinished, write_whole
from konsil.learners.protocols import Array
from konsil.learners.shared import Shared

_KEY = "konsil_resume"
_VERSION = 1
_SUFFIX = ".resume.safetensors"


class _Whose(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which member's state a file holds, after which merge. ``data``: digest of the arrays' bytes."""

    swarm: str
    study: str
    member: str
    round: int
    digest: str
    data: str
    version: int = _VERSION


class LocalFile:
    """One member's file for one study."""

    def __init__(self, place: Path, *, swarm: str, study: str, member: str) -> None:
        """``place``: the file, or the folder that it goes into (a path without a suffix is one)."""
        folder = place.is_dir() or not place.suffix
        self.path = place / f"{study}.{member}{_SUFFIX}" if folder else place
        self._swarm = swarm
        self._study = study
        self._member = member

    def load(self, learner: Shared, number: int, digest: str) -> bool:
        """Give a learner its local state back, if there is a file; whether there was.

        Args:
            learner: it holds the merge of round ``number`` already.
            number: the last accepted round.
            digest: of the model that the learner holds.

        Raises:
            ConfigError: the file is damaged, or another study's, member's or history's, or does not fit the
                model. It stays as it is.
        """
        remove_unfinished(self.path)
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from error
        whose, arrays = self._parsed(data)
        if (whose.swarm, whose.study, whose.member) != (self._swarm, self._study, self._member):
            raise self._unusable(
                f"belongs to member '{whose.member}' in study '{whose.study}' of swarm {whose.swarm[:12]}, "
                f"not to '{self._member}' in '{self._study}' of {self._swarm[:12]}"
            )
        if whose.round > number or (whose.round == number and whose.digest != digest):
            raise self._unusable(
                f"was written after round {whose.round} ({whose.digest[:12]}), and this member's ledger is "
                f"at round {number} ({digest[:12]})"
            )
        try:
            learner.load_local_state(arrays)
        except ConfigError as error:
            raise self._unusable(f"does not fit the model: {error.what.rstrip('.')}") from error
        return True

    def _parsed(self, data: bytes) -> tuple[_Whose, dict[str, Array]]:
        try:
            _, metadata, begin = header_of_file(data)
            whose = msgspec.json.decode(metadata.get(_KEY, ""), type=_Whose)
            arrays = read_safetensors(data)
        except (ParametersError, msgspec.DecodeError) as error:
            raise self._unusable(f"is damaged or no such file: {error}") from error
        if whose.version != _VERSION:
            raise self._unusable(f"is of version {whose.version}; this program knows {_VERSION}")
        if bytes_digest(memoryview(data)[begin:], "local state") != whose.data:
            raise self._unusable("is damaged: its arrays are not those that were written")
        return whose, arrays

    def save(self, learner: Shared, number: int, digest: str) -> None:
        """Write the learner's local state down, now that it holds the merge of round ``number``.

        Raises:
            ConfigError: the disk refuses; the file of the round before is still there.
        """
        arrays = learner.local_state()
        values = b"".join(bytes(piece) for piece in list(file_pieces(arrays, {}))[1:])
        whose = _Whose(
            self._swarm, self._study, self._member, number, digest, bytes_digest(values, "local state")
        )
        metadata = {_KEY: msgspec.json.encode(whose).decode()}
        header = next(iter(file_pieces(arrays, metadata)))
        try:
            make_private_folder(self.path.parent)
            write_whole(self.path, (header, values))
        except OSError as error:
            raise ConfigError(
                f"The local state cannot be written to {self.path}: {error.strerror}.",
                safe="The file of the round before is as it was; the merge is in your model.",
                do="Make room, or give `resume` another place.",
            ) from error

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(
            f"{self.path} {why}.",
            safe="Nothing was loaded from it, and it was not written over.",
            do="Give `resume` the file of this study and member; or move it away to go on without it.",
        )


def place_of(resume: str | os.PathLike[str] | None) -> Path | None:
    """Where the local state is kept; None for nowhere."""
    return None if resume is None else Path(resume).expanduser()
