"""A request that waits for its answer: what may be taken, and where it goes."""

from __future__ import annotations

import asyncio

from konsil.errors import KonsilError
from konsil.transport.base import Buffer, Received
from konsil.transport.sentences import not_asked


class Ask:
    """A request that waits for its answer. ``body``: memory for the answer's raw bytes, once known."""

    __slots__ = ("answer", "body", "filled", "future", "into", "limit_bytes", "message")

    def __init__(self, future: asyncio.Future[Received], into: memoryview | None, limit_bytes: int) -> None:
        """Wait for the ANSWER frame."""
        self.future = future
        self.into = into
        self.limit_bytes = limit_bytes
        self.message: bytes | None = None
        self.body: memoryview | None = None
        self.answer: bytearray | None = None
        self.filled = 0

    def announce(self, message: bytes, body_bytes: int) -> None:
        """Take the answer's message, and reserve memory for its body once its length is allowed.

        Raises:
            FrameError: a second answer, or a body of another length than the asker takes.
        """
        if self.message is not None:
            raise not_asked("A request was answered twice.")
        if self.into is not None:
            # No body at all is an answer in words: an error, which the asker reads in the message.
            if body_bytes not in (0, len(self.into)):
                raise not_asked(
                    f"An answer announces {body_bytes} bytes where {len(self.into)} were asked for."
                )
            self.body = self.into
        elif body_bytes > self.limit_bytes:
            raise not_asked(f"An answer announces {body_bytes} bytes; the limit is {self.limit_bytes}.")
        else:
            self.answer = bytearray(body_bytes)
            self.body = memoryview(self.answer)
        self.message = message
        self.body = self.body[:body_bytes]

    def segment(self, body_bytes: int) -> memoryview:
        """Where the next segment goes.

        Raises:
            FrameError: more than was announced.
        """
        if self.body is None or self.filled + body_bytes > len(self.body):
            raise not_asked("A body is longer than its answer announced.")
        start, self.filled = self.filled, self.filled + body_bytes
        return self.body[start : self.filled]

    def settle(self) -> bool:
        """Hand the answer over if it is whole; whether it is."""
        if self.message is None or self.body is None or self.filled < len(self.body):
            return False
        if not self.future.done():
            body = b"" if self.answer is None else self.answer
            self.future.set_result(Received(self.message, body, self.filled))
        return True

    def let_go(self) -> None:
        """Release the asker's memory. An error keeps the frames that it came through, and with them this;
        nobody could seal that memory before the collector came by.
        """
        for view in (self.body, self.into):
            if view is not None:
                view.release()
        self.body = self.into = None


def fail(
    future: asyncio.Future[Received] | asyncio.Future[bytes] | asyncio.Future[None], error: KonsilError
) -> None:
    """Give an error to whoever waits, if anybody still does."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever waits gets it; nobody waiting is no mistake


def writable(into: memoryview | None) -> memoryview | None:
    """An asker's memory as plain bytes.

    Raises:
        ValueError: it cannot be written to.
    """
    if into is None:
        return None
    if into.readonly:
        raise ValueError("The memory for an answer must be writable.")
    return flat(into)


def flat(body: Buffer) -> memoryview:
    """Any contiguous buffer as plain bytes, without a copy.

    Raises:
        TypeError: not contiguous.
    """
    view = memoryview(body)
    return view.cast("B") if view.nbytes else memoryview(b"")
