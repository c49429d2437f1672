"""What peers may say to each other, with the limits that hold before memory is reserved.

A request is one message; its answer is one message and, where the message says so, raw bytes.
Model bytes never travel inside a message: they go straight into the array that waits for them.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from konsil.errors import FrameError

PROTOCOL_VERSION = 3
"""Nodes of different versions refuse each other's greeting. 2: whoever asks for a model names its study.
3: streams beside requests."""

MAX_MESSAGE_BYTES = 256 * 1024
"""The largest message: a manifest's leaves and the ledger's entries travel as raw bytes, not here."""

MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""Header and leaves of a 1 TB model (250,000 leaves of 32 bytes) with room for 8 MiB of header."""

MAX_ENTRIES_BYTES = 4 * 1024 * 1024
"""One answer with ledger entries; a follower asks again for what is left."""

MAX_CARD_BYTES = 64 * 1024
"""A card with a trust bundle of several certificates."""

Stage = Annotated[str, msgspec.Meta(max_length=40, pattern=r"^[ -~]*$")]
"""What a peer says that it does: a few plain words, since they are shown in other hospitals' terminals."""

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""From 0 to 1."""

TunnelId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
"""A tunnel's name, drawn by the member that opened it."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="say"):
    """Common shape: frozen, no unknown fields, the tag names the message."""


# --- requests ------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    """First on every connection, both ways: which swarm, who, and which run of the node."""

    version: int
    swarm: str
    member: str
    instance: str


class GetManifest(_Message, frozen=True, tag="get_manifest"):
    """The header and leaves behind a digest. Answer: ``Bytes`` and the encoded manifest.

    ``study``: whose it is; it is looked for there and nowhere else. ``digest``: root of an update or merge,
    or the group digest of a part. ``holder``: who has it for sure; ``relay``: whether the asked peer may
    fetch it from the holder.
    """

    study: str
    digest: str
    holder: str = ""
    relay: bool = False


class GetChunk(_Message, frozen=True, tag="get_chunk"):
    """One chunk of what is behind a digest of a study. Answer: ``Bytes`` and the chunk."""

    study: str
    digest: str
    index: int
    holder: str = ""
    relay: bool = False


class GetCard(_Message, frozen=True, tag="get_card"):
    """A member's card, by the digest that stands on the ledger. Answer: ``Bytes`` and the card."""

    digest: str


class Heartbeat(_Message, frozen=True, tag="heartbeat"):
    """How far the sender's training is, off the ledger. Answer: ``Done``. ``progress``: 0 to 1."""

    study: str
    round: int
    stage: Stage
    progress: Fraction


class LedgerSubmit(_Message, frozen=True, tag="ledger_submit"):
    """A signed call, for the member that serves the local ledger. Answer: ``Accepted``."""

    signed: bytes


class LedgerFollow(_Message, frozen=True, tag="ledger_follow"):
    """Entries after a height; waits up to ``wait_s`` for the first. Answer: ``Bytes`` and the entries."""

    after: int
    wait_s: float


class GetStatus(_Message, frozen=True, tag="get_status"):
    """Version, clock and what the node is doing. Answer: ``Status``."""


# --- streams -------------------------------------------------------------------------------------


class OpenTunnel(_Message, frozen=True, tag="open_tunnel"):
    """What a stream is for: the bytes of a TCP connection of the ledger's engine to the peer's engine.

    ``tunnel``: the opener's name for it. ``goes_on``: it is open already, and goes on in this stream, since
    the connection that it went over is made anew.
    """

    tunnel: TunnelId
    goes_on: bool = False


# --- answers -------------------------------------------------------------------------------------


class Bytes(_Message, frozen=True, tag="bytes"):
    """Raw bytes follow."""


class Done(_Message, frozen=True, tag="done"):
    """Understood; nothing more to say."""


class Accepted(_Message, frozen=True, tag="accepted"):
    """The ledger took the call at this height."""

    height: int


class Status(_Message, frozen=True, tag="status"):
    """A node about itself. ``clock_s``: unix time as its machine has it."""

    member: str
    version: str
    clock_s: float
    height: int
    reachable: tuple[str, ...]


class Failure(_Message, frozen=True, tag="failure"):
    """The request could not be served. ``kind``: class of the error; ``code``: its stable word, if any;
    ``fields``: the facts beside the sentences.
    """

    kind: str
    code: str
    what: str
    safe: str = ""
    do: str = ""
    fields: dict[str, bool | int | float | str] = {}


Request = Hello | GetManifest | GetChunk | GetCard | Heartbeat | LedgerSubmit | LedgerFollow | GetStatus
Answer = Hello | Bytes | Done | Accepted | Status | Failure

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_openings: msgspec.msgpack.Decoder[OpenTunnel] = msgspec.msgpack.Decoder(OpenTunnel)

T = TypeVar("T")


def encode(message: Request | Answer | OpenTunnel) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def decode_request(data: bytes | memoryview) -> Request:
    """A peer's bytes as a request.

    Raises:
        FrameError: too long, or not a request of this protocol.
    """
    return _decode(_requests, data)


def decode_answer(data: bytes | memoryview) -> Answer:
    """A peer's bytes as an answer.

    Raises:
        FrameError: too long, or not an answer of this protocol.
    """
    return _decode(_answers, data)


def decode_opening(data: bytes | memoryview) -> OpenTunnel:
    """What a peer opens a stream for.

    Raises:
        FrameError: too long, or no purpose of this protocol.
    """
    return _decode(_openings, data)


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview) -> T:
    if len(data) > MAX_MESSAGE_BYTES:
        raise FrameError(
            f"A message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}.",
            safe="Nothing was taken from it.",
            do="The peer runs another version of Konsil, or is hostile.",
        )
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(
            f"A peer's message cannot be read: {error}.",
            safe="Nothing was taken from it.",
            do="Compare versions: `konsil doctor`.",
        ) from error
