"""What comes from a peer: frames, messages, manifests, schemas, Gram matrices, entries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import world
from conversation import converse
from target import Target, must, refusal

from konsil.core.digest import MAX_GROUPS, Manifest
from konsil.core.merge.gram import decode_gram, encode_gram
from konsil.core.messages import (
    MAX_MESSAGE_BYTES,
    Accepted,
    Bytes,
    Done,
    Failure,
    GetCard,
    GetChunk,
    GetManifest,
    GetStatus,
    Heartbeat,
    Hello,
    LedgerFollow,
    LedgerSubmit,
    OpenTunnel,
    Status,
    decode_answer,
    decode_opening,
    decode_request,
    encode,
)
from konsil.core.parameters import MAX_DATA_BYTES, Schema, Tensor
from konsil.core.rules import encode_entry
from konsil.errors import FrameError, ParametersError, PeerRefused
from konsil.identity.ledger_key import verify
from konsil.ledger.local import LocalLedger
from konsil.node import service as service_module
from konsil.node.peers import raised
from konsil.node.service import Service, join_entries, split_entries
from konsil.transport import frames
from konsil.transport.connect_answer import (
    MAX_HEAD_BYTES,
    MAX_INTERIM,
    MAX_SCHEMES,
    AnswerReader,
    ConnectAnswer,
)
from konsil.transport.frames import FrameReader, Header, Kind

SMALL_SEGMENT_BYTES = 4096


# --- frames ----------------------------------------------------------------------------------------


def read_frames(data: bytes) -> bool:
    """Bytes in pieces of any size: the first byte says how they are cut."""
    taken: list[Header] = []

    def sink(header: Header) -> memoryview | None:
        must(header.kind in (Kind.DATA, Kind.PIECE), "room is made for what has no bytes behind it")
        must(0 < header.body_bytes <= frames.SEGMENT_BYTES, "a segment over its limit was let through")
        taken.append(header)
        return memoryview(bytearray(header.body_bytes)) if header.request % 2 else None

    reader = FrameReader(sink)
    step, at, seen = data[0] + 1 if data else 1, 1, 0
    while at < len(data):
        room = reader.room
        must(0 < len(room) <= max(frames.MAX_HELLO_BYTES, MAX_MESSAGE_BYTES), "room for more than a limit")
        piece = data[at : at + min(step, len(room))]
        room[: len(piece)] = piece
        at += len(piece)
        try:
            frame = reader.filled(len(piece))
        except FrameError as error:
            refusal(error)
            return False
        if frame is None:
            continue
        seen += 1
        must(reader.frames == seen and not reader.partial, "the reader lost count")
        header = frame.header
        must(len(frame.message) == header.message_bytes, "a message of another length than announced")
        again = frames.encode(
            header.kind, header.request, frame.message, flags=header.flags, body_bytes=header.body_bytes
        )
        must(frames.parse_header(again[: frames.HEADER_BYTES]) == header, "a frame does not come back")
        if header.kind is Kind.DATA and header.request % 3 == 0:
            reader.forget(header.request)
    return seen > 0


def frame_seeds() -> list[bytes]:
    """One of each kind, and a whole exchange."""
    hello = frames.encode(Kind.HELLO, message=encode(Hello(3, world.digest("g"), "a", "run")))
    opened = frames.encode(Kind.OPEN, 2, encode(OpenTunnel("0" * 16)))
    piece = frames.encode(Kind.PIECE, 2, body_bytes=50) + bytes(50)
    made = [
        hello,
        frames.encode(Kind.HELLO, message=b"no", flags=frames.Flag.REFUSED),
        frames.encode(Kind.REQUEST, 1, encode(GetStatus())),
        frames.encode(Kind.ANSWER, 1, encode(Bytes()), body_bytes=100)
        + frames.encode(Kind.DATA, 1, body_bytes=60) + bytes(60)
        + frames.encode(Kind.DATA, 1, body_bytes=40) + bytes(40),
        frames.encode(Kind.ANSWER, 1, flags=frames.Flag.FAILED),
        frames.encode(Kind.CANCEL, 1),
        frames.encode(Kind.PING, 1) + frames.encode(Kind.PONG, 1),
        frames.encode(Kind.GOAWAY, message=b"bye"),
        opened + frames.encode(Kind.CREDIT, 2, body_bytes=70) + piece + piece + frames.encode(Kind.FINISH, 2),
        opened + frames.encode(Kind.OPEN, 4) + piece + frames.encode(Kind.RESET, 2, b"enough"),
        frames.encode(Kind.CREDIT, 1, body_bytes=100) + frames.encode(Kind.PIECE, 1, body_bytes=3) + b"abc"
        + frames.encode(Kind.FINISH, 1) + frames.encode(Kind.CREDIT, 1, body_bytes=1000),
        frames.encode(Kind.RESET, 1, b"not here"),
    ]  # fmt: skip
    return [b"\xff" + b"".join(made), *(bytes((step,)) + hello + each for step in (0, 7) for each in made)]


# --- messages --------------------------------------------------------------------------------------


def read_request(data: bytes) -> bool:
    """A request that is read comes back."""
    try:
        request = decode_request(data)
    except FrameError as error:
        refusal(error)
        return False
    must(decode_request(encode(request)) == request, "a request does not come back")
    return True


def read_answer(data: bytes) -> bool:
    """An answer that is read comes back; a failure can be raised."""
    try:
        answer = decode_answer(data)
    except FrameError as error:
        refusal(error)
        return False
    must(repr(decode_answer(encode(answer))) == repr(answer), "an answer does not come back")
    if isinstance(answer, Failure):
        for by_contract in (True, False):
            error = raised(answer, "b", by_contract=by_contract)
            refusal(error)
            must("\x1b" not in str(error), "a peer's words steer a terminal")
    return True


def read_opening(data: bytes) -> bool:
    """What a stream is opened for comes back."""
    try:
        opening = decode_opening(data)
    except FrameError as error:
        refusal(error)
        return False
    must(decode_opening(encode(opening)) == opening, "an opening does not come back")
    must(len(encode(opening)) <= frames.MAX_OPENING_BYTES, "an opening over its limit")
    must(len(opening.tunnel) == 16 and opening.tunnel.isascii(), "a tunnel's name that is none")
    return True


def opening_seeds() -> list[bytes]:
    """Of a new tunnel, and of one that goes on."""
    return [encode(OpenTunnel("0123456789abcdef", goes_on=goes_on)) for goes_on in (False, True)]


def request_seeds() -> list[bytes]:
    """One of each."""
    digest = world.digest("x")
    return [
        encode(message)
        for message in (
            Hello(3, digest, "a", "run"),
            GetManifest("aml", digest, "b", relay=True),
            GetChunk("aml", digest, 3, "b", relay=True),
            GetCard(digest),
            Heartbeat("aml", 1, "training", 0.5),
            LedgerSubmit(world.life()[-1][0].entries[0].signed),
            LedgerSubmit(world.life()[-1][0].entries[4].signed),
            LedgerFollow(0, 0.0),
            GetStatus(),
        )
    ]


def answer_seeds() -> list[bytes]:
    """One of each."""
    return [
        encode(message)
        for message in (
            Hello(3, world.digest("x"), "a", "run"),
            Bytes(),
            Done(),
            Accepted(3),
            Status("a", "0.1.0", 1e9, 3, ("b", "c")),
            Failure(
                "Refused", "too_early", "what", "safe", "do", {"wait_s": 3.0, "open_round": 2, "name": "b"}
            ),
            Failure("PeerRefused", "not_here", "what"),
        )
    ]


# --- the service -----------------------------------------------------------------------------------


@cache
def _service() -> Service:
    """A node that keeps the ledger."""
    service_module.MAX_WAIT_S = 0.0  # the fuzzer waits for nobody
    path = world.scratch() / f"service-{os.getpid()}.db"
    opening = LocalLedger.open(
        path, world.genesis(), world.key("a"), "a", lambda: world.START_S + 100.0, verify
    )
    made = Service("a", dict, lambda _: None)
    made.operator = world.loop().run_until_complete(opening)
    return made


def serve(data: bytes) -> bool:
    """Any bytes as a peer's request at a node that keeps the ledger: there is always an answer."""
    service = _service()
    before = service.operator.state  # type: ignore[union-attr]
    reply = world.loop().run_until_complete(service.answer("b", data))
    must(len(reply.message) <= MAX_MESSAGE_BYTES, "an answer over its limit")
    answer = decode_answer(reply.message)
    after = service.operator.state  # type: ignore[union-attr]
    must(before == after or isinstance(answer, Accepted), "a refused request changed the ledger")
    return not isinstance(answer, Failure)


