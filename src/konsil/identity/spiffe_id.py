"""SPIFFE IDs, parsed strictly: ``spiffe://trust-domain/path`` in the one form that the standard allows."""

from __future__ import annotations

import re
from typing import NamedTuple

from konsil.errors import IdentityError

MAX_ID_BYTES = 2048
"""The SPIFFE standard's own limit for a whole ID."""

MAX_TRUST_DOMAIN_BYTES = 255
"""The SPIFFE standard's own limit for a trust domain's name."""

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class SpiffeId(NamedTuple):
    """A SPIFFE ID. ``path`` starts with "/" or is empty: the trust domain itself."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read an ID; upper case in the trust domain, dots as segments, queries and the like are refused.

        Raises:
            IdentityError: the text is not a SPIFFE ID.
        """
        if len(text) > MAX_ID_BYTES:
            raise _bad(text[:80] + "...", f"it is longer than {MAX_ID_BYTES} characters")
        if not text.startswith(_SCHEME):
            raise _bad(text, f"it does not start with {_SCHEME}")
        domain, slash, rest = text.removeprefix(_SCHEME).partition("/")
        check_trust_domain(domain)
        if slash:
            _check_path(text, rest)
        return cls(domain, slash + rest)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def trust_domain(spiffe_id: str) -> str:
    """The trust domain of a SPIFFE ID.

    Raises:
        IdentityError: the text is not a SPIFFE ID.
    """
    return SpiffeId.parse(spiffe_id).trust_domain


def check_trust_domain(name: str) -> str:
    """The name itself, if it can be a trust domain's.

    Raises:
        IdentityError: it is empty, too long, or has other characters than a-z, 0-9, ".", "_" and "-".
    """
    if len(name) > MAX_TRUST_DOMAIN_BYTES or not _TRUST_DOMAIN.fullmatch(name):
        raise IdentityError(
            f"{name[:80]!r} cannot be the name of a trust domain.",
            safe="Nothing was taken from it.",
            do=f"Use a-z, 0-9, '.', '_', '-', at most {MAX_TRUST_DOMAIN_BYTES} characters: 'lyon.example'.",
        )
    return name


def _check_path(text: str, rest: str) -> None:
    for segment in rest.split("/"):
        if segment in {".", ".."} or not _SEGMENT.fullmatch(segment):
            raise _bad(text, f"its path has the segment {segment[:80]!r}")


def _bad(text: str, why: str) -> IdentityError:
    return IdentityError(
        f"{text!r} is not a SPIFFE ID: {why}.",
        safe="Nothing was taken from it.",
        do="A SPIFFE ID looks like 'spiffe://lyon.example/node'.",
        spiffe_id=text,
    )
