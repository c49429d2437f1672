"""Streams over mutual TLS on loopback: beside requests, made anew with their connection, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import ssl
import time
import tracemalloc
from dataclasses import replace

import pytest

from konsil.errors import PeerRefused, PeerUnreachable
from konsil.transport.base import Reply
from konsil.transport.frames import SEGMENT_BYTES, STREAM_WINDOW_BYTES
from konsil.transport.timings import MAX_STREAMS, Timings

pytestmark = pytest.mark.real

OPEN, PIECE, CREDIT, FINISH, RESET = range(9, 14)
CHUNK_BYTES = 4 * 1024 * 1024


async def echo(_who, _message, stream):
    while data := await stream.read():
        await stream.write(data)
    stream.finish()


async def until(condition, timeout_s=5.0):
    """Let the loop run until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for are plain values of another object
            await asyncio.sleep(0.005)


def open_streams(transport) -> int:
    return sum(len(connection._streams) for connection in transport._connections)


async def there_and_back(stream, data):
    async def write():
        await stream.write(data)
        stream.finish()

    writing = asyncio.create_task(write())
    came = hashlib.blake2b()
    while piece := await stream.read():
        came.update(piece)
    await writing
    return came.digest()


@pytest.mark.parametrize("opener", ["a", "b"])
async def test_either_side_opens_streams_whoever_dialled(site, opener):
    nodes = dict(zip("ab", await site.pair(timings=Timings()), strict=True))
    other = "b" if opener == "a" else "a"
    told = []

    async def handler(who, message, stream):
        told.append((who, message))
        await echo(who, message, stream)

    nodes[other].serve_streams(handler)
    data = os.urandom(8 * STREAM_WINDOW_BYTES + 7)
    streams = [await nodes[opener].open_stream(other, b"echo %d" % n, timeout_s=5) for n in range(4)]
    came = await asyncio.gather(*(there_and_back(stream, data) for stream in streams))
    assert set(came) == {hashlib.blake2b(data).digest()}
    assert told == [(opener, b"echo %d" % n) for n in range(4)]
    await until(lambda: not open_streams(nodes["a"]) and not open_streams(nodes["b"]))
    assert len(nodes["a"]._connections) == 1


async def test_a_stream_that_is_not_read_fills_no_memory_and_holds_up_nobody(site):
    a, b = await site.pair(timings=Timings())
    kept = []

    async def reads_nothing(who, message, stream):
        stream.accept()
        kept.append(stream)
        if message == b"echo":
            await echo(who, message, stream)
        await stream.ended()

    b.serve_streams(reads_nothing)
    stuck = await a.open_stream("b", b"stuck", timeout_s=5)
    writing = asyncio.create_task(stuck.write(bytes(64 * STREAM_WINDOW_BYTES)))
    await until(lambda: kept[0]._room == 0)
    assert b.bytes_in < 2 * STREAM_WINDOW_BYTES
    assert sum(map(len, kept[0]._unread)) == STREAM_WINDOW_BYTES
    other = await a.open_stream("b", b"echo", timeout_s=5)
    data = os.urandom(3 * STREAM_WINDOW_BYTES)
    assert await there_and_back(other, data) == hashlib.blake2b(data).digest()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    assert not writing.done()
    kept[0].abort("enough")
    with pytest.raises(PeerRefused, match="ended a stream: enough"):
        await writing


async def test_requests_and_chunks_pass_a_busy_stream_and_it_passes_them(site):
    chunk = os.urandom(CHUNK_BYTES)

    async def serving(_who, message):
        return Reply(b"", chunk) if message == b"chunk" else Reply(message)

    a, b = await site.pair(far=serving, timings=Timings())

    async def pours(_who, _message, stream):
        while True:
            await stream.write(bytes(SEGMENT_BYTES))

    b.serve_streams(pours)
    stream = await a.open_stream("b", b"pour", timeout_s=5)
    poured = 0

    async def read():
        nonlocal poured
        while True:
            poured += len(await stream.read())

    reading = asyncio.create_task(read())
    await until(lambda: poured > 20 * STREAM_WINDOW_BYTES)
    before, took_s = poured, []
    for _ in range(20):
        start_s = time.perf_counter()
        memory = memoryview(bytearray(CHUNK_BYTES))
        asking = asyncio.create_task(a.request("b", b"chunk", timeout_s=20, into=memory))
        await a.request("b", b"small", timeout_s=20)
        took_s.append(time.perf_counter() - start_s)
        await asking
        assert memory == chunk
    assert sorted(took_s)[10] < 0.1
    assert poured - before > 20 * CHUNK_BYTES / 8, "the stream had its turns, too"
    reading.cancel()
    stream.abort("enough")


