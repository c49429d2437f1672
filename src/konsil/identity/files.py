"""Files of keys, which are nobody else's to read, and files that are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from konsil.errors import ConfigError, IdentityError
from konsil.files import make_private_folder, write_whole

_PUBLIC_MODE = 0o644
_OTHERS = 0o077


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Make a file that only its owner can read; one that is there is replaced only where that is asked for.

    Raises:
        IdentityError: the file exists already.
        ConfigError: the folder cannot be written to.
    """
    try:
        make_private_folder(path.parent)
        made = write_whole(path, (data,), replace=replace)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not made:
        raise IdentityError(
            f"There is a key at {path} already.",
            safe="It was left as it is.",
            do="Use it; or move it away, knowing that what it signed can then not be signed again.",
            path=str(path),
        )


def write_public(path: Path, data: bytes) -> None:
    """Write a file that others may read, in place of an older one.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (data,), mode=_PUBLIC_MODE)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_private(path: Path, limit_bytes: int) -> bytes:
    """Read a file of keys, after a look at who else could.

    Raises:
        IdentityError: missing, no plain file, others may read or write it, or over the limit.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_private(path, status)
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise IdentityError(
            f"The key file {path} cannot be read: {error.strerror or error}.",
            safe="Nothing was changed.",
            do="Make the member's keys with `konsil node init`, or give its folder in the node's config.",
            path=str(path),
        ) from error
    if len(data) > limit_bytes:
        raise IdentityError(
            f"The key file {path} is longer than {limit_bytes} bytes, so it is no key file.",
            safe="Nothing was taken from it.",
            path=str(path),
        )
    return data


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IdentityError(f"{path} is not a plain file.", safe="Nothing was taken from it.", path=str(path))
    if status.st_mode & _OTHERS:
        raise IdentityError(
            f"Others may use the key file {path}: its mode is {stat.S_IMODE(status.st_mode):04o}.",
            safe="The key was not used.",
            do=f"Run `chmod 600 {path}`; if somebody else may have read it, make new keys.",
            path=str(path),
        )


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}.",
        safe="No half-written file was left.",
        do="Free some space, or let the node's user write to this folder.",
        path=str(path),
    )
