"""The transport's twin: links that are cut, slow, deaf or one-sided."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.errors import FrameError, PeerRefused, PeerUnreachable
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.memory import MemoryNetwork, MemoryTransport


def peer(name, *, dial_only=False):
    return PeerAddress(name, f"spiffe://{name}.example/node", () if dial_only else (f"{name}:1",), b"")


async def echo(who, message):
    return Reply(who.encode() + b" said " + message, message if message == b"hello" else b"")


def swarm(handlers, *, dial_only=()):
    network = MemoryNetwork()
    transports = {name: MemoryTransport(name, handler, network) for name, handler in handlers.items()}
    for transport in transports.values():
        transport.set_peers([peer(name, dial_only=name in dial_only) for name in handlers])
    return network, transports


async def test_a_request_is_answered_and_counted():
    _, nodes = swarm({"a": echo, "b": echo})
    memory = bytearray(5)
    received = await nodes["a"].request("b", b"hello", timeout_s=1, into=memoryview(memory))
    assert received.message == b"a said hello"
    assert (received.body, received.body_bytes) == (b"", 5)
    assert memory == b"hello"
    assert nodes["a"].bytes_out == nodes["b"].bytes_in > 5
    assert nodes["b"].bytes_out == nodes["a"].bytes_in > 10


async def test_without_memory_the_body_comes_under_its_limit():
    _, nodes = swarm({"a": echo, "b": echo})
    assert (await nodes["a"].request("b", b"hello", timeout_s=1, limit_bytes=5)).body == b"hello"
    with pytest.raises(FrameError, match="announces 5 bytes; the limit is 4"):
        await nodes["a"].request("b", b"hello", timeout_s=1, limit_bytes=4)
    with pytest.raises(FrameError, match="where 4 were asked for"):
        await nodes["a"].request("b", b"hello", timeout_s=1, into=memoryview(bytearray(4)))
    with pytest.raises(FrameError, match="over the limit"):
        await nodes["a"].request("b", bytes(MAX_MESSAGE_BYTES + 1), timeout_s=1)


async def test_memory_that_cannot_be_written_is_a_mistake_of_the_asker():
    _, nodes = swarm({"a": echo, "b": echo})
    with pytest.raises(ValueError, match="must be writable"):
        await nodes["a"].request("b", b"hello", timeout_s=1, into=memoryview(b"12345"))


async def test_arrays_travel_as_their_bytes():
    async def array(_who, _message):
        return Reply(b"", memoryview(np.arange(6, dtype="<f4").reshape(2, 3)))

    _, nodes = swarm({"a": echo, "b": array})
    memory = np.zeros((3, 2), dtype="<f4")
    assert (await nodes["a"].request("b", b"x", timeout_s=1, into=memoryview(memory))).body_bytes == 24
    assert memory.ravel().tolist() == [0, 1, 2, 3, 4, 5]


async def test_an_answer_in_words_leaves_the_memory_alone():
    async def words(_who, _message):
        return Reply(b"no such chunk")

    _, nodes = swarm({"a": echo, "b": words})
    memory = bytearray(b"kept")
    received = await nodes["a"].request("b", b"x", timeout_s=1, into=memoryview(memory))
    assert received == (b"no such chunk", b"", 0)
    assert memory == b"kept"


async def test_a_handler_that_raises_refuses():
    async def broken(_who, _message):
        raise ValueError("a mistake")

    _, nodes = swarm({"a": echo, "b": broken})
    with pytest.raises(PeerRefused, match="error of its own"):
        await nodes["a"].request("b", b"x", timeout_s=1)


async def test_a_cut_link_fails_what_is_in_flight_and_comes_back_when_mended():
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_who, _message):
        arrived.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()
        return Reply(b"")

    network, nodes = swarm({"a": echo, "b": slow})
    asking = asyncio.create_task(nodes["a"].request("b", b"x", timeout_s=10))
    await arrived.wait()
    network.cut("a", "b")
    with pytest.raises(PeerUnreachable, match="ended before its answer"):
        await asking
    await asyncio.wait_for(cancelled.wait(), 1)
    assert not nodes["a"].links()[0].connected

    waiting = asyncio.create_task(nodes["b"].request("a", b"again", timeout_s=10))
    await asyncio.sleep(0)
    assert not waiting.done()
    network.mend("a", "b")
    assert (await waiting).message == b"b said again"
    assert nodes["a"].links()[0].connected


async def test_an_unreachable_peer_costs_no_more_than_the_deadline():
    network, nodes = swarm({"a": echo, "b": echo})
    network.cut("a", "b")
    with pytest.raises(PeerUnreachable, match=r"No connection to 'b' in 0\.01 s"):
        await nodes["a"].request("b", b"x", timeout_s=0.01)


async def test_a_link_that_is_deaf_in_one_direction_loses_requests_and_answers():
    network, nodes = swarm({"a": echo, "b": echo})
    network.block("a", "b")
    with pytest.raises(PeerUnreachable, match="did not answer"):
        await nodes["a"].request("b", b"x", timeout_s=0.01)
    with pytest.raises(PeerUnreachable, match="did not answer"):
        await nodes["b"].request("a", b"x", timeout_s=0.01)
    network.mend("a", "b")
    assert (await nodes["a"].request("b", b"x", timeout_s=1)).message == b"a said x"


async def test_a_delay_is_shown_and_kept():
    network, nodes = swarm({"a": echo, "b": echo})
    network.delay("a", "b", 0.02)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    await nodes["a"].request("b", b"x", timeout_s=1)
    assert loop.time() - start_s >= 0.019
    assert nodes["a"].links()[0].rtt_ms == pytest.approx(20)


async def test_a_member_that_can_only_dial_out_serves_requests_but_not_another_such():
    _, nodes = swarm({"a": echo, "b": echo, "c": echo}, dial_only=("b", "c"))
    assert (await nodes["a"].request("b", b"x", timeout_s=1)).message == b"a said x"
    with pytest.raises(PeerUnreachable, match="can only dial out"):
        await nodes["b"].request("c", b"x", timeout_s=0.01)
    assert [(link.name, link.connected, link.via) for link in nodes["b"].links()] == [
        ("a", True, "dialled"),
        ("c", False, ""),
    ]
    assert nodes["a"].links()[0].via == "accepted"


async def test_a_removed_peer_is_cut_off():
    _, nodes = swarm({"a": echo, "b": echo})
    nodes["a"].set_peers([])
    with pytest.raises(PeerUnreachable, match="not in the directory"):
        await nodes["a"].request("b", b"x", timeout_s=1)
    with pytest.raises(PeerUnreachable):
        await nodes["b"].request("a", b"x", timeout_s=0.01)


async def test_a_node_that_closes_fails_what_it_served_and_may_start_again():
    network, nodes = swarm({"a": echo, "b": echo})
    network.delay("a", "b", 5)
    asking = asyncio.create_task(nodes["a"].request("b", b"x", timeout_s=10))
    await asyncio.sleep(0)
    await nodes["b"].close()
    with pytest.raises(PeerUnreachable):
        await asking
    network.delay("a", "b", 0)
    async with MemoryTransport("b", echo, network) as again:
        again.set_peers([peer("a")])
        assert (await nodes["a"].request("b", b"x", timeout_s=1)).message == b"a said x"
