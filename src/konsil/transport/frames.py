"""The wire format without any I/O: memory to fill goes out, frames come in.

A frame is a header of 20 bytes and what it announces::

    offset  bytes  field
    0       1      magic, 0x4B
    1       1      kind
    2       1      flags
    3       1      zero
    4       4      request id, big-endian; each side numbers its own requests. Of a stream its number:
                   odd where the side that dialled has opened it, even where the other one has
    8       4      length of the message that follows
    12      8      body: for ANSWER the length of the whole body, for DATA and PIECE of the segment that
                   follows, for CREDIT how many bytes more of its stream may be sent

A body travels in segments, so that a heartbeat waits for one segment and not for a whole chunk, and
many answers share one connection fairly. What is written into a stream travels in pieces that are no larger.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError

MAGIC = 0x4B
HEADER = Struct("!BBBBIIQ")
HEADER_BYTES = HEADER.size
RECORD_BYTES = 16 * 1024
"""The most that one TLS record carries."""

SEGMENT_BYTES = 16 * RECORD_BYTES - HEADER_BYTES
"""With its header a segment fills 16 TLS records: about 0.2 s on a line of 10 Mbit/s."""

MAX_HELLO_BYTES = 16 * 1024
MAX_REASON_BYTES = 4 * 1024
"""Why a connection or a stream is refused or ends, in words."""

MAX_OPENING_BYTES = 1024
"""What a stream is for."""

STREAM_WINDOW_BYTES = 1024 * 1024
"""What may be on its way in a stream, or lie unread: 50 MB/s on a line of 20 ms there and back."""

MAX_REQUEST_ID = 0xFFFF_FFFF
_DISCARD_BYTES = 64 * 1024


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    REQUEST = 2
    ANSWER = 3
    DATA = 4
    CANCEL = 5
    PING = 6
    PONG = 7
    GOAWAY = 8
    OPEN = 9
    PIECE = 10
    CREDIT = 11
    FINISH = 12
    RESET = 13


class Flag(IntEnum):
    """``REFUSED``: a HELLO whose message says why not. ``FAILED``: the handler broke, there is no answer."""

    NONE = 0
    REFUSED = 1
    FAILED = 2


class Limit(NamedTuple):
    """The most bytes of message and of body that a kind of frame may announce, and the flags it may have."""

    message_bytes: int
    body_bytes: int
    flags: frozenset[int]


_ANY_BODY = (1 << 64) - 1
"""An answer's body: the limit is that of the request which waits for it."""

_PLAIN = frozenset({Flag.NONE})

LIMITS: dict[int, Limit] = {
    Kind.HELLO: Limit(MAX_HELLO_BYTES, 0, frozenset({Flag.NONE, Flag.REFUSED})),
    Kind.REQUEST: Limit(MAX_MESSAGE_BYTES, 0, _PLAIN),
    Kind.ANSWER: Limit(MAX_MESSAGE_BYTES, _ANY_BODY, frozenset({Flag.NONE, Flag.FAILED})),
    Kind.DATA: Limit(0, SEGMENT_BYTES, _PLAIN),
    Kind.CANCEL: Limit(0, 0, _PLAIN),
    Kind.PING: Limit(0, 0, _PLAIN),
    Kind.PONG: Limit(0, 0, _PLAIN),
    Kind.GOAWAY: Limit(MAX_REASON_BYTES, 0, _PLAIN),
    Kind.OPEN: Limit(MAX_OPENING_BYTES, 0, _PLAIN),
    Kind.PIECE: Limit(0, SEGMENT_BYTES, _PLAIN),
    Kind.CREDIT: Limit(0, STREAM_WINDOW_BYTES, _PLAIN),
    Kind.FINISH: Limit(0, 0, _PLAIN),
    Kind.RESET: Limit(MAX_REASON_BYTES, 0, _PLAIN),
}

_NEVER_EMPTY = frozenset({Kind.DATA, Kind.PIECE, Kind.CREDIT})
_FOLLOWED = frozenset({Kind.DATA, Kind.PIECE})
"""Kinds whose body stands behind their header."""


class Header(NamedTuple):
    """A frame's first 20 bytes, checked."""

    kind: Kind
    flags: int
    request: int
    message_bytes: int
    body_bytes: int


class Frame(NamedTuple):
    """A whole frame. The segment of a DATA or PIECE frame is in its sink already."""

    header: Header
    message: bytes


