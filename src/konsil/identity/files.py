"""Private files: whole or not at all, on disk before anything relies on them, and nobody else's to read."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from konsil.errors import ConfigError, IdentityError

PRIVATE_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700
_OTHERS = 0o077


def write_private(path: Path, data: bytes) -> None:
    """Make a file that only its owner can read; an existing one is never replaced.

    Raises:
        IdentityError: the file exists already.
        ConfigError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        made = _write(path, data, PRIVATE_MODE, replace=False)
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
        _write(path, data, 0o644, replace=True)
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


def _write(path: Path, data: bytes, mode: int, *, replace: bool) -> bool:
    """Whether the file is there now: not, where one exists that may not be replaced."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            try:
                path.hardlink_to(temporary)  # unlike a rename, this fails where the file exists
            except FileExistsError:
                return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_directory(path.parent)
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written: {error.strerror or error}.",
        safe="No half-written file was left.",
        do="Free some space, or let the node's user write to this folder.",
        path=str(path),
    )
