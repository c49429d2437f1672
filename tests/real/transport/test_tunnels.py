"""A ledger engine's TCP connections in tunnels between nodes: what an engine can rely on, and who gets through."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import random
import socket
import struct
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from konsil.core.messages import OpenTunnel, encode
from konsil.errors import PeerRefused
from konsil.node.splice import cut
from konsil.node.tunnels import Tunnels
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.memory import MemoryNetwork, MemoryTransport
from konsil.transport.timings import Timings

pytestmark = pytest.mark.real
LOOPBACK = "127.0.0.1"


async def until(condition, timeout_s=5.0):
    """Let the loop run until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for are plain values of another object
            await asyncio.sleep(0.005)


class Engine:
    """What stands for a ledger's engine: takes connections and does with each what a test wants."""

    def __init__(self, does) -> None:
        self.does = does
        self.writers = []
        self.ended = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._take, LOOPBACK, 0)
        self.where = self._server.sockets[0].getsockname()
        return self

    async def _take(self, reader, writer):
        self.writers.append(writer)
        try:
            with contextlib.suppress(OSError):
                await self.does(reader, writer)
        finally:
            writer.close()
            self.ended.set()

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self.writers:
            cut(writer)
        await asyncio.sleep(0)


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def waits(reader, _writer):
    await reader.read()


@contextlib.asynccontextmanager
async def engine_of(tunnels, does=echo):
    async with Engine(does) as engine:
        tunnels.set_target(*engine.where)
        yield engine


@contextlib.asynccontextmanager
async def dialled(tunnels, peer):
    """A connection of the own engine to a peer's."""
    reader, writer = await asyncio.open_connection(LOOPBACK, tunnels.port_of(peer))
    try:
        yield reader, writer
    finally:
        cut(writer)
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def tunnelled(site):
    """Gives two nodes with tunnels to each other, which are connected."""
    made = []

    async def make(**how):
        a, b = await site.pair(**({"timings": Timings()} | how))
        made.extend(pair := (Tunnels(a, "a"), Tunnels(b, "b")))
        pair[0].set_peers(["a", "b"])
        pair[1].set_peers(["a", "b"])
        return *pair, a, b

    yield make
    for tunnels in made:
        await tunnels.close()


async def pour(writer, megabytes, seed):
    """Send so much, in writes of any size; its digest."""
    lot, digest = random.Random(seed), hashlib.blake2b()  # noqa: S311 - a seed tells one story
    block = lot.randbytes(1 << 20)
    left = megabytes << 20
    while left:
        piece = block[: min(left, lot.randint(1, len(block)))]
        writer.write(piece)
        digest.update(piece)
        await writer.drain()
        left -= len(piece)
    writer.write_eof()
    return digest.digest()


async def swallow(reader):
    digest = hashlib.blake2b()
    while data := await reader.read(1 << 18):
        digest.update(data)
    return digest.digest()