async def test_a_member_that_can_only_dial_out_is_opened_streams_to(site):
    a = await site.node("a", listen=None)
    b = await site.node("b")
    a.serve_streams(echo)
    a.set_peers([site.peer("b")])
    b.set_peers([site.peer("a")])
    stream = await b.open_stream("a", b"echo", timeout_s=5)
    data = os.urandom(2 * STREAM_WINDOW_BYTES)
    assert await there_and_back(stream, data) == hashlib.blake2b(data).digest()


async def test_nobody_opens_streams_to_strangers_or_removed_members(site):
    a, b = await site.pair()
    b.serve_streams(echo)
    stream = await a.open_stream("b", b"echo", timeout_s=5)
    b.set_peers([])
    with pytest.raises(PeerUnreachable, match="its streams with it"):
        await stream.read()
    with pytest.raises(PeerUnreachable, match="does not trust our certificate"):
        await a.open_stream("b", b"echo", timeout_s=0.5)
    with pytest.raises(PeerUnreachable, match="not in the directory"):
        await b.open_stream("a", b"echo", timeout_s=0.5)


async def test_a_connection_that_is_left_keeps_its_streams_for_a_while_and_then_cuts_them(site):
    quick = replace(Timings(), stream_grace_s=0.5)
    a, b = await site.node("a", listen=None, timings=quick), await site.node("b", timings=quick)
    a.set_peers([site.peer("b")])
    b.set_peers([site.peer("a")])
    b.serve_streams(echo)
    stream = await a.open_stream("b", b"echo", timeout_s=5)
    short = await a.open_stream("b", b"echo", timeout_s=5)
    old = next(iter(a._connections))
    old.leave("for a test")
    assert stream.leaving.is_set()
    await stream.write(b"still there")
    assert await stream.read() == b"still there"
    newer = await a.open_stream("b", b"echo", timeout_s=5)
    assert not newer.leaving.is_set()
    assert len(a._connections) == 2
    short.finish()
    assert await short.read() == b""
    assert not old.ended
    with pytest.raises((PeerRefused, PeerUnreachable), match="made anew"):
        await stream.read()
    await until(lambda: old.ended)
    await newer.write(b"on the new one")
    assert await newer.read() == b"on the new one"


async def test_a_connection_that_is_left_closes_with_its_last_stream(site):
    a, b = await site.pair(timings=Timings())
    b.serve_streams(echo)
    stream = await a.open_stream("b", b"echo", timeout_s=5)
    old = next(iter(a._connections))
    old.leave("for a test")
    await a.request("b", b"hello", timeout_s=5)
    assert not old.ended
    stream.finish()
    assert await stream.read() == b""
    await until(lambda: old.ended)


async def test_a_dead_line_ends_its_streams_and_those_who_watch_are_told(site, proxy):
    b = await site.node("b", timings=Timings())
    b.serve_streams(echo)
    async with proxy(b.port) as line:
        a = await site.node("a", listen=None)
        seen = []
        a.watch_links(lambda peer, up: seen.append((peer, up)))
        a.set_peers([site.peer("b", line.address)])
        b.set_peers([site.peer("a")])
        stream = await a.open_stream("b", b"echo", timeout_s=5)
        line.cut()
        with pytest.raises(PeerUnreachable, match="its streams with it"):
            await stream.read()
        again = await a.open_stream("b", b"echo", timeout_s=5)
        await again.write(b"x")
        assert await again.read() == b"x"
        assert seen == [("b", True), ("b", False), ("b", True)]
        a.set_peers([])
        assert seen[-1] == ("b", False)
        await a.close()
        await b.close()


async def test_closing_ends_streams_at_both_sides(site):
    a, b = await site.pair()
    ended = asyncio.Event()

    async def waits(who, message, stream):
        stream.accept()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    b.serve_streams(waits)
    stream = await a.open_stream("b", b"?", timeout_s=5)
    await b.close()
    with pytest.raises(PeerUnreachable, match="is stopping"):
        await stream.read()
    await asyncio.wait_for(ended.wait(), 5)


# --- hostile members -------------------------------------------------------------------------------


async def closed(reader, timeout_s=5.0) -> bytes:
    """Everything that still comes until the other side closes."""
    try:
        return await asyncio.wait_for(reader.read(), timeout_s)
    except (ConnectionError, ssl.SSLError):
        return b""


