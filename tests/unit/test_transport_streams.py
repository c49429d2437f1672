"""Streams: bytes in order under a window, ends of both kinds, and whose turn it is to be sent."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.errors import FrameError, PeerRefused, PeerUnreachable
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.frames import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_OPENING_BYTES,
    RECORD_BYTES,
    SEGMENT_BYTES,
    STREAM_WINDOW_BYTES,
    FrameReader,
    Kind,
    encode,
    parse_header,
)
from konsil.transport.memory import MemoryNetwork, MemoryTransport
from konsil.transport.sending import SendQueue
from konsil.transport.stream import Stream
from konsil.transport.timings import MAX_STREAMS


class Carrier:
    """What a stream says to its other end, kept."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def piece(self, _stream, data):
        self.said.append(("piece", bytes(data)))

    def credit(self, _stream, count):
        self.said.append(("credit", count))

    def finish(self, _stream):
        self.said.append(("finish",))

    def reset(self, _stream, reason):
        self.said.append(("reset", reason))

    def over(self, _stream):
        self.said.append(("over",))

    def sent(self) -> bytes:
        return b"".join(said[1] for said in self.said if said[0] == "piece")


def opened() -> tuple[Stream, Carrier]:
    """A stream that this side opened and the peer accepted."""
    carrier = Carrier()
    stream = Stream("b", 1, carrier, opened=True)
    stream.credited(STREAM_WINDOW_BYTES)
    return stream, carrier


def comes(stream: Stream, data: bytes) -> None:
    stream.room_for(len(data))[:] = data
    stream.landed()


async def still_waits(task: asyncio.Task) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


# --- one end ---------------------------------------------------------------------------------------


async def test_a_stream_that_is_not_read_stops_its_writer_at_a_window():
    stream, carrier = opened()
    writing = asyncio.create_task(stream.write(bytes(STREAM_WINDOW_BYTES + 10)))
    assert await still_waits(writing)
    assert len(carrier.sent()) == STREAM_WINDOW_BYTES
    stream.credited(4)
    assert await still_waits(writing)
    assert len(carrier.sent()) == STREAM_WINDOW_BYTES + 4
    stream.credited(1000)
    await writing
    assert len(carrier.sent()) == STREAM_WINDOW_BYTES + 10


async def test_reading_grants_credit_and_a_window_is_never_passed():
    stream, carrier = opened()
    for _ in range(4):
        comes(stream, bytes(STREAM_WINDOW_BYTES // 4))
    with pytest.raises(FrameError, match="1 bytes came in a stream in which 0 may come"):
        stream.room_for(1)
    assert not carrier.said
    await stream.read(10)
    assert not carrier.said, "credit for every few bytes would be a frame for every few bytes"
    while not carrier.said:
        await stream.read()
    ((_, granted),) = carrier.said
    assert STREAM_WINDOW_BYTES // 4 <= granted < STREAM_WINDOW_BYTES
    stream.room_for(granted)
    with pytest.raises(FrameError):
        stream.room_for(1)


async def test_bytes_one_by_one_do_not_cost_more_than_a_window():
    stream, _ = opened()
    tracemalloc.start()
    try:
        for _ in range(100_000):
            comes(stream, b"x")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 300_000
    assert sum([len(await stream.read()) for _ in range(2)]) == 100_000


async def test_an_end_is_read_behind_the_bytes_and_the_other_direction_goes_on():
    stream, carrier = opened()
    comes(stream, b"last")
    stream.peer_finished()
    assert await stream.read() == b"last"
    assert await stream.read() == b""
    assert await stream.read() == b""
    assert not stream.over
    await stream.write(b"answer")
    stream.finish()
    assert stream.over
    assert carrier.said == [("piece", b"answer"), ("finish",), ("over",)]
    with pytest.raises(ValueError, match="has finished"):
        await stream.write(b"more")


async def test_what_the_peer_may_not_do_at_a_streams_end_breaks_the_format():
    stream, _ = opened()
    stream.peer_finished()
    with pytest.raises(FrameError, match="ended twice"):
        stream.peer_finished()
    with pytest.raises(FrameError, match="behind the end"):
        stream.room_for(1)
    with pytest.raises(FrameError, match="more than its window"):
        stream.credited(1)
    theirs = Stream("b", 2, Carrier(), opened=False)
    with pytest.raises(FrameError, match="0 may come"):
        theirs.room_for(1)
    with pytest.raises(FrameError, match="before it was accepted"):
        theirs.credited(1)


async def test_an_aborted_stream_wakes_its_reader_and_its_writer_with_the_reason():
    stream, carrier = opened()
    reading = asyncio.create_task(stream.read())
    writing = asyncio.create_task(stream.write(bytes(2 * STREAM_WINDOW_BYTES)))
    ending = asyncio.create_task(stream.ended())
    assert await still_waits(reading)
    stream.abort("enough")
    for task in (reading, writing):
        with pytest.raises(PeerUnreachable, match="enough"):
            await task
    await ending
    assert carrier.said[-2:] == [("reset", "enough"), ("over",)]
    stream.abort("again")
    assert carrier.said[-1] == ("over",), "the peer is told once"


async def test_what_lies_unread_when_a_stream_breaks_is_not_read_any_more():
    stream, _ = opened()
    comes(stream, b"some")
    comes(stream, bytes(5000))
    assert await stream.read(2) == b"so"
    stream.end(PeerUnreachable("The line was cut."))
    with pytest.raises(PeerUnreachable, match="was cut"):
        await stream.read()


async def test_two_readers_of_one_stream_are_a_mistake():
    stream, _ = opened()
    reading = asyncio.create_task(stream.read())
    assert await still_waits(reading)
    with pytest.raises(RuntimeError, match="Two tasks"):
        await stream.read()
    comes(stream, b"for the first")
    assert await reading == b"for the first"


# --- both ends, over the twin ----------------------------------------------------------------------


async def nobody(_who, _message):
    return Reply(b"")


def pair(handler=None):
    network = MemoryNetwork()
    near, far = (MemoryTransport(name, nobody, network) for name in "ab")
    addresses = [PeerAddress(name, f"spiffe://{name}.example/node", ("x:1",), b"") for name in "ab"]
    near.set_peers(addresses)
    far.set_peers(addresses)
    far.serve_streams(handler)
    return network, near, far


async def echo(_who, _message, stream):
    while data := await stream.read():
        await stream.write(data)
    stream.finish()


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=3 * RECORD_BYTES), max_size=8), step=st.integers(1, 9999)
)
def test_what_is_written_comes_back_however_it_is_cut(pieces, step):
    async def there_and_back():
        _, near, _ = pair(echo)
        stream = await near.open_stream("b", b"echo", timeout_s=1)

        async def write():
            for piece in pieces:
                await stream.write(piece)
            stream.finish()

        writing = asyncio.create_task(write())
        came = b""
        while data := await stream.read(step):
            assert len(data) <= step
            came += data
        await writing
        assert came == b"".join(pieces)
        assert stream.over

    asyncio.run(there_and_back())


