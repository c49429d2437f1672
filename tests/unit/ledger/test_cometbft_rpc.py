"""What CometBFT's own interface may answer, and what becomes of it; and who is dialled by it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading

import pytest
from msgspec.structs import replace

from konsil.core.rules import initial_state
from konsil.errors import LedgerUnreachable
from konsil.ledger.cometbft import peering as peering_module
from konsil.ledger.cometbft import rpc as rpc_module
from konsil.ledger.cometbft.application import key_address
from konsil.ledger.cometbft.peering import Peering
from konsil.ledger.cometbft.rpc import Rpc, RpcError

SOON_S = 5


class FakeEngine:
    """Answers over a Unix socket, in a thread, with what it was told to, one after another."""

    def __init__(self, path):
        self.path = path
        self.answers: list[bytes] = []
        self.asked: list[dict] = []
        self.connections = 0
        self.close_after_each = False
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                line, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(line)
            with line, line.makefile("rb") as stream, contextlib.suppress(OSError):
                self._converse(line, stream)
            self._open.discard(line)

    def _converse(self, line, stream):
        while head := stream.readline():
            length = 0
            while head.strip():
                if head.lower().startswith(b"content-length:"):
                    length = int(head.split(b":")[1])
                head = stream.readline()
            self.asked.append(json.loads(stream.read(length)))
            if not self.answers:
                return
            line.sendall(self.answers.pop(0))
            if self.close_after_each:
                return

    def close(self):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in list(self._open):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()


def http(body, status="200 OK"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def result(value):
    return http({"jsonrpc": "2.0", "id": 1, "result": value})


def failure(message, data=""):
    told = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": message, "data": data}}
    return http(told, "500 Internal Server Error")


@pytest.fixture
def engine(tmp_path):
    engine = FakeEngine(tmp_path / "rpc.sock")
    yield engine
    engine.close()


@pytest.fixture
def rpc(engine):
    rpc = Rpc(engine.path)
    yield rpc
    rpc.close()


async def test_what_is_asked_and_answered(engine, rpc):
    engine.answers = [result({"a": 1}), result(None)]
    assert await rpc.ask("status", height="3") == {"a": 1}
    assert await rpc.ask("health") is None
    assert [(one["method"], one["params"]) for one in engine.asked] == [
        ("status", {"height": "3"}),
        ("health", {}),
    ]
    assert engine.connections == 1, "the connection is kept"


async def test_its_words_come_out_where_it_says_no(engine, rpc):
    engine.answers = [failure("Internal error", "mempool is full"), failure("Invalid")]
    with pytest.raises(RpcError, match="Internal error: mempool is full"):
        await rpc.ask("status")
    with pytest.raises(RpcError, match=r"^Invalid Nothing was lost"):
        await rpc.ask("status")


async def test_a_call_goes_into_the_pool(engine, rpc):
    engine.answers = [result({"code": 0, "log": ""})]
    await rpc.broadcast(b"signed")
    assert engine.asked[0]["method"] == "broadcast_tx_sync"
    assert base64.b64decode(engine.asked[0]["params"]["tx"]) == b"signed"


async def test_a_call_that_waits_there_already_is_no_failure(engine, rpc):
    engine.answers = [failure("Internal error", "tx already exists in cache")]
    await rpc.broadcast(b"signed")


async def test_a_call_that_the_pool_does_not_want_is_a_failure(engine, rpc):
    engine.answers = [
        result({"code": 1, "log": "replayed"}),
        failure("Internal error", "mempool is full: 5000"),
    ]
    with pytest.raises(RpcError, match="did not take the call: replayed"):
        await rpc.broadcast(b"signed")
    with pytest.raises(RpcError, match="mempool is full"):
        await rpc.broadcast(b"signed")


async def test_a_kept_connection_that_was_closed_at_the_other_side_is_made_anew(engine, rpc):
    engine.close_after_each = True
    engine.answers = [result(1), result(2), result(3)]
    assert [await rpc.ask("status") for _ in range(3)] == [1, 2, 3]
    assert engine.connections == 3


GARBAGE = [
    b"", b"\x00\xff nonsense\r\n\r\n", http(b"<html>"), http(b"[]"), http(b"1"), http(b"{}"), http(b'"text"'),
    http(b'{"error": "words"}'), http(b'{"result": 1'), b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * 70_000 + b"\r\n\r\n", http(b"\xff\xfe"), http(b"[" * 100_000),
]  # fmt: skip


@pytest.mark.parametrize("wire", GARBAGE)
async def test_garbage_is_no_answer_and_the_next_one_is_asked_anew(engine, rpc, wire):
    engine.close_after_each = True
    engine.answers = [wire]
    with pytest.raises(LedgerUnreachable) as caught:
        await rpc.ask("status")
    assert caught.value.what
    engine.answers = [result(7)]
    assert await rpc.ask("status") == 7


@pytest.mark.parametrize("value", [None, 1, [], {}, {"code": "x"}, {"code": 1}])
async def test_an_answer_about_the_pool_that_is_none_is_a_failure(engine, rpc, value):
    engine.answers = [result(value)]
    with pytest.raises(LedgerUnreachable):
        await rpc.broadcast(b"signed")


async def test_an_answer_that_is_too_long_is_not_read(engine, rpc, monkeypatch):
    monkeypatch.setattr(rpc_module, "MAX_ANSWER_BYTES", 1000)
    engine.answers = [result("x" * 2000)]
    with pytest.raises(LedgerUnreachable, match="too long"):
        await rpc.ask("status")


async def test_no_answer_in_time_is_no_answer(engine, rpc, monkeypatch):
    monkeypatch.setattr(rpc_module, "ANSWER_S", 0.2)
    engine.answers = [b"HTTP/1.1 200 OK\r\n"]
    with pytest.raises(LedgerUnreachable, match="does not answer"):
        await rpc.ask("status")


async def test_an_engine_that_is_not_there_is_said_to_be(tmp_path):
    rpc = Rpc(tmp_path / "nobody.sock")
    with pytest.raises(LedgerUnreachable, match="does not answer"):
        await rpc.ask("status")
    rpc.close()
    rpc.close()


# --- dialling --------------------------------------------------------------------------------------


class Mesh:
    """Ways to others' engines, as the test says."""

    def __init__(self):
        self.members, self.ways = (), {}
        self._news = asyncio.Event()

    def set_members(self, names):
        self.members = tuple(sorted(names))

    def take_at(self, port):
        """Not asked here."""

    def ports(self):
        return self.ways

    async def changed(self):
        await self._news.wait()
        self._news.clear()

    def lead(self, **ways):
        self.ways = ways
        self._news.set()