async def test_a_hundred_megabytes_go_both_ways_while_requests_stay_quick(tunnelled):
    ta, tb, a, _ = await tunnelled()
    done = {}

    async def both(reader, writer):
        done["far"] = await asyncio.gather(swallow(reader), pour(writer, 100, "far"))

    async with engine_of(tb, both) as engine, dialled(ta, "b") as (reader, writer):
        near = asyncio.gather(swallow(reader), pour(writer, 100, "near"))
        took_s = []
        while not near.done():
            start_s = time.perf_counter()
            await a.request("b", b"hello", timeout_s=10)
            took_s.append(time.perf_counter() - start_s)
            await asyncio.sleep(0.005)
        await engine.ended.wait()
        near_took, near_sent = await near
        far_took, far_sent = done["far"]
    assert (near_took, far_took) == (far_sent, near_sent)
    assert len(took_s) > 10
    assert sorted(took_s)[len(took_s) // 2] < 0.1
    for stats in (ta.stats()["b"], tb.stats()["a"]):
        assert stats.bytes_in == stats.bytes_out == 100 << 20
    await until(lambda: ta.stats()["b"].open == tb.stats()["a"].open == 0)


async def test_each_direction_ends_alone(tunnelled):
    ta, tb, _, _ = await tunnelled()

    async def answers_at_the_end(reader, writer):
        asked = await reader.read()
        writer.write(b"you said " + asked)

    async with engine_of(tb, answers_at_the_end), dialled(ta, "b") as (reader, writer):
        writer.write(b"hello")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b"you said hello"

    async def speaks_first(reader, writer):
        writer.write(b"welcome")
        writer.write_eof()
        heard.append(await reader.read())

    heard = []
    async with engine_of(ta, speaks_first) as engine, dialled(tb, "a") as (reader, writer):
        assert await asyncio.wait_for(reader.read(), 5) == b"welcome"
        writer.write(b"thanks")
        writer.write_eof()
        await asyncio.wait_for(engine.ended.wait(), 5)
    assert heard == [b"thanks"]


async def test_an_engine_that_does_not_read_stops_the_other_and_fills_no_memory(tunnelled):
    ta, tb, a, b = await tunnelled()
    hold = asyncio.Event()

    async def slow(reader, _writer):
        reader._transport.pause_reading()
        await hold.wait()

    async with engine_of(tb, slow), dialled(ta, "b") as (_, writer):
        writer.write(bytes(64 << 20))
        before = -1
        while before != b.bytes_in:
            before = b.bytes_in
            await asyncio.sleep(0.3)
        assert b.bytes_in < 24 << 20, "windows, and what the kernel holds"
        assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
        hold.set()


async def test_a_connection_that_breaks_breaks_at_the_other_side_too(tunnelled):
    ta, tb, _, _ = await tunnelled()

    async def resets(reader, writer):
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    async with engine_of(tb, resets), dialled(ta, "b") as (reader, writer):
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
    await until(lambda: ta.stats()["b"].open == tb.stats()["a"].open == 0)


async def test_a_killed_engine_ends_the_connection_at_the_other_side(tunnelled):
    ta, tb, _, _ = await tunnelled()
    pours = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\n"
        "while True: c.sendall(bytes(65536))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", pours, stdout=asyncio.subprocess.PIPE
    )
    try:
        tb.set_target(LOOPBACK, int(await process.stdout.readline()))
        async with dialled(ta, "b") as (reader, writer):
            await reader.readexactly(5 << 20)
            process.kill()
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(swallow(reader), 5)
            writer.close()
            await until(lambda: ta.stats()["b"].open == tb.stats()["a"].open == 0)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_node_ends_the_connection_and_a_dial_out_member_is_reached_again(site):
    a = await site.node("a", timings=Timings())
    site.authority("b")
    a.set_peers([site.peer("b")])  # it has no addresses
    reachable = asyncio.Queue()
    tunnels = Tunnels(a, "a", reachable.put_nowait)
    tunnels.set_peers(["b"])
    script = Path(__file__).parent / "tunnel_node.py"
    port = tunnels.port_of("b")
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(site.folder), site.addresses["a"][0]
        )
        try:
            assert await asyncio.wait_for(reachable.get(), 20) == "b"
            async with dialled(tunnels, "b") as (reader, writer):
                writer.write(b"x" * 1000)
                assert await asyncio.wait_for(reader.readexactly(1000), 5) == b"x" * 1000
                process.kill()
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), 5)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        assert tunnels.port_of("b") == port
    await tunnels.close()


async def test_who_is_no_active_member_gets_through_neither_way(tunnelled):
    ta, tb, a, _ = await tunnelled()
    async with engine_of(tb, waits), engine_of(ta, waits):
        async with dialled(ta, "b") as (reader, _), dialled(tb, "a") as (other_reader, _):
            await until(lambda: tb.stats()["a"].open == 2)
            tb.set_peers([])
            for each in (reader, other_reader):
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(each.read(), 5)
        async with dialled(ta, "b") as (reader, _):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert "'b' does not know 'a' as an active member" in ta.stats()["b"].problem
        async with dialled(tb, "a") as (reader, _):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        with pytest.raises(PeerRefused, match="as an active member"):
            await a.open_stream("b", encode(OpenTunnel("0" * 16)), timeout_s=5)
        port = tb.port_of("a")
        tb.set_peers(["a"])
        assert tb.port_of("a") == port
        async with dialled(tb, "a"):
            await until(lambda: tb.stats()["a"].open == 1)
    with pytest.raises(KeyError):
        ta.port_of("c")


