"""The wire format: what comes out of any cut of the bytes, and what is refused before memory is reserved."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError
from konsil.transport.frames import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    RECORD_BYTES,
    SEGMENT_BYTES,
    Flag,
    Frame,
    FrameReader,
    Header,
    Kind,
    encode,
    parse_header,
)
from konsil.transport.sending import SendQueue


class Answers:
    """Memory for the bodies of requests, as a connection has it."""

    def __init__(self, **lengths: int) -> None:
        self.memory = {int(name[1:]): bytearray(length) for name, length in lengths.items()}
        self.filled = dict.fromkeys(self.memory, 0)

    def sink(self, header: Header) -> memoryview | None:
        if header.request not in self.memory:
            return None
        start = self.filled[header.request]
        self.filled[header.request] += header.body_bytes
        return memoryview(self.memory[header.request])[start : start + header.body_bytes]


def feed(reader: FrameReader, data: bytes, cuts: list[int]) -> list[Frame]:
    frames, sizes = [], list(cuts)
    while data:
        count = min(len(reader.room), len(data), sizes.pop() if sizes else len(data))
        reader.room[:count] = data[:count]
        data = data[count:]
        frame = reader.filled(count)
        if frame is not None:
            frames.append(frame)
    return frames


def drain(queue: SendQueue) -> bytes:
    pieces = []
    while (piece := queue.take()) is not None:
        pieces.append(bytes(piece))
    return b"".join(pieces)


def kinds(data: bytes) -> list[tuple[Kind, int]]:
    frames = feed(FrameReader(lambda _: None), data, [])
    return [(frame.header.kind, frame.header.request) for frame in frames]


@given(
    cuts=st.lists(st.integers(1, 40), max_size=60),
    body=st.binary(max_size=200),
    message=st.binary(max_size=60),
)
def test_frames_come_out_alike_however_the_bytes_were_cut(cuts, body, message):
    queue = SendQueue()
    queue.put(encode(Kind.HELLO, message=b"who I am"))
    queue.put(encode(Kind.ANSWER, 7, message, body_bytes=len(body)))
    if body:
        queue.put_body(7, memoryview(body))
    queue_bytes = drain(queue) + encode(Kind.PING, 9)
    answers = Answers(r7=len(body))
    reader = FrameReader(answers.sink)

    frames = feed(reader, queue_bytes, cuts)

    expected = [Kind.HELLO, Kind.ANSWER, *([Kind.DATA] if body else []), Kind.PING]
    assert [frame.header.kind for frame in frames] == expected
    assert frames[0].message == b"who I am"
    assert frames[1].message == message
    assert frames[1].header.body_bytes == len(body)
    assert bytes(answers.memory[7]) == body
    assert not reader.partial


def test_a_truncated_frame_gives_no_frame_and_is_known_to_be_partial():
    whole = encode(Kind.REQUEST, 1, b"a request")
    for length in range(1, len(whole)):
        reader = FrameReader(lambda _: None)
        assert feed(reader, whole[:length], []) == []
        assert reader.partial


@pytest.mark.parametrize(
    ("message_bytes", "body_bytes", "kind"),
    [
        (MAX_MESSAGE_BYTES + 1, 0, Kind.REQUEST),
        (0xFFFF_FFFF, 0, Kind.ANSWER),
        (0xFFFF_FFFF, 0, Kind.HELLO),
        (0, 1, Kind.REQUEST),
        (0, SEGMENT_BYTES + 1, Kind.DATA),
        (0, 1 << 63, Kind.DATA),
        (1, 10, Kind.DATA),
        (1, 0, Kind.PING),
        (0, 0, Kind.DATA),
    ],
)
def test_an_oversized_length_is_refused_before_memory_is_reserved(message_bytes, body_bytes, kind):
    header = HEADER.pack(MAGIC, kind, 0, 0, 1, message_bytes, body_bytes)
    reader = FrameReader(lambda _: pytest.fail("memory was asked for"))
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            feed(reader, header, [])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize(
    "start",
    [
        (0x16, Kind.PING, 0, 0),  # a TLS record
        (0x47, 0x45, 0x54, 0x20),  # "GET "
        (MAGIC, 0, 0, 0),
        (MAGIC, 99, 0, 0),
        (MAGIC, Kind.PING, 0, 1),
        (MAGIC, Kind.PING, 4, 0),
        (MAGIC, Kind.REQUEST, Flag.FAILED, 0),
    ],
)
def test_an_unknown_kind_or_flag_is_refused(start):
    with pytest.raises(FrameError):
        parse_header(HEADER.pack(*start, 0, 0, 0))


def test_a_message_over_the_limit_is_not_sent():
    with pytest.raises(FrameError, match="over the limit"):
        encode(Kind.REQUEST, 1, bytes(MAX_MESSAGE_BYTES + 1))
    assert len(encode(Kind.REQUEST, 1, bytes(MAX_MESSAGE_BYTES))) == HEADER_BYTES + MAX_MESSAGE_BYTES


def test_a_body_that_nobody_waits_for_is_read_over():
    queue = SendQueue()
    queue.put_body(5, memoryview(bytes(3 * SEGMENT_BYTES)))
    data = drain(queue) + encode(Kind.PONG, 3)
    assert kinds(data) == [(Kind.DATA, 5)] * 3 + [(Kind.PONG, 3)]


def test_memory_of_a_request_that_was_given_up_is_not_written_any_more():
    answers = Answers(r1=1000)
    reader = FrameReader(answers.sink)
    data = encode(Kind.DATA, 1, body_bytes=1000) + b"x" * 1000
    feed(reader, data[: HEADER_BYTES + 400], [])

    reader.forget(1)
    frames = feed(reader, data[HEADER_BYTES + 400 :] + encode(Kind.PING, 2), [])

    assert answers.memory[1] == b"x" * 400 + bytes(600)
    assert [frame.header.kind for frame in frames] == [Kind.DATA, Kind.PING]


def test_small_frames_overtake_bodies_and_bodies_take_turns():
    queue = SendQueue()
    queue.put_body(1, memoryview(bytes(3 * SEGMENT_BYTES)))
    queue.put_body(2, memoryview(bytes(2 * SEGMENT_BYTES)))
    first = bytes(queue.take() or b"")
    queue.put(encode(Kind.REQUEST, 9, b"heartbeat"))
    data = first + drain(queue)
    assert kinds(data) == [
        (Kind.DATA, 1),
        (Kind.REQUEST, 9),  # behind the segment that was on its way, before everything else
        (Kind.DATA, 2),
        (Kind.DATA, 1),
        (Kind.DATA, 2),
        (Kind.DATA, 1),
    ]


def test_a_segment_is_sent_in_full_records_and_from_its_own_memory():
    body = bytearray(2 * SEGMENT_BYTES)
    queue = SendQueue()
    queue.put_body(1, memoryview(body))
    start, rest = queue.take(), queue.take()
    assert len(start) == RECORD_BYTES
    assert len(rest) % RECORD_BYTES == 0
    assert isinstance(rest, memoryview)
    assert rest.obj is body
    assert len(start) + len(rest) == HEADER_BYTES + SEGMENT_BYTES


def test_small_frames_share_a_record():
    queue = SendQueue()
    for number in range(1000):
        queue.put(encode(Kind.PING, number))
    pieces = []
    while (piece := queue.take()) is not None:
        assert len(piece) <= RECORD_BYTES
        pieces.append(piece)
    assert len(pieces) == 2
    assert kinds(b"".join(pieces)) == [(Kind.PING, number) for number in range(1000)]


def test_a_request_can_be_withdrawn_until_it_is_taken():
    queue = SendQueue()
    queue.put(encode(Kind.REQUEST, 1, b"first"), 1)
    queue.put(encode(Kind.REQUEST, 2, b"second"), 2)
    assert queue.withdraw(1)
    assert kinds(drain(queue)) == [(Kind.REQUEST, 2)]
    assert not queue.withdraw(2)


def test_a_cancelled_body_stops_after_the_segment_on_its_way():
    queue = SendQueue()
    queue.put_body(1, memoryview(bytes(5 * SEGMENT_BYTES)))
    start = bytes(queue.take() or b"")
    queue.drop_body(1)
    assert kinds(start + drain(queue)) == [(Kind.DATA, 1)]
    assert queue.empty
