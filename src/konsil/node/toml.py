"""Settings from TOML files, read with errors that name the key."""

from __future__ import annotations

import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from konsil.errors import ConfigError

MAX_CONFIG_BYTES = 128 * 1024
"""A config file is a few hundred bytes, and a study's settings must fit one call of 64 KiB: anything larger
is another file by mistake."""

T = TypeVar("T", bound=msgspec.Struct)


def read_settings_file(path: Path, kind: type[T], *, missing: str = "Give the path of the file.") -> T:
    """Any settings from a TOML file whose top-level keys are the fields of ``kind``.

    Args:
        path: the file.
        kind: the Struct to make.
        missing: what to do where there is no such file.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value of another type.
    """
    return _convert(_read_toml(path, missing=missing), kind, path)


def _convert(raw: dict[str, Any], kind: type[T], file: Path) -> T:
    """A parsed TOML table as a Struct; errors name the key, the file and, for an unknown key, the nearest."""
    _refuse_unknown(raw, kind, file, where="")
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{file}: {_in_words(str(error))}.",
            safe="Nothing was changed.",
            do="Correct the file.",
            file=str(file),
        ) from error


def _read_toml(file: Path, *, missing: str) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no file {file}.", safe="Nothing was changed.", do=missing, file=str(file)
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}.",
            safe="Nothing was changed.",
            do="See who owns the file and what its permissions are.",
            file=str(file),
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{file} is over {MAX_CONFIG_BYTES} bytes, so it is no settings file.",
            safe="Nothing was changed.",
            do="Name the right file, or shorten this one.",
            file=str(file),
        )
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # also a number, or boxes in boxes, beyond what Python reads
        raise ConfigError(
            f"{file} is not TOML: {error}.",
            safe="Nothing was changed.",
            do="Correct the file.",
            file=str(file),
        ) from error


def _refuse_unknown(raw: dict[str, Any], kind: type[msgspec.Struct], file: Path, where: str) -> None:
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(
                f"{file}: unknown key '{where}{key}'.{_nearest(key, known, where)}",
                safe="Nothing was changed.",
                do=f"Known keys here: {', '.join(known)}.",
                file=str(file),
                key=where + key,
            )
        inner = _struct_of(known[key])
        if inner is not None and isinstance(value, dict):
            _refuse_unknown(value, inner, file, f"{where}{key}.")


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    """The Struct in an annotation such as ``Plateau | None``."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    found = (option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct))
    return next(found, None)


def _nearest(key: str, known: dict[str, Any], where: str) -> str:
    import difflib  # noqa: PLC0415 - only an error needs it, and the command line starts faster without

    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean '{where}{close[0]}'?" if close else ""


def _in_words(message: str) -> str:
    """A validation error of msgspec with the key as it stands in the file: `$.node.listen` -> node.listen."""
    text, _, path = message.partition(" - at `$.")
    return f"'{path.rstrip('`')}': {text[:1].lower()}{text[1:]}" if path else message