async def cut_off(site, words: bytes) -> bytes:
    """What a node says to a member that says this, until it closes the connection."""
    b = await site.node("b", timings=Timings())  # so that it does not close it for silence

    async def reads_nothing(_who, _message, stream):
        stream.accept()
        await stream.ended()

    b.serve_streams(reads_nothing)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    tracemalloc.start()
    try:
        writer.write(words)
        said = await closed(reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024
    a = await site.node("a", listen=None)
    a.set_peers([site.peer("b")])
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    return said


@pytest.mark.parametrize(
    "frames",
    [
        [(OPEN, 2)],
        [(OPEN, 0)],
        [(OPEN, 1), (OPEN, 1)],
        [(OPEN, 3), (OPEN, 1)],
        [(OPEN, 1, {"message_bytes": 1025})],
        [(PIECE, 1, {"body_bytes": 1})],
        [(PIECE, 2, {"body_bytes": 1})],
        [(CREDIT, 1, {"body_bytes": 1})],
        [(OPEN, 1), (CREDIT, 1, {"body_bytes": STREAM_WINDOW_BYTES + 1})],
        [(OPEN, 1), (CREDIT, 1, {"body_bytes": STREAM_WINDOW_BYTES})],
        [(OPEN, 1), (CREDIT, 1)],
        [(OPEN, 1), (PIECE, 1, {"body_bytes": 1})],
        [(FINISH, 7)],
        [(OPEN, 1), (FINISH, 1), (FINISH, 1)],
        [(RESET, 1, {"message": b"why"})],
        [(OPEN, 1), (RESET, 1, {"message_bytes": 4097})],
        [(OPEN, 1, {"flags": 1})],
    ],
    ids=str,
)
async def test_a_member_that_breaks_the_rules_of_streams_is_cut_off(site, make_frame, frames):
    words = b"".join(make_frame(kind, number, **(how[0] if how else {})) for kind, number, *how in frames)
    await cut_off(site, words)


async def test_more_bytes_than_the_window_cut_the_connection(site, make_frame):
    b = await site.node("b", timings=Timings())
    taken = []

    async def reads_nothing(_who, _message, stream):
        taken.append(stream)
        stream.accept()
        await stream.ended()

    b.serve_streams(reads_nothing)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    writer.write(make_frame(OPEN, 1, b"?"))
    await until(lambda: taken)
    piece = make_frame(PIECE, 1, body_bytes=SEGMENT_BYTES) + bytes(SEGMENT_BYTES)
    writer.write(piece * 4)
    await until(lambda: taken[0]._room < SEGMENT_BYTES)
    assert not taken[0].over
    writer.write(piece)
    await closed(reader)
    assert "bytes came in a stream in which" in str(taken[0].reason)


async def test_more_streams_than_allowed_are_refused_one_by_one(site, make_frame):
    b = await site.node("b")
    served = 0

    async def keeps(_who, _message, stream):
        nonlocal served
        served += 1
        await stream.ended()

    b.serve_streams(keeps)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    writer.write(b"".join(make_frame(OPEN, number, b"?") for number in range(1, 200, 2)))
    writer.write(make_frame(2, 77, b"still served"))
    said = b""
    while b"a said still served" not in said:
        said += await asyncio.wait_for(reader.read(65536), 5)
    assert said.count(b"Too many streams of 'a'") == 100 - 2 * MAX_STREAMS
    assert served == 2 * MAX_STREAMS


async def test_streams_that_are_opened_and_reset_for_ever_leave_nothing(site, make_frame):
    b = await site.node("b", timings=Timings())
    b.serve_streams(echo)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    for number in range(1, 2000, 2):
        writer.write(make_frame(OPEN, number, b"?") + make_frame(RESET, number, b"no"))
        await writer.drain()
    writer.write(make_frame(2, 77, b"still served"))
    said = b""
    while b"a said still served" not in said:
        said += await asyncio.wait_for(reader.read(65536), 5)
    await until(lambda: not open_streams(b))


async def test_an_unwilling_reader_is_not_sent_more_than_it_grants(site, make_frame):
    b = await site.node("b", timings=Timings())

    async def pours(_who, _message, stream):
        while True:
            await stream.write(bytes(SEGMENT_BYTES))

    b.serve_streams(pours)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    writer.write(make_frame(OPEN, 1, b"?"))
    said = b""
    while len(said) < STREAM_WINDOW_BYTES:
        said += await asyncio.wait_for(reader.read(1 << 20), 5)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            while True:
                said += await reader.read(1 << 20)
    assert len(said) < STREAM_WINDOW_BYTES + 1000