async def test_without_an_engine_or_a_connection_the_dialler_is_told_at_once(tunnelled):
    ta, tb, a, _ = await tunnelled()

    async def closed_at_once():
        async with dialled(ta, "b") as (reader, _):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        return ta.stats()["b"].problem

    assert "has no ledger engine that takes connections now" in await closed_at_once()
    spare = socket.create_server((LOOPBACK, 0))
    tb.set_target(*spare.getsockname())
    spare.close()
    assert "does not reach its own ledger engine" in await closed_at_once()
    async with engine_of(tb, waits):
        async with dialled(ta, "b"):
            await until(lambda: ta.stats()["b"].problem == "")
        tb.clear_target()
        assert "has no ledger engine" in await closed_at_once()
    a.set_peers([])
    await closed_at_once()


@pytest.mark.parametrize(
    ("purpose", "match"),
    [
        (b"engine", "cannot be read"),
        (encode(OpenTunnel("0" * 16, goes_on=True)), "No tunnel of that name"),
        (encode(OpenTunnel("x")), "cannot be read"),
    ],
)
async def test_a_stream_for_anything_else_is_refused(tunnelled, purpose, match):
    _, tb, a, _ = await tunnelled()
    async with engine_of(tb, waits):
        with pytest.raises(PeerRefused, match=match):
            await a.open_stream("b", purpose, timeout_s=5)


async def test_one_name_is_one_tunnel_and_another_member_cannot_go_on_in_it(tunnelled, site):
    _, tb, a, b = await tunnelled()
    c = await site.node("c")
    c.set_peers([site.peer("b")])
    b.set_peers([site.peer("a"), site.peer("c")])
    tb.set_peers(["a", "c"])
    name = "0123456789abcdef"
    async with engine_of(tb, waits):
        stream = await a.open_stream("b", encode(OpenTunnel(name)), timeout_s=5)
        with pytest.raises(PeerRefused, match="open already"):
            await a.open_stream("b", encode(OpenTunnel(name)), timeout_s=5)
        with pytest.raises(PeerRefused, match="No tunnel of that name"):
            await c.open_stream("b", encode(OpenTunnel(name, goes_on=True)), timeout_s=5)
        stream.abort("enough")


# --- connections that are made anew ------------------------------------------------------------------


async def test_an_engines_connection_outlives_those_under_it(tunnelled, site):
    """Certificates that live for 5 s, under a TCP connection that carries bytes both ways for 9 s."""
    issued = []

    def fresh():
        if not issued or time.time() > issued[-1].not_after_s - 2:
            issued.append(site.authority("a").issue(ttl_s=5))
        return issued[-1]

    identity = site.identity("a")
    identity.issue = fresh
    ta, tb = [Tunnels(await site.node(n, **how), n) for n, how in (("a", {"identity": identity}), ("b", {}))]
    a, b = ta._transport, tb._transport
    a.set_peers([site.peer("b")])
    b.set_peers([site.peer("a")])
    ta.set_peers(["b"])
    tb.set_peers(["a"])
    await a.request("b", b"hello", timeout_s=5)
    used, sent, end_s = set(), 0, time.monotonic() + 9
    async with engine_of(tb), dialled(ta, "b") as (reader, writer):
        while time.monotonic() < end_s:
            writer.write(b"%08d" % sent)
            assert await asyncio.wait_for(reader.readexactly(8), 2) == b"%08d" % sent
            sent += 1
            used.update(a._connections)
            await asyncio.sleep(0.01)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert sum(connection.ended for connection in used) > 1
    await ta.close()
    await tb.close()


