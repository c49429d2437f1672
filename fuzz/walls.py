"""What crosses the wall between a training process and its node: words, descriptors, arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import world
from files import _arrays
from target import Target, must, refusal

from konsil.core.parameters import views
from konsil.core.rules import Tick, encode_state, state_digest
from konsil.core.wall import (
    AskAdmit,
    AskCall,
    AskModel,
    AskNode,
    AskPeers,
    AskPropose,
    AskState,
    Failed,
    Final,
    Finished,
    FromNode,
    Goodbye,
    Join,
    Joined,
    Knock,
    Merged,
    Noted,
    Progress,
    Scored,
    Terms,
    ToldState,
    ToNode,
    Update,
    Waiting,
    Wanted,
)
from konsil.errors import FrameError, ParametersError
from konsil.wall.frames import (
    MAX_TO_NODE_BYTES,
    FrameReader,
    failure,
    frame,
    raised,
    words_from_node,
    words_to_node,
)
from konsil.wall.layout import read_arrays
from konsil.wall.memory import make_writable, open_sealed, seal_pieces


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _read_words(data: bytes, decoder: msgspec.msgpack.Decoder[Any], limit_bytes: int) -> bool:
    """The first byte says how the bytes are cut, and with which pieces descriptors ride."""
    if not data:
        return False
    before = _open_descriptors()
    reader: FrameReader[Any] = FrameReader(decoder, limit_bytes)
    step, with_fd, at, pieces, words = (data[0] & 0x3F) * 8 + 1, data[0] >> 6, 1, 0, 0
    try:
        while at < len(data):
            must(0 < reader.wanted <= 1 << 20, "room for more than a length alone may reserve")
            piece = data[at : at + min(step, reader.wanted)]
            at += len(piece)
            fds = [os.dup(0) for _ in range(with_fd)] if pieces % 4 == 0 else []
            pieces += 1
            delivery = reader.feed(piece, fds)
            if delivery is None:
                continue
            if delivery.fd is not None:
                os.close(delivery.fd)
            words += 1
            must(
                repr(decoder.decode(frame(delivery.word)[4:])) == repr(delivery.word),
                "a word does not come back",
            )
            if isinstance(delivery.word, Failed):
                error = raised(delivery.word)
                refusal_of = failure(error)
                must(refusal_of.what == delivery.word.what, "a failure does not come back")
    except FrameError as error:
        refusal(error)
    finally:
        reader.close()
    must(_open_descriptors() == before, "a descriptor was left open")
    return words > 0


def read_to_node(data: bytes) -> bool:
    """Whatever a process at the node's sockets says."""
    return _read_words(data, words_to_node, MAX_TO_NODE_BYTES)


def read_from_node(data: bytes) -> bool:
    """Whatever is at the other end of a session's socket."""
    return _read_words(data, words_from_node, 64 * 1024 * 1024)


def to_node_seeds() -> list[bytes]:
    """Every word, with and without a descriptor."""
    words: tuple[ToNode, ...] = (
        Knock(2, "aml", 1), Join(world.schema().header, 1, world.digest("x")), Progress(1, 0.5),
        Update(1, world.digest("x"), 10), Scored(1, 10, 0.5, {"auc": 0.9}), Wanted(1.0), Finished("active"),
        Goodbye(), AskState(3, 1.0), AskCall(Tick("aml")), AskNode(), AskPeers(), AskModel("aml"),
        AskPropose(world.SETTINGS), AskAdmit(b"card"),
    )  # fmt: skip
    return [bytes((how,)) + frame(word) for word in words for how in (0x3F, 0x7F)]


def from_node_seeds() -> list[bytes]:
    """Every word that a session takes."""
    state = world.life()[-1][0].state
    record = state.studies["aml"].history[0]
    digest = world.digest("x")
    words: tuple[FromNode, ...] = (
        Terms("a", world.SETTINGS, wanted=True, swarm=digest), Joined(world.SETTINGS, 2, digest, record),
        Merged(1, digest, record, world.SETTINGS), Final(1, digest, settled=True, card=b"{}"),
        Waiting(1, "updates", ("b",), 3), Failed("Refused", "code", "what", "safe", "do"), Noted(3),
        ToldState(3, state_digest(state), encode_state(state)),
    )  # fmt: skip
    return [bytes((how,)) + frame(word) for word in words for how in (0x3F, 0x7F)]


def read_layout(data: bytes) -> bool:
    """Arrays in sealed memory, and memory that is not as it must be: the first byte says how it is made."""
    if len(data) < 2:
        return False
    before = _open_descriptors()
    how, body = data[0] % 4, data[1:]
    if how == 0:
        with seal_pieces([body]) as sealed:
            fd = os.dup(sealed.fd)
    elif how == 1:
        fd = make_writable(len(body))  # never sealed
    elif how == 2:
        fd = os.open("/dev/null", os.O_RDONLY)
    else:
        fd = os.open(world.scratch(), os.O_RDONLY)
    try:
        with open_sealed(fd, limit_bytes=1 << 20) as memory:
            must(how == 0, "memory that its sender may still change was let through")
            schema, section = read_arrays(memory)
            must(len(section) == schema.data_bytes, "another size than the header says")
            arrays = views(schema, section)
            must(all(not array.flags.writeable for array in arrays.values()), "memory that can be written")
            del arrays, section
            good = True
    except (FrameError, ParametersError) as error:
        refusal(error)
        good = False
    must(_open_descriptors() == before, "a descriptor was left open")
    return good


def layout_seeds() -> list[bytes]:
    """A model, in every kind of memory."""
    schema = world.schema()
    data = b"".join(np.ascontiguousarray(_arrays()[tensor.name]).tobytes() for tensor in schema.tensors)
    return [bytes((how,)) + schema.header + data for how in range(4)]


TARGETS: Sequence[Target] = (
    Target("to_node", "words at a node's sockets", read_to_node, to_node_seeds),
    Target("from_node", "words at a session's socket", read_from_node, from_node_seeds),
    Target("layout", "arrays in a descriptor", read_layout, layout_seeds),
)