# --- bytes behind digests --------------------------------------------------------------------------


def read_manifest(data: bytes) -> bool:
    """A manifest has one encoding."""
    try:
        manifest = Manifest.decode(data)
    except FrameError as error:
        refusal(error)
        return False
    must(manifest.encode() == data, "two encodings of one manifest")
    must(0 < len(manifest.groups) <= MAX_GROUPS, "too many groups")
    must(len(manifest.digest) == 64, "no digest")
    return True


def manifest_seeds() -> list[bytes]:
    """Of an update, of a merge, of a part."""
    leaves = tuple(bytes((n,)) * 32 for n in range(5))
    header = world.schema().header
    return [
        Manifest(header, (leaves,)).encode(),
        Manifest(header, (leaves[:2], leaves[2:3], leaves[3:])).encode(),
        Manifest(b"", (leaves,)).encode(),
        Manifest(b"", ((),)).encode(),
    ]


def read_header(data: bytes) -> bool:
    """A schema has one header."""
    try:
        schema = Schema.from_header(data)
    except ParametersError as error:
        refusal(error)
        return False
    must(schema.header == data, "two headers of one schema")
    must(Schema.of_tensors(reversed(schema.tensors)) == schema, "the order is not the tensors' own")
    must(0 < schema.data_bytes <= MAX_DATA_BYTES, "a size over the limit")
    must(schema.offsets[-1] == sum(tensor.data_bytes for tensor in schema.tensors), "holes or overlaps")
    if schema.data_bytes < SMALL_SEGMENT_BYTES:
        schema.runs(0, schema.data_bytes)
    schema.differences(world.schema())
    schema.digest.encode()
    return True


