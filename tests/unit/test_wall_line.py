"""Words and descriptors over a real Unix socket: session's and node's side."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from konsil import errors
from konsil.core.rules.settings import StudySettings
from konsil.core.wall import AskState, Failed, Join, Knock, Noted, Terms, ToldModel, Update
from konsil.errors import ConfigError, FrameError, NodeBusy, NodeUnreachable, Refused
from konsil.wall.door import Door, Visitor
from konsil.wall.frames import FrameReader, failure, frame, raised, words_to_node
from konsil.wall.line import Line
from konsil.wall.memory import open_sealed, seal_pieces

KNOCK = Knock(version=1, study="aml", pid=7)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def echo(visitor: Visitor) -> None:
    """Answer each word with Noted; give a descriptor back with ToldModel."""
    while True:
        word, fd = await visitor.receive()
        if fd is None:
            await visitor.send(Noted(height=getattr(word, "pid", 0)))
            continue
        with open_sealed(fd) as sealed:
            await visitor.send(ToldModel("aml", 1, str(sealed.size_bytes)), sealed.fd)


async def in_thread(work, *arguments):
    return await asyncio.wait_for(asyncio.to_thread(work, *arguments), 10)


def exchange(path, *words):
    with Line.connect(path, 5) as line:
        answers = []
        for word in words:
            line.send(word)
            answers.append(line.receive(5).word)
        return answers


async def test_words_and_a_descriptor_go_there_and_back(tmp_path):
    def talk():
        with Line.connect(tmp_path / "s", 5) as line, seal_pieces([b"parameters"]) as sealed:
            line.send(KNOCK)
            assert line.receive(5) == (Noted(height=7), None)
            line.send(Update(round=1, base="", examples=2), sealed.fd)
            word, fd = line.receive(5)
            assert word == ToldModel("aml", 1, "10")
            with open_sealed(fd) as back:
                return bytes(back.data)

    before = open_descriptors()
    async with Door(tmp_path / "s", echo):
        assert await in_thread(talk) == b"parameters"
    assert not (tmp_path / "s").exists()
    assert open_descriptors() == before


async def test_the_visitors_credentials_are_the_kernels(tmp_path):
    seen = []

    async def look(visitor):
        seen.append(visitor.credentials)
        await visitor.receive()
        await visitor.send(Noted())

    async with Door(tmp_path / "s", look, mode=0o660):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
        await in_thread(exchange, tmp_path / "s", KNOCK)
    assert seen == [(os.getpid(), os.getuid(), os.getgid())]


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"\0\0\0\0", "a frame of 0 bytes"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"\0\0\0\x03\xc1\xc1\xc1", "cannot be read"),
        (b"\0\0\0\x10" + b"\x81\xa4word\xa8overturn!", "cannot be read"),
        (frame(Noted()), "cannot be read"),
    ],
)
async def test_bad_bytes_close_only_their_own_connection(tmp_path, sent, complaint):
    def misbehave():
        with socket.socket(socket.AF_UNIX) as raw, Line.connect(tmp_path / "s", 5) as other:
            raw.settimeout(5)
            raw.connect(str(tmp_path / "s"))
            raw.sendall(sent)
            answer = Line(raw, tmp_path).receive(5).word
            assert raw.recv(1) == b""
            other.send(KNOCK)
            assert other.receive(5).word == Noted(height=7)
            return answer

    async with Door(tmp_path / "s", echo):
        answer = await in_thread(misbehave)
    assert isinstance(answer, Failed)
    assert answer.kind == "FrameError"
    assert complaint in answer.what


async def test_a_truncated_frame_ends_with_its_connection_and_its_descriptor_is_closed(tmp_path):
    def half(fd):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(tmp_path / "s"))
            whole = frame(Join(header=b"{}"))
            socket.send_fds(raw, [whole[:10]], [fd])

    async with Door(tmp_path / "s", echo) as door:
        await in_thread(exchange, tmp_path / "s", KNOCK)
        before = open_descriptors()
        with seal_pieces([b"x"]) as sealed:
            await in_thread(half, sealed.fd)
        while door._visits:
            await asyncio.wait(tuple(door._visits), timeout=5)
        assert open_descriptors() <= before


def test_a_frame_that_arrives_byte_by_byte_is_whole_in_the_end():
    reader = FrameReader(words_to_node)
    deliveries = [reader.feed(bytes([byte])) for byte in frame(KNOCK)]
    assert [delivery for delivery in deliveries if delivery] == [(KNOCK, None)]
    assert not reader.begun


def test_a_length_alone_reserves_no_memory():
    reader = FrameReader(words_to_node)
    reader.feed((64 * 1024 * 1024).to_bytes(4, "big"))
    assert reader.wanted <= 1 << 20


def take(reader, data, fds):
    """Feed a whole frame as a socket would: the descriptors with its first byte."""
    reader.feed(data[:4], fds)
    return reader.feed(data[4:])


def test_descriptors_where_none_may_be_are_refused_and_closed():
    before = open_descriptors()
    for word, count in ((KNOCK, 1), (Join(header=b""), 2)):
        reader = FrameReader(words_to_node)
        with pytest.raises(FrameError, match="descriptor"):
            take(reader, frame(word), [os.dup(0) for _ in range(count)])
    assert open_descriptors() == before


def test_a_word_that_is_too_long_never_leaves():
    with pytest.raises(FrameError, match="over the limit"):
        frame(Join(header=bytes(65 * 1024 * 1024)))


async def test_a_dead_nodes_socket_is_replaced_and_a_living_ones_is_not(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    async with Door(tmp_path / "s", echo):
        with pytest.raises(NodeBusy, match="running at"):
            async with Door(tmp_path / "s", echo):
                pass
        assert (await in_thread(exchange, tmp_path / "s", KNOCK)) == [Noted(height=7)]


async def test_a_path_that_cannot_be_a_socket_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="107"):
        Door(tmp_path / ("x" * 120), echo)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        await Door(tmp_path / "file", echo).__aenter__()
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(ConfigError, match="cannot listen"):
        await Door(tmp_path / "missing" / "s", echo).__aenter__()


async def test_an_error_of_the_handler_is_raised_on_the_other_side_and_an_accident_is_reported(tmp_path):
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def fail(visitor):
        word = (await visitor.receive()).word
        if isinstance(word, AskState):
            raise Refused("not_a_member", "You are not a member.", do="Ask for a vote.")
        raise ZeroDivisionError

    async with Door(tmp_path / "s", fail):
        (refused,) = await in_thread(exchange, tmp_path / "s", AskState())
        (accident,) = await in_thread(exchange, tmp_path / "s", KNOCK)
    error = raised(refused)
    assert isinstance(error, Refused)
    assert error.code == "not_a_member"
    assert str(error) == "You are not a member. Nothing on the ledger was changed. Ask for a vote."
    assert accident.kind == "NodeError"
    assert isinstance(reported[0]["exception"], ZeroDivisionError)


async def test_why_the_node_hung_up_is_raised_by_a_word_sent_too_late(tmp_path):
    async def refuse(visitor):
        raise Refused("not_a_member", "You are not a member.")

    def late():
        with Line.connect(tmp_path / "s", 5) as line:
            while True:
                line.send(KNOCK)

    async with Door(tmp_path / "s", refuse):
        with pytest.raises(Refused, match="not a member"):
            await in_thread(late)


async def test_closing_the_door_ends_visits_that_wait(tmp_path):
    before = asyncio.all_tasks()
    async with Door(tmp_path / "s", echo) as door:
        line = await in_thread(Line.connect, tmp_path / "s", 5)
        await in_thread(lambda: (line.send(KNOCK), line.receive(5)))
        assert len(door._visits) == 1
    with line, pytest.raises(NodeUnreachable, match="broke"):
        line.receive(5)
    assert asyncio.all_tasks() == before


async def test_a_visitor_that_reads_nothing_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("konsil.wall.door.SEND_S", 0.05)
    ended = asyncio.get_running_loop().create_future()

    async def flood(visitor):
        with contextlib.suppress(asyncio.CancelledError):
            try:
                while True:
                    await visitor.send(Terms("lyon", StudySettings(name="aml", description="x" * 100_000)))
            except ConnectionError as error:
                ended.set_result(str(error))
                raise

    async with Door(tmp_path / "s", flood):
        with await in_thread(Line.connect, tmp_path / "s", 5):
            assert "takes nothing" in await asyncio.wait_for(ended, 5)


async def test_a_descriptor_that_is_closed_while_its_word_waits_arrives_all_the_same(tmp_path):
    async def send(visitor):
        filling = asyncio.ensure_future(visitor.send(Noted(height=1)))
        while (await asyncio.wait({filling}, timeout=0.05))[0]:  # until the visitor's socket is full
            filling = asyncio.ensure_future(visitor.send(Failed("", "", "x" * 10_000)))
        model = seal_pieces([b"the model"])
        handing_over = asyncio.ensure_future(visitor.send(ToldModel("aml", 1, ""), model.fd))
        await asyncio.sleep(0)
        model.close()
        others = [seal_pieces([b"another"]) for _ in range(3)]
        full.set()
        await asyncio.gather(filling, handing_over)
        for other in others:
            other.close()

    def read():
        with Line.connect(tmp_path / "s", 5) as line:
            assert asyncio.run_coroutine_threadsafe(full.wait(), loop).result(10)
            while True:
                word, fd = line.receive(5)
                if isinstance(word, ToldModel):
                    with open_sealed(fd) as model:
                        return bytes(model.data)

    loop, full = asyncio.get_running_loop(), asyncio.Event()
    async with Door(tmp_path / "s", send):
        assert await in_thread(read) == b"the model"


async def test_more_visitors_than_allowed_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("konsil.wall.door.MAX_VISITORS", 1)
    async with Door(tmp_path / "s", echo):
        with await in_thread(Line.connect, tmp_path / "s", 5) as first:
            await in_thread(lambda: (first.send(KNOCK), first.receive(5)))
            with await in_thread(Line.connect, tmp_path / "s", 5) as second:
                answer = await in_thread(second.receive, 5)
                assert answer.word.kind == "NodeBusy"


def test_nobody_at_the_socket_is_a_clear_error(tmp_path):
    with pytest.raises(NodeUnreachable, match="konsil node start"):
        Line.connect(tmp_path / "s", 1)


def test_a_word_that_does_not_come_in_time_is_a_timeout_and_is_kept(tmp_path):
    ours, theirs = socket.socketpair()
    with Line(ours, tmp_path) as line, theirs:
        with pytest.raises(TimeoutError):
            line.receive(0)
        whole = frame(Noted(height=3))
        theirs.sendall(whole[:6])
        with pytest.raises(TimeoutError):
            line.receive(0.01)
        theirs.sendall(whole[6:])
        assert line.receive(1).word == Noted(height=3)


def test_a_lost_descriptor_is_not_taken_for_none(tmp_path):
    ours, theirs = socket.socketpair()
    with Line(ours, tmp_path) as line, theirs:
        rights = array.array("i", [theirs.fileno()] * 9)
        theirs.sendmsg([frame(Noted())], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        with pytest.raises(NodeUnreachable):
            line.receive(1)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_crosses_the_wall_as_itself(name):
    made = getattr(errors, name)
    error = (
        made("code", "what", do="do") if "code" in made.__init__.__annotations__ else made("what", do="do")
    )
    again = raised(failure(error))
    assert type(again) is made
    assert str(again) == str(error)


def test_an_unknown_kind_of_error_is_the_nodes():
    assert type(raised(Failed(kind="SystemExit", code="", what="x"))) is errors.NodeError