async def test_more_than_a_window_goes_through_a_slow_line_both_ways_at_once():
    network, near, _ = pair(echo)
    network.delay("a", "b", 0.001)
    network.delay("b", "a", 0.001)
    stream = await near.open_stream("b", b"echo", timeout_s=1)
    data = bytes(range(256)) * (5 * STREAM_WINDOW_BYTES // 256)

    async def write():
        await stream.write(data)
        stream.finish()

    writing = asyncio.create_task(write())
    came = bytearray()
    while piece := await stream.read():
        came += piece
    await writing
    assert came == data


async def test_a_stream_that_nobody_takes_is_refused_by_name():
    _, near, _ = pair(None)
    with pytest.raises(PeerRefused, match="The peer 'b' refused a stream: 'b' takes no streams"):
        await near.open_stream("b", b"what for", timeout_s=1)


async def test_a_refusal_carries_the_handlers_words_and_no_others():
    async def refuses(_who, message, stream):
        if message == b"politely":
            raise PeerRefused("no", "Not today.\x1b[2J", do="Ask somebody else.")
        if message == b"later":
            stream.accept()
            await stream.read()
        raise KeyError("a secret")

    _, near, _ = pair(refuses)
    with pytest.raises(PeerRefused, match=r"refused a stream: Not today\. \[2J$"):
        await near.open_stream("b", b"politely", timeout_s=1)
    with pytest.raises(PeerRefused, match="refused a stream: An error of this node, see its log") as caught:
        await near.open_stream("b", b"broken", timeout_s=1)
    assert "secret" not in str(caught.value)
    stream = await near.open_stream("b", b"later", timeout_s=1)
    await stream.write(b"x")
    with pytest.raises(PeerRefused, match="ended a stream"):
        await stream.read()


async def test_a_stream_that_is_not_accepted_in_time_is_given_up_at_both_sides():
    ended = asyncio.Event()

    async def hesitates(_who, _message, stream):
        await stream.ended()
        ended.set()

    _, near, _ = pair(hesitates)
    with pytest.raises(PeerUnreachable, match="did not answer"):
        await near.open_stream("b", b"?", timeout_s=0.02)
    await asyncio.wait_for(ended.wait(), 1)


async def test_a_handler_that_returns_before_the_end_ends_the_stream():
    async def leaves(_who, _message, stream):
        stream.accept()

    _, near, _ = pair(leaves)
    stream = await near.open_stream("b", b"?", timeout_s=1)
    with pytest.raises(PeerRefused, match="Nobody looks after it any more"):
        await stream.read()


async def test_a_cut_link_ends_its_streams_and_those_who_watch_it_are_told():
    network, near, far = pair(echo)
    seen = []
    near.watch_links(lambda peer, up: seen.append((peer, up)))
    stream = await near.open_stream("b", b"echo", timeout_s=1)
    network.cut("a", "b")
    with pytest.raises(PeerUnreachable, match="its streams with it"):
        await stream.read()
    network.mend("a", "b")
    await (await near.open_stream("b", b"echo", timeout_s=1)).write(b"again")
    await far.close()
    assert seen == [("b", False), ("b", True), ("b", False)]


async def test_more_streams_than_allowed_are_refused_and_the_others_go_on():
    _, near, _ = pair(echo)
    streams = [await near.open_stream("b", b"echo", timeout_s=1) for _ in range(MAX_STREAMS)]
    with pytest.raises(PeerRefused, match=f"{MAX_STREAMS} streams to 'b' are open already"):
        await near.open_stream("b", b"echo", timeout_s=1)
    streams[0].abort("room for another")
    again = await near.open_stream("b", b"echo", timeout_s=1)
    for stream in (*streams[1:], again):
        await stream.write(b"x")
        assert await stream.read() == b"x"


async def test_a_purpose_over_its_limit_is_not_sent():
    _, near, _ = pair(echo)
    with pytest.raises(FrameError, match="over the limit"):
        await near.open_stream("b", bytes(MAX_OPENING_BYTES + 1), timeout_s=1)


# --- frames and turns ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message_bytes", "body_bytes"),
    [
        (Kind.OPEN, MAX_OPENING_BYTES + 1, 0),
        (Kind.OPEN, 0, 1),
        (Kind.PIECE, 0, 0),
        (Kind.PIECE, 0, SEGMENT_BYTES + 1),
        (Kind.PIECE, 1, 1),
        (Kind.CREDIT, 0, 0),
        (Kind.CREDIT, 0, STREAM_WINDOW_BYTES + 1),
        (Kind.CREDIT, 1, 1),
        (Kind.FINISH, 0, 1),
        (Kind.RESET, 4097, 0),
    ],
)
def test_a_streams_frame_over_its_limit_is_refused(kind, message_bytes, body_bytes):
    with pytest.raises(FrameError):
        parse_header(HEADER.pack(MAGIC, kind, 0, 0, 1, message_bytes, body_bytes))


