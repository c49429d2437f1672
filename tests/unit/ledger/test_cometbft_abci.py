"""ABCI's messages on the wire, as CometBFT 0.38.25 writes and reads them; and the socket that they come through."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from konsil.errors import FrameError, LedgerError
from konsil.ledger.cometbft import abci
from konsil.ledger.cometbft.abci import MAX_MESSAGE_BYTES, decode_request, encode_response, message
from konsil.ledger.cometbft.server import AbciServer, framed, read_message

MODULES = Path(os.environ.get("GOMODCACHE") or Path.home() / "go/pkg/mod")
MODULE = MODULES / "github.com/cometbft/cometbft@v0.38.25/proto/tendermint"
"""Where the tests' engine is built from its source, which says the numbers."""

SOON_S = 10


# --- an encoder of its own -------------------------------------------------------------------------


def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def fields(*pairs):
    """(number, int or bytes) -> protobuf's bytes."""
    out = b""
    for number, value in pairs:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


TIME = fields((1, 1_700_000_000), (2, 5))
BLOCK = ((1, b"one"), (1, b"two"), (4, b"h" * 32), (5, 7), (6, TIME))
PROOF = fields((1, 1), (2, fields((1, b"a" * 20), (3, 1))), (3, 6), (4, TIME), (5, 4))

REQUESTS = {
    "echo": (1, fields((1, b"hi")), {"message": "hi"}),
    "flush": (2, b"", {}),
    "info": (3, fields((1, b"0.38.25"), (2, 11), (3, 8), (4, b"2.0.0")), {"version": "0.38.25"}),
    "init_chain": (5, fields((1, TIME), (2, b"konsil-1"), (5, b"{}"), (6, 1)), {"chain_id": "konsil-1"}),
    "query": (6, fields((1, b"x"), (2, b"/p2p/filter/id/0"), (3, 4), (4, 1)), {"data": b"x", "path": "/p2p/filter/id/0"}),
    "check_tx": (8, fields((1, b"call"), (2, 1)), {"tx": b"call", "type": 1}),
    "commit": (11, b"", {}),
    "list_snapshots": (12, b"", {}),
    "prepare_proposal": (
        16,
        fields((1, 900), (2, b"one"), (2, b"two"), (3, b""), (5, 7), (6, TIME), (8, b"p" * 20)),
        {"max_tx_bytes": 900, "txs": [b"one", b"two"], "height": 7, "time": (1_700_000_000, 5)},
    ),
    "process_proposal": (17, fields(*BLOCK, (8, b"p" * 20)), {"txs": [b"one", b"two"], "hash": b"h" * 32, "height": 7}),
    "finalize_block": (
        20,
        fields(*BLOCK, (3, PROOF)),
        {"txs": [b"one", b"two"], "height": 7, "time": (1_700_000_000, 5), "misbehavior": 6},
    ),
}  # fmt: skip


def plain(name, value):
    if name == "time":
        return value.seconds, value.nanos
    if name == "misbehavior":
        assert (value[0].type, value[0].validator.address, value[0].validator.power) == (1, b"a" * 20, 1)
        return value[0].height
    return list(value) if name == "txs" else value


@pytest.mark.parametrize("kind", sorted(REQUESTS))
def test_a_request_is_read_as_cometbft_writes_it(kind):
    number, body, told = REQUESTS[kind]
    read, request = decode_request(fields((number, body)))
    assert read == kind
    assert {name: plain(name, getattr(request, name)) for name in told} == told


def _update(key, power):
    return message("ValidatorUpdate")(pub_key={"ed25519": key}, power=power)