def encode(
    kind: Kind, request: int = 0, message: bytes = b"", *, flags: int = Flag.NONE, body_bytes: int = 0
) -> bytes:
    """A frame's header and message.

    Raises:
        FrameError: the message is over the limit of its kind.
    """
    limit = LIMITS[kind]
    if len(message) > limit.message_bytes or body_bytes > limit.body_bytes:
        raise FrameError(
            f"A {kind.name} of {len(message)} and {body_bytes} bytes is over the limit"
            f" of {limit.message_bytes} and {limit.body_bytes}.",
            safe="Nothing was sent.",
            do="Ask for less at once; if Konsil itself made this message, please report it.",
        )
    return HEADER.pack(MAGIC, kind, flags, 0, request, len(message), body_bytes) + message


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in exactly 20 bytes.

    Raises:
        FrameError: not a header of this format, or it announces more than its kind may have.
    """
    magic, kind, flags, zero, request, message_bytes, body_bytes = HEADER.unpack(data)
    limit = LIMITS.get(kind)
    if magic != MAGIC or zero or limit is None:
        raise _broken(f"A frame starts with {bytes(data[:4]).hex()}, which is no kind of frame.")
    if flags not in limit.flags:
        raise _broken(f"A {Kind(kind).name} frame has unknown flags {flags:#x}.")
    if message_bytes > limit.message_bytes or body_bytes > limit.body_bytes:
        raise _broken(
            f"A {Kind(kind).name} frame announces {message_bytes} and {body_bytes} bytes;"
            f" the limit is {limit.message_bytes} and {limit.body_bytes}."
        )
    if not body_bytes and kind in _NEVER_EMPTY:
        raise _broken(f"A {Kind(kind).name} frame is empty.")
    return Header(Kind(kind), flags, request, message_bytes, body_bytes)


def _broken(what: str) -> FrameError:
    return FrameError(
        what,
        safe="Nothing was taken from it and no memory was reserved; the connection is closed.",
        do="The peer runs another version of Konsil, or is hostile: compare versions with `konsil doctor`.",
    )


class FrameReader:
    """Turns received bytes into frames; the bytes land where they belong, without a copy.

    Fill ``room`` from its start, then tell ``filled`` how many bytes there are.

    Args:
        sink: where the segment of a DATA or PIECE frame goes: memory of exactly ``body_bytes``, or None to
            discard it. May raise FrameError.
    """

    def __init__(self, sink: Callable[[Header], memoryview | None]) -> None:
        """Wait for a header."""
        self._sink = sink
        self._head = bytearray(HEADER_BYTES)
        self._header: Header | None = None
        self._message: bytearray | None = None
        self._discard = 0
        self._scratch: memoryview | None = None
        self.frames = 0
        self.room = memoryview(self._head)

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._header is not None or len(self.room) < HEADER_BYTES

    def filled(self, count: int) -> Frame | None:
        """Take note of ``count`` bytes at the start of ``room``; the frame that they complete, if any.

        Raises:
            FrameError: the bytes break the format or a limit.
        """
        if count < len(self.room):
            self.room = self.room[count:]
            if self._discard:
                self._discard -= count
            return None
        if self._discard > count:
            self._discard_more(self._discard - count)
            return None
        if self._header is None:
            self._begin(parse_header(self._head))
            if len(self.room):
                return None
        return self._complete()

    def forget(self, request: int) -> None:
        """Write no more into the memory of a request that was given up."""
        header = self._header
        if header and header.kind is Kind.DATA and header.request == request and not self._discard:
            self._discard_more(len(self.room))

    def _begin(self, header: Header) -> None:
        self._header = header
        if header.kind in _FOLLOWED:
            sink = self._sink(header)
            if sink is None:
                self._discard_more(header.body_bytes)
            else:
                self.room = sink
            return
        self._message = bytearray(header.message_bytes)
        self.room = memoryview(self._message)

    def _discard_more(self, count: int) -> None:
        if self._scratch is None:
            self._scratch = memoryview(bytearray(_DISCARD_BYTES))
        self._discard = count
        self.room = self._scratch[:count]

    def _complete(self) -> Frame:
        header, message = self._header, self._message
        if header is None:  # pragma: no cover - filled() has just set it
            raise AssertionError
        self._header = self._message = None
        self._discard = 0
        self.frames += 1
        self.room = memoryview(self._head)
        return Frame(header, bytes(message) if message else b"")
