"""The digests of accepted rounds, each made once and remembered for as long as its record lives."""

from __future__ import annotations

import weakref

import msgspec

from konsil.core.digest import bytes_digest
from konsil.core.rules.state import RoundRecord

_json = msgspec.json.Encoder(order="deterministic")


class _Remembered(weakref.ref[RoundRecord]):
    """A record's digest, beside a look at the record that does not keep it."""

    __slots__ = ("digest", "place")

    digest: str
    place: int


_known: dict[int, _Remembered] = {}


def record_digest(record: RoundRecord) -> str:
    """A record's digest.

    A state whose last round is scored, or that goes on to the next one, holds the other records as they were:
    they are not read again for every call. One that a score replaced is not kept either. Any thread may ask:
    each step is one operation of a dict, and a record's place is nobody else's before it is forgotten.
    """
    known = _known.get(id(record))
    if known is not None and known() is record:
        return known.digest
    digest = bytes_digest(_json.encode(record), "round")
    remembered = _Remembered(record, _forget)
    remembered.digest, remembered.place = digest, id(record)
    _known[id(record)] = remembered
    return digest


def _forget(gone: weakref.ref[RoundRecord]) -> None:
    if isinstance(gone, _Remembered) and _known.get(gone.place) is gone:
        del _known[gone.place]