RESPONSES = [
    ("exception", {"error": "no"}, 1, fields((1, b"no"))),
    ("echo", {"message": "hi"}, 2, fields((1, b"hi"))),
    ("flush", {}, 3, b""),
    (
        "info",
        {"data": "konsil", "app_version": 1, "last_block_height": 9, "last_block_app_hash": b"h"},
        4,
        fields((1, b"konsil"), (3, 1), (4, 9), (5, b"h")),
    ),
    ("init_chain", {"app_hash": b"h"}, 6, fields((3, b"h"))),
    ("query", {"code": 1, "log": "no"}, 7, fields((1, 1), (3, b"no"))),
    ("check_tx", {"code": 1, "codespace": "x", "log": "l"}, 9, fields((1, 1), (3, b"l"), (8, b"x"))),
    ("check_tx", {}, 9, b""),
    ("commit", {"retain_height": 3}, 12, fields((3, 3))),
    ("list_snapshots", {}, 13, b""),
    ("offer_snapshot", {"status": 3}, 14, fields((1, 3))),
    ("prepare_proposal", {"txs": [b"one", b""]}, 17, fields((1, b"one"), (1, b""))),
    ("process_proposal", {"status": 1}, 18, fields((1, 1))),
    ("extend_vote", {}, 19, b""),
    ("verify_vote_extension", {"status": 1}, 20, fields((1, 1))),
    (
        "finalize_block",
        {
            "tx_results": [message("ExecTxResult")(), message("ExecTxResult")(code=1, log="l", codespace="x")],
            "validator_updates": [_update(b"k" * 32, 0), _update(b"m" * 32, 1)],
            "app_hash": b"h",
        },
        21,
        fields(
            (2, b""), (2, fields((1, 1), (3, b"l"), (8, b"x"))),
            (3, fields((1, fields((1, b"k" * 32))))), (3, fields((1, fields((1, b"m" * 32))), (2, 1))),
            (5, b"h"),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "told", "number", "body"), RESPONSES)
def test_an_answer_is_written_as_cometbft_reads_it(kind, told, number, body):
    assert encode_response(kind, **told) == fields((number, body))


def test_every_number_is_the_one_in_cometbfts_own_description():
    """All of what is described here is held against the source, where the engine was built from it."""
    if not MODULE.is_dir():
        pytest.skip("NOT TESTED: CometBFT's source is not here, so numbers are held against this file's only")
    named: dict[str, dict[str, tuple[int, str]]] = {}
    for path in ("abci/types.proto", "types/types.proto", "crypto/keys.proto"):
        for name, body in re.findall(
            r"^message (\w+) \{(?:\}|(.*?)^\})", (MODULE / path).read_text(), re.MULTILINE | re.DOTALL
        ):
            named.setdefault(name, {}).update(
                {
                    field: (int(number), ("*" if many else "") + kind.split(".")[-1])
                    for many, kind, field, number in re.findall(
                        r"^\s+(repeated )?([\w.]+)\s+(\w+)\s*=\s*(\d+)", body, re.MULTILINE
                    )
                }
            )
    scalars = {"string", "bytes", "int32", "int64", "uint32", "uint64"}
    seen = 0
    for name, described in abci._FIELDS.items():
        if name in {"Empty", "Result", "Timestamp"}:
            continue
        for number, field, kind in described:
            there, of_kind = named[name][field]
            seen += 1
            assert there == number, f"{name}.{field}"
            if kind.lstrip("*") in scalars and of_kind.lstrip("*") in scalars:
                assert kind == of_kind, f"{name}.{field}"
    assert seen > 80
    for name in abci._REQUESTS:
        assert name[2] in {"Empty", named["Request"][name[1]][1]}


# --- hostile bytes ---------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.one_of(
    st.binary(max_size=200),
    st.builds(lambda kind, tail: fields(REQUESTS[kind][:2])[:-1] + tail, st.sampled_from(sorted(REQUESTS)), st.binary(max_size=9)),
    st.builds(lambda n, body: fields((n, body)), st.integers(1, 40), st.binary(max_size=60)),
))  # fmt: skip
def test_bytes_that_are_no_request_are_refused_in_words(data):
    try:
        kind, request = decode_request(data)
    except FrameError as error:
        assert error.what.startswith("A request of CometBFT cannot be read")  # noqa: PT017 - the others are fine
    else:
        assert kind in {name for _, name, _ in abci._REQUESTS}
        request.SerializeToString()


def test_a_request_of_an_unknown_kind_or_none_or_too_long_is_refused():
    for data in (b"", fields((99, b"x")), fields((4, b"")), bytes(MAX_MESSAGE_BYTES + 1)):
        with pytest.raises(FrameError):
            decode_request(data)


@given(st.integers(0, MAX_MESSAGE_BYTES))
def test_a_length_comes_back(length):
    class Long(bytes):
        def __len__(self):
            return length

    assert framed(Long()) == varint(length)


# --- the socket ------------------------------------------------------------------------------------


def reader_of(*pieces):
    reader = asyncio.StreamReader()
    for piece in pieces:
        reader.feed_data(piece)
    reader.feed_eof()
    return reader


