"""What a proxy answers to CONNECT: the head of one HTTP/1.1 response, read without I/O and within limits.

Only the status decides (RFC 9110, section 9.3.6; RFC 9112, section 6.3): a 2xx opens the tunnel right behind
the head, whatever the head says of a body. Nothing in it is followed, kept or believed beyond that. Before it
a proxy may send answers that are not the final one (RFC 9110, section 15.2): they are passed over.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from konsil.errors import FrameError

MAX_HEAD_BYTES = 16 * 1024
"""Of a whole head: an honest proxy's has a few hundred bytes, some with long lists of ways to log in."""

MAX_INTERIM = 8
"""Answers that are not the final one: a proxy sends one such as "100 Continue", or one now and then while it
waits for the peer."""

MAX_SCHEMES = 6
"""Ways to log in that are named to people; there are fewer that anybody uses."""

_END = b"\r\n\r\n"
_START = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([^\r\n\x00]*))?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*)")
_SCHEME = re.compile(rb"(?:^|,)[ \t]*([A-Za-z][A-Za-z0-9-]{0,19})(?=[ \t,]|$)")
_MAX_REASON = 80


class ConnectAnswer(NamedTuple):
    """A proxy's answer.

    Attributes:
        status: the three digits.
        reason: the proxy's own words for it, fit to be shown.
        schemes: the ways to log in that it offers, such as "Basic".
        surplus_bytes: what came behind the head: an error's page, or bytes that nobody asked for.
    """

    status: int
    reason: str
    schemes: tuple[str, ...]
    surplus_bytes: int

    @property
    def is_final(self) -> bool:
        """Whether no other answer follows; after a 101 none does, but another protocol."""
        return self.status // 100 != 1 or self.status == HTTPStatus.SWITCHING_PROTOCOLS

    @property
    def opens(self) -> bool:
        """Whether there is a tunnel behind it."""
        return self.status // 100 == 2  # noqa: PLR2004 - HTTP's own class of success


class AnswerReader:
    """Makes an answer of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        """With nothing read."""
        self._head = bytearray()
        self._interim = 0

    @property
    def begun(self) -> bool:
        """Whether anything came."""
        return bool(self._head) or self._interim > 0

    def feed(self, piece: bytes) -> ConnectAnswer | None:
        """Take what came; the final answer, once its head is whole.

        Raises:
            FrameError: it is not the head of an HTTP/1.1 response, or it is over a limit.
        """
        answer = self._next(piece)
        while answer is not None and not answer.is_final:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise _no_http(f"has not come after {MAX_INTERIM} others that say to wait")
            behind = bytes(self._head[len(self._head) - answer.surplus_bytes :])
            self._head.clear()
            answer = self._next(behind)
        return answer

    def _next(self, piece: bytes) -> ConnectAnswer | None:
        seen = len(self._head)
        self._head += piece
        head = self._head
        if bytes(head[: len(_START)]) != _START[: len(head)]:
            raise _no_http("does not begin like an HTTP/1.1 response")
        # Each byte is looked at once, however small the pieces: only an end may lie across two of them.
        at = head.find(_END, max(0, seen - len(_END) + 1))
        if at > MAX_HEAD_BYTES - len(_END) or (at < 0 and len(head) >= MAX_HEAD_BYTES):
            raise _no_http(f"has a head of more than {MAX_HEAD_BYTES} bytes")
        if at < 0:
            return None
        return _parsed(bytes(head[:at]), len(head) - at - len(_END))


def _parsed(head: bytes, surplus_bytes: int) -> ConnectAnswer:
    first, *fields = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise _no_http("does not begin like an HTTP/1.1 response")
    schemes: list[str] = []
    for line in fields:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise _no_http("has a line in its head that is no header field")
        if field[1].lower() == b"proxy-authenticate":
            schemes += (scheme.decode() for scheme in _SCHEME.findall(field[2]))
    return ConnectAnswer(
        int(status[1]), _shown(status[2] or b""), tuple(dict.fromkeys(schemes))[:MAX_SCHEMES], surplus_bytes
    )


def _shown(reason: bytes) -> str:
    """Words of a stranger, for a log and a terminal."""
    text = reason[:_MAX_REASON].decode("ascii", "replace")
    return "".join(letter if letter.isascii() and letter.isprintable() else " " for letter in text).strip()


def _no_http(why: str) -> FrameError:
    return FrameError(
        f"The answer {why}.",
        safe="Nothing was taken from it; the connection is closed.",
        do="See whether the address is that of an HTTP proxy.",
    )
