"""Frames of the wall without any socket: bytes and descriptors in, words out, and errors as words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from konsil import errors
from konsil.core.wall import (
    MAX_WORDS_BYTES,
    AskPropose,
    Failed,
    Final,
    FromNode,
    Join,
    Joined,
    Merged,
    ToldModel,
    ToldState,
    ToNode,
    Update,
)

LENGTH_BYTES = 4

MAX_TO_NODE_BYTES = 9 * 1024 * 1024
"""The longest word to a node: ``Join`` with a header of 8 MiB. Only a node's answers are longer."""

_MAY_BRING_A_DESCRIPTOR = (Join, Update, AskPropose, Joined, Merged, Final, ToldModel, ToldState)
_READ_BYTES = 1 << 20  # so that a length alone never reserves more memory than this

Word = TypeVar("Word")

_encoder = msgspec.msgpack.Encoder()
words_to_node: msgspec.msgpack.Decoder[ToNode] = msgspec.msgpack.Decoder(ToNode)
words_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)


class Delivery(NamedTuple, Generic[Word]):
    """A word that arrived. ``fd``: the descriptor that came with it; it is the receiver's to close."""

    word: Word
    fd: int | None


def frame(word: ToNode | FromNode) -> bytes:
    """A word as it goes over the socket.

    Raises:
        FrameError: the word is too long to be sent.
    """
    body = _encoder.encode(word)
    if len(body) > MAX_WORDS_BYTES:
        raise _broken(f"a word of {len(body)} bytes is over the limit of {MAX_WORDS_BYTES}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class FrameReader(Generic[Word]):
    """Puts words together from bytes as they come; holds at most one half-read frame and its descriptor.

    Whoever feeds it reads at most ``wanted`` bytes at a time, so a read never crosses into the next frame,
    and a descriptor always belongs to the frame that is being read.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[Word], limit_bytes: int = MAX_WORDS_BYTES) -> None:
        """``limit_bytes``: the longest frame that is taken."""
        self._decoder = decoder
        self._limit_bytes = limit_bytes
        self._bytes = bytearray()
        self._length = -1
        self._fd: int | None = None

    @property
    def wanted(self) -> int:
        """How many bytes the next read may take, at least 1."""
        missing = (LENGTH_BYTES if self._length < 0 else self._length) - len(self._bytes)
        return min(missing, _READ_BYTES)

    @property
    def begun(self) -> bool:
        """Whether a frame has arrived in part."""
        return self._length >= 0 or bool(self._bytes)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> Delivery[Word] | None:
        """Take what one read brought; the word, once it is whole.

        Raises:
            FrameError: an empty or oversized frame, bytes that are no word of this protocol, or a
                descriptor where none may be. The descriptors are closed; nothing more can be read.
        """
        try:
            self._keep(fds)
            self._bytes += data
            if self._length < 0 and len(self._bytes) == LENGTH_BYTES:
                self._length = int.from_bytes(self._bytes, "big")
                self._bytes.clear()
                if not 0 < self._length <= self._limit_bytes:
                    raise _broken(f"a frame of {self._length} bytes, not 1 to {self._limit_bytes}")  # noqa: TRY301 - one place closes the descriptor
            if self._length < 0 or len(self._bytes) < self._length:
                return None
            word = self._decode()
        except BaseException:
            self.close()
            raise
        delivery = Delivery(word, self._fd)
        self._bytes, self._length, self._fd = bytearray(), -1, None
        return delivery

    def close(self) -> None:
        """Close the descriptor of a frame that never became whole."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _keep(self, fds: Sequence[int]) -> None:
        for fd in fds:
            if self._fd is None:
                self._fd = fd
            else:
                os.close(fd)
        if len(fds) > 1:
            raise _broken(f"{len(fds)} descriptors with one frame")

    def _decode(self) -> Word:
        try:
            word = self._decoder.decode(self._bytes)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _broken(f"a word that cannot be read: {error}") from error
        if self._fd is not None and not isinstance(word, _MAY_BRING_A_DESCRIPTOR):
            raise _broken(f"a descriptor with {type(word).__name__}, which has none")
        return word


def failure(error: errors.KonsilError) -> Failed:
    """An error as the word that raises it again on the other side."""
    code = getattr(error, "code", "")
    return Failed(kind=error.kind, code=code, what=error.what, safe=error.safe, do=error.do)


def raised(failed: Failed) -> errors.KonsilError:
    """The error that the other side met, to be raised here: of the same class, if it is one of ours."""
    known = getattr(errors, failed.kind, None) if failed.kind in errors.__all__ else None
    if known is errors.Refused or known is errors.PeerRefused:
        coded: errors.KonsilError = known(failed.code, failed.what, safe=failed.safe, do=failed.do)
        return coded
    if known is None:
        known = errors.NodeError
    plain: errors.KonsilError = known(failed.what, safe=failed.safe, do=failed.do)
    return plain


def _broken(what: str) -> errors.FrameError:
    return errors.FrameError(
        f"The other side of the wall sent what breaks the format: {what}.",
        safe="Nothing was taken from it; the connection is closed.",
        do="Training process and node must run the same version of Konsil: `konsil --version` in both.",
    )