async def test_messages_are_read_whatever_pieces_they_come_in():
    told = [b"", b"x" * 127, b"y" * 128, b"z" * 70_000]
    wire = b"".join(framed(one) for one in told)
    for step in (1, 7, 4096, len(wire)):
        if step == 1:
            wire_here, told_here = wire[: 1 + 128 + 130], told[:3]
        else:
            wire_here, told_here = wire, told
        reader = reader_of(*(wire_here[at : at + step] for at in range(0, len(wire_here), step)))
        assert [await read_message(reader) for _ in told_here] == told_here
        with pytest.raises(asyncio.IncompleteReadError):
            await read_message(reader)


@pytest.mark.parametrize(
    "wire", [varint(MAX_MESSAGE_BYTES + 1), varint(2**34), b"\xff" * 5, b"\xff" * 20, b"\x80" * 6]
)
async def test_a_length_over_the_limit_reserves_nothing(wire):
    reader = reader_of(wire)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            await read_message(reader)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


async def test_the_longest_length_reserves_nothing_before_the_bytes_come():
    tracemalloc.start()
    try:
        with pytest.raises(asyncio.IncompleteReadError):
            await read_message(reader_of(varint(MAX_MESSAGE_BYTES), b"few"))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@contextlib.asynccontextmanager
async def served(tmp_path, answer):
    async with AbciServer(tmp_path / "a.sock", answer) as server, asyncio.timeout(SOON_S):
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        try:
            yield server, reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def echo(kind, request):
    return {"message": request.message} if kind == "echo" else {}


def asked(kind, body=b""):
    return framed(fields((REQUESTS[kind][0], body)))


async def test_requests_are_answered_in_order_however_they_are_cut(tmp_path):
    wire = asked("echo", fields((1, b"a"))) + asked("flush") + asked("echo", fields((1, b"b" * 300)))
    right = [fields((2, fields((1, b"a")))), fields((3, b"")), fields((2, fields((1, b"b" * 300))))]
    for step in (1, len(wire)):
        async with served(tmp_path, echo) as (_, reader, writer):
            for at in range(0, len(wire), step):
                writer.write(wire[at : at + step])
                await writer.drain()
            assert [await read_message(reader) for _ in right] == right


async def test_the_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path):
    (tmp_path / "a.sock").write_text("left by a node that was killed")
    async with served(tmp_path, echo) as (server, _, _):
        assert server.path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [(LedgerError("The disk is full."), b"disk is full"), (ZeroDivisionError(), b"ZeroDivisionError")],
)
async def test_what_cannot_be_answered_is_said_and_ends_the_connection(tmp_path, error, says):
    async def failing(_kind, _request):
        raise error

    async with served(tmp_path, failing) as (server, reader, writer):
        writer.write(asked("commit") + asked("flush"))
        told = await read_message(reader)
        assert told[:1] == b"\x0a"
        assert says in told
        assert await reader.read() == b"", "nothing more is answered: CometBFT stops"
        again, other = await asyncio.open_unix_connection(str(server.path))
        other.write(asked("flush"))
        assert says in await read_message(again), "another connection is answered all the same"
        other.close()
        await other.wait_closed()


@pytest.mark.parametrize("answer", [{"no_such_field": 1}, {"message": 5}, {"message": "\ud800"}])
async def test_an_answer_that_cannot_be_written_is_said_as_well(tmp_path, answer):
    async def wrong(_kind, _request):
        return answer

    async with served(tmp_path, wrong) as (_, reader, writer):
        writer.write(asked("echo", fields((1, b"a"))))
        assert (await read_message(reader))[:1] == b"\x0a"
        assert await reader.read() == b""


@pytest.mark.parametrize("wire", [varint(2**34), framed(b"\xff"), framed(b""), framed(b"abc")[:-1]])
async def test_bytes_that_are_no_request_end_their_connection_only(tmp_path, wire):
    async with served(tmp_path, echo) as (server, reader, writer):
        writer.write(wire)
        writer.write_eof()
        assert await reader.read() == b""
        again, other = await asyncio.open_unix_connection(str(server.path))
        other.write(asked("flush"))
        assert await read_message(again) == fields((3, b""))
        other.close()
        await other.wait_closed()


async def test_the_server_ends_while_a_request_is_answered(tmp_path):
    begun = asyncio.Event()

    async def slow(_kind, _request):
        begun.set()
        await asyncio.Event().wait()

    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, told: complaints.append(told))
    async with served(tmp_path, slow) as (_, _reader, writer):
        writer.write(asked("commit"))
        await begun.wait()
    await asyncio.sleep(0)
    assert not complaints