def frames_of(queue: SendQueue) -> list[tuple[Kind, int, int]]:
    """What a queue sends: kind, number, bytes."""
    reader = FrameReader(lambda _: None)
    found = []
    while (piece := queue.take()) is not None:
        data = bytes(piece)
        while data:
            count = min(len(reader.room), len(data))
            reader.room[:count] = data[:count]
            data = data[count:]
            frame = reader.filled(count)
            if frame is not None:
                header = frame.header
                found.append((header.kind, header.request, header.body_bytes or header.message_bytes))
    assert not reader.partial
    return found


def test_frames_overtake_a_stream_and_streams_and_bodies_take_turns():
    queue = SendQueue()
    for body in (1, 2):
        queue.put_body(body, memoryview(bytes(2 * SEGMENT_BYTES)))
    for stream in (1, 3):
        queue.put_piece(stream, memoryview(bytes(2 * SEGMENT_BYTES)))
    queue.put_finish(3)
    queue.put(encode(Kind.REQUEST, 9, b"heartbeat"))
    full = SEGMENT_BYTES
    assert frames_of(queue) == [
        (Kind.REQUEST, 9, 9),
        (Kind.PIECE, 1, full),
        (Kind.DATA, 1, full),
        (Kind.PIECE, 3, full),
        (Kind.DATA, 2, full),
        (Kind.PIECE, 1, full),
        (Kind.DATA, 1, full),
        (Kind.PIECE, 3, full),
        (Kind.DATA, 2, full),
        (Kind.FINISH, 3, 0),
    ]
    assert queue.empty


def test_small_writes_share_a_frame_and_keep_their_order():
    queue = SendQueue()
    for number in range(1000):
        queue.put_piece(1, memoryview(b"%03d" % number))
    queue.put_piece(1, memoryview(bytes(SEGMENT_BYTES)))
    queue.put_finish(1)
    sent = b""
    while (piece := queue.take()) is not None:
        sent += bytes(piece)
    small = b"".join(b"%03d" % number for number in range(1000))
    assert sent[HEADER_BYTES:].startswith(small)
    assert sent.endswith(encode(Kind.FINISH, 1))
    assert len(sent) == 3 * HEADER_BYTES + len(small) + SEGMENT_BYTES


def test_of_a_stream_that_is_given_up_nothing_more_is_sent_behind_the_segment_on_its_way():
    queue = SendQueue()
    queue.put_piece(1, memoryview(bytes(3 * SEGMENT_BYTES)))
    queue.put_piece(3, memoryview(b"another"))
    start = queue.take()
    queue.drop_stream(1)
    queue.drop_stream(5)
    rest = queue.take()
    assert len(start) + len(rest) == HEADER_BYTES + SEGMENT_BYTES
    assert frames_of(queue) == [(Kind.PIECE, 3, 7)]
    assert queue.empty