def header_seeds() -> list[bytes]:
    """Of small and of odd models."""
    odd = Schema.of_tensors(
        [Tensor("\u00e9", "F64", ()), Tensor("konsil.frozen:0123456789abcdef", "F32", (0,)),
         Tensor('a"b', "BF16", (2, 0, 3)), Tensor("x" * 100, "F16", (1,) * 30)]
    )  # fmt: skip
    return [world.schema().header, odd.header]


def read_gram(data: bytes) -> bool:
    """A Gram matrix that is read is finite, symmetric, and comes back."""
    n = int((len(data) // 8) ** 0.5)
    try:
        gram = decode_gram(data, n)
    except FrameError as error:
        refusal(error)
        return False
    must(encode_gram(gram) == data and np.isfinite(gram).all(), "a Gram matrix does not come back")
    return True


def gram_seeds() -> list[bytes]:
    """Of one, two and four members."""
    return [encode_gram(np.full((n, n), 1.5)) for n in (1, 2, 4)]


def read_entries(data: bytes) -> bool:
    """Entries that are cut apart can be put together again."""
    try:
        entries = split_entries(data)
    except PeerRefused as error:
        refusal(error)
        return False
    must(join_entries(entries) == data, "entries do not come back")
    return True


def entries_seeds() -> list[bytes]:
    """A short history."""
    encoded = [encode_entry(entry) for entry in world.life()[-1][0].entries]
    return [join_entries(encoded[:2]), join_entries([]), join_entries([b"", b"a"])]


# --- the proxy on the way ----------------------------------------------------------------------------


def _answer_of(pieces: Sequence[bytes]) -> ConnectAnswer | str | None:
    """The answer in some pieces; the sentence with which they are refused; None if there is no end."""
    reader = AnswerReader()
    for number, piece in enumerate(pieces):
        try:
            answer = reader.feed(piece)
        except FrameError as error:
            refusal(error)
            return error.what
        if answer is not None:
            rest = sum(len(each) for each in pieces[number + 1 :])
            return answer._replace(surplus_bytes=answer.surplus_bytes + rest)
    return None


def read_connect_answer(data: bytes) -> bool:
    """What a proxy says to CONNECT: the first byte says how it is cut, which must make no difference."""
    if not data:
        return False
    step, said = data[0] * 8 + 1, data[1:]
    whole = _answer_of([said])
    cut = _answer_of([said[at : at + step] for at in range(0, len(said), step)])
    # Of what is no answer, the first thing that is wrong may be another one, seen earlier.
    must(type(whole) is type(cut), "pieces make an answer of what is none, or none of one")
    if not isinstance(whole, ConnectAnswer):
        most = (MAX_INTERIM + 1) * MAX_HEAD_BYTES
        must(whole is not None or len(said) < most, "a head without an end is waited for")
        return False
    must(whole == cut, "another answer, cut otherwise")
    *before, head, end = said[: len(said) - whole.surplus_bytes].split(b"\r\n\r\n")
    must(end == b"" and len(before) <= MAX_INTERIM, "the head ends elsewhere")
    must(all(each.split(b" ")[1].startswith(b"1") for each in before), "an answer is passed over")
    must(len(head) + 4 <= MAX_HEAD_BYTES and 101 <= whole.status <= 599, "an answer that HTTP does not have")
    must(whole.status // 100 != 1 or whole.status == 101, "an answer is taken for the final one")
    shown = whole.reason + "".join(whole.schemes)
    must(shown.isascii() and (not shown or shown.isprintable()), "words that steer a terminal")
    must(len(whole.reason) <= 80 and len(whole.schemes) <= MAX_SCHEMES, "words without an end")
    return whole.opens


def connect_answer_seeds() -> list[bytes]:
    """As proxies answer."""
    heads = (
        b"200 Connection established\r\nVia: 1.1 squid\r\nContent-Length: 0",
        b'407 Who?\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm="a, b", NTLM',
        b"403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\nSet-Cookie: a=b",
        b"302 Found\r\nLocation: http://elsewhere/",
        b"100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nVia: a",
    )
    return [
        bytes((how,)) + b"HTTP/1.1 " + head + b"\r\n\r\n" + behind
        for head in heads
        for how in (0, 1, 255)
        for behind in (b"", b"<html>")
    ]


TARGETS: Sequence[Target] = (
    Target("frames", "a peer's bytes as frames", read_frames, frame_seeds),
    Target("conversation", "a whole connection with a peer", converse, frame_seeds),
    Target("request", "a peer's request", read_request, request_seeds, "msgpack"),
    Target("opening", "what a peer opens a stream for", read_opening, opening_seeds, "msgpack"),
    Target("answer", "a peer's answer", read_answer, answer_seeds, "msgpack"),
    Target("service", "a request, and what the node answers", serve, request_seeds, "msgpack"),
    Target("manifest", "header and leaves behind a digest", read_manifest, manifest_seeds),
    Target("header", "a schema's header", read_header, header_seeds),
    Target("gram", "a leader's Gram matrix", read_gram, gram_seeds),
    Target("entries", "the operator's entries, cut apart", read_entries, entries_seeds),
    Target("connect", "a proxy's answer", read_connect_answer, connect_answer_seeds, max_bytes=20 * 1024),
)