@pytest.mark.parametrize("seed", range(12))
async def test_tunnels_that_go_on_elsewhere_again_and_again_lose_no_byte(seed):
    """Over the twin, whose lines are slow by turns: moves at any moment, ends in the middle of them."""

    async def nobody(_who, _message):
        return Reply(b"")

    lot = random.Random(seed)  # noqa: S311 - a seed tells one story
    network = MemoryNetwork()
    near, far = (MemoryTransport(name, nobody, network) for name in "ab")
    ta, tb = Tunnels(near, "a"), Tunnels(far, "b")
    for transport in (near, far):
        transport.set_peers([PeerAddress(n, f"spiffe://{n}.example/node", ("x:1",), b"") for n in "ab"])
    ta.set_peers(["b"])
    tb.set_peers(["a"])
    moves = 0

    async def move():
        nonlocal moves
        while True:
            network.delay("a", "b", lot.choice((0, 0.002, 0.01)))
            network.delay("b", "a", lot.choice((0, 0.002, 0.01)))
            for splice in list(ta._splices.values()):
                moves += not splice._latest.leaving.is_set()
                splice._latest.leaving.set()
            await asyncio.sleep(lot.random() * 0.005)

    done = {}

    async def both(reader, writer):
        done["far"] = await asyncio.gather(swallow(reader), pour(writer, lot.randint(4, 12), f"far {seed}"))

    async with engine_of(tb, both) as engine, dialled(ta, "b") as (reader, writer):
        moving = asyncio.create_task(move())
        near_took, near_sent = await asyncio.gather(
            swallow(reader), pour(writer, lot.randint(4, 12), f"near {seed}")
        )
        await engine.ended.wait()
        assert (near_took, done["far"][0]) == (done["far"][1], near_sent)
        await until(lambda: not ta.stats()["b"].open and not tb.stats()["a"].open)
        moving.cancel()
    assert moves > 2
    assert not network.streams._open
    await ta.close()
    await tb.close()


async def test_a_tunnel_that_cannot_go_on_elsewhere_ends_with_its_connection(tunnelled):
    ta, tb, a, b = await tunnelled(timings=replace(Timings(), stream_grace_s=0.3))
    async with engine_of(tb, waits), dialled(ta, "b") as (reader, _):
        await until(lambda: tb.stats()["a"].open)
        b.serve_streams(None)
        next(iter(a._connections)).leave("for a test")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)


# --- the end -----------------------------------------------------------------------------------------


def traces() -> tuple[int, int, set[asyncio.Task]]:
    """Open descriptors, threads and tasks of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), asyncio.all_tasks()


@pytest.mark.parametrize("first", ["tunnels", "transport"])
async def test_closing_leaves_nothing_behind(site, first):
    for name in "ab":
        site.identity(name)
    before = traces()
    a, b = await site.pair()
    ta, tb = Tunnels(a, "a"), Tunnels(b, "b")
    ta.set_peers(["b"])
    tb.set_peers(["a"])
    async with engine_of(tb, waits) as engine:
        connections = [await asyncio.open_connection(LOOPBACK, ta.port_of("b")) for _ in range(3)]
        await until(lambda: tb.stats()["a"].open == 3)
        for _, writer in connections:
            writer.write(os.urandom(1000))
        late = [await asyncio.open_connection(LOOPBACK, ta.port_of("b")) for _ in range(2)]
        await asyncio.sleep(0)
        for each in (ta, tb, a, b) if first == "tunnels" else (a, b, ta, tb):
            await each.close()
        for reader, writer in connections + late:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await until(lambda: all(writer.is_closing() for writer in engine.writers))
    await until(lambda: traces() == before)
    gc.collect()  # what was not closed is told here, and not in another test


async def test_a_port_that_is_not_to_be_had_is_told_and_tried_again(site, monkeypatch):
    a, _ = await site.pair(timings=Timings())
    tunnels = Tunnels(a, "a")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "create_server", _no_port)
            tunnels.set_peers(["b"])
            assert "b" not in tunnels.ports()
        tunnels.set_peers(["b"])
        assert tunnels.ports() == {"b": tunnels.port_of("b")}
    finally:
        await tunnels.close()


def _no_port(*_arguments, **_options):
    raise OSError(24, "Too many open files")
