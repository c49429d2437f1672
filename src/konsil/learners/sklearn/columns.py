"""Which columns the rows have: how many, or their names."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

from konsil.errors import ConfigError

Columns = int | tuple[str, ...]
"""How many columns, or their names in order."""


def columns_of(given: Any) -> Columns:
    """What a script says of its columns.

    Args:
        given: a whole number of any kind, or column names. Neither rows nor a data frame: of these nobody
            could tell whether their length is meant.

    Raises:
        ConfigError: something else, or no columns.
    """
    try:
        found: Columns = index(given)
    except TypeError:
        found = _names(given)
    if found == () or (isinstance(found, int) and found < 1):
        raise _neither(f"`n_features` is {given!r}: rows without any column.")
    return found


def _names(given: Any) -> tuple[str, ...]:
    shape = getattr(given, "shape", (0,))
    if isinstance(given, str) or not isinstance(given, Iterable) or len(shape) != 1:
        of = f" of shape {tuple(shape)}" if len(shape) != 1 else ""
        raise _neither(f"`n_features` is a {type(given).__name__}{of}, and no number or names of columns.")
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise _neither(
                f"`n_features` is a {type(given).__name__} of {type(name).__name__}, and no column names."
            )
    return tuple(str(name) for name in names)


def _neither(what: str) -> ConfigError:
    return ConfigError(
        what,
        safe="The model is untouched.",
        do="Give `konsil.prepare` how many columns your rows have, `X.shape[1]`; or, for data frames, their"
        " names, `X.columns`.",
    )