class FakeRpc:
    """CometBFT's answers about its peers."""

    def __init__(self):
        self.here, self.fail, self.odd = [], False, None
        self.dialled: asyncio.Queue[list[str]] = asyncio.Queue()
        self.looked: asyncio.Queue[None] = asyncio.Queue()

    async def ask(self, method, **params):
        if self.fail:
            raise LedgerUnreachable("starting")
        if method == "net_info":
            self.looked.put_nowait(None)
            return self.odd or {"peers": [{"node_info": {"id": one}} for one in self.here] or None}
        assert (method, params["persistent"], params["private"]) == ("dial_peers", True, True)
        self.dialled.put_nowait(params["peers"])
        return {}


class Dialling:
    def __init__(self, world):
        self.rpc, self.mesh = FakeRpc(), Mesh()
        self.whole: asyncio.Queue[None] = asyncio.Queue()
        self.peering = Peering(self.rpc, self.mesh, lambda: self.whole.put_nowait(None))
        self.state = initial_state(world.genesis)
        self.ids = {name: key_address(key.public).hex() for name, key in world.keys.items()}


@pytest.fixture
async def dialling(hospitals, monkeypatch):
    monkeypatch.setattr(peering_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(peering_module, "LONGEST_WAIT_S", 0.04)
    made = Dialling(hospitals)
    async with asyncio.timeout(SOON_S):
        yield made
        await made.peering.close()


async def test_who_can_be_reached_and_is_not_connected_is_dialled_by_its_id(dialling):
    dialling.rpc.here = [dialling.ids["metz"], "0" * 40]
    dialling.mesh.ways = {"nice": 11, "metz": 12, "stranger": 13}
    dialling.peering.look(dialling.state)
    assert dialling.mesh.members == ("lille", "lyon", "metz", "nice")
    dialling.peering.start()
    assert await dialling.rpc.dialled.get() == [f"{dialling.ids['nice']}@127.0.0.1:11"]
    assert dialling.peering.connected == ("metz",)
    assert dialling.whole.empty()
    dialling.rpc.here.append(dialling.ids["nice"])
    await dialling.whole.get()
    assert dialling.peering.connected == ("metz", "nice")


async def test_a_new_way_is_dialled_once_it_is_there(dialling):
    dialling.peering.look(dialling.state)
    dialling.peering.start()
    await dialling.whole.get()
    dialling.mesh.lead(lille=14)
    assert await dialling.rpc.dialled.get() == [f"{dialling.ids['lille']}@127.0.0.1:14"]


async def test_a_removed_member_is_neither_dialled_nor_let_through(dialling):
    gone = replace(dialling.state.members["nice"], active=False)
    dialling.mesh.ways = {"nice": 11, "metz": 12}
    dialling.peering.look(replace(dialling.state, members=dialling.state.members | {"nice": gone}))
    assert "nice" not in dialling.mesh.members
    dialling.peering.start()
    assert await dialling.rpc.dialled.get() == [f"{dialling.ids['metz']}@127.0.0.1:12"]


async def test_an_engine_that_starts_is_asked_again(dialling):
    dialling.rpc.fail = True
    dialling.mesh.ways = {"nice": 11}
    dialling.peering.look(dialling.state)
    dialling.peering.start()
    await asyncio.sleep(0.05)
    dialling.rpc.fail = False
    assert await dialling.rpc.dialled.get()


@pytest.mark.parametrize(
    "odd", [{"x": 1}, [1], {"peers": [1]}, {"peers": [{"node_info": None}]}, {"peers": 5}]
)
async def test_an_odd_answer_does_not_end_the_dialling(dialling, odd):
    dialling.rpc.odd = odd
    dialling.mesh.ways = {"nice": 11}
    dialling.peering.look(dialling.state)
    dialling.peering.start()
    await dialling.rpc.looked.get()
    dialling.rpc.odd = None
    assert await dialling.rpc.dialled.get()


async def test_closing_ends_it(dialling):
    await dialling.peering.close()
    dialling.peering.start()
    await dialling.peering.close()
    assert dialling.peering._task.done()
