"""Nodes that speak mutual TLS on loopback: what they can rely on."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from konsil.errors import ConfigError, FrameError, PeerRefused, PeerUnreachable
from konsil.transport import channel
from konsil.transport.base import PeerLink, Reply
from konsil.transport.timings import MAX_IN_FLIGHT, Timings
from konsil.transport.tls import TlsTransport
from konsil.transport.turns import DIALS_AT_ONCE

pytestmark = pytest.mark.real
CHUNK_BYTES = 4 * 1024 * 1024


def serving(body):
    async def handler(_who, message):
        return Reply(b"", body) if message == b"chunk" else Reply(message)

    return handler


async def until(condition, timeout_s=5.0):
    """Let the loop run until something is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for are plain values of another object
            await asyncio.sleep(0.005)


def traces() -> tuple[int, int, set[asyncio.Task]]:
    """Open descriptors, threads and tasks of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), asyncio.all_tasks()


def link_to(transport: TlsTransport, peer: str) -> PeerLink:
    return next(link for link in transport.links() if link.name == peer)


async def test_both_sides_ask_over_one_connection(site):
    a, b = await site.pair()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    assert (await b.request("a", b"hello", timeout_s=5)).message == b"b said hello"
    await until(lambda: link_to(a, "b").rtt_ms > 0)
    assert len(a._connections) == len(b._connections) == 1
    seen = link_to(a, "b")
    assert seen._replace(rtt_ms=0, bytes_in=0) == PeerLink(
        "b", connected=True, via="dialled", rtt_ms=0, problem=""
    )
    assert 0 < seen.bytes_in == a.bytes_in
    assert link_to(b, "a").via == "accepted"


async def test_a_chunk_arrives_in_the_memory_that_waits_for_it(site):
    chunk = os.urandom(10 * 1024 * 1024 + 7)
    a, b = await site.pair(far=serving(chunk))
    memory = bytearray(len(chunk))
    received = await a.request("b", b"chunk", timeout_s=10, into=memoryview(memory))
    assert received == (b"", b"", len(chunk))
    assert memory == chunk
    received = await a.request("b", b"chunk", timeout_s=10, limit_bytes=len(chunk))
    assert received.body == chunk
    assert a.bytes_in == b.bytes_out > 2 * len(chunk)
    assert b.bytes_in == a.bytes_out > 0


async def test_a_thousand_requests_at_once_share_one_connection_under_its_limit(site):
    open_now, most = 0, 0

    async def counting(_who, message):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.001)
        open_now -= 1
        return Reply(message, message * 1000 if message.isdigit() else b"")

    a, _ = await site.pair(near=serving(b""), far=counting, timings=Timings())
    numbers = [b"%04d" % number for number in range(1000)]
    received = await asyncio.gather(*(a.request("b", n, timeout_s=20, limit_bytes=4000) for n in numbers))
    assert [answer.message for answer in received] == numbers
    assert all(answer.body == n * 1000 for answer, n in zip(received, numbers, strict=True))
    assert 1 < most <= MAX_IN_FLIGHT
    assert len(a._connections) == 1


async def test_a_small_request_overtakes_chunks(site):
    a, _ = await site.pair(far=serving(os.urandom(CHUNK_BYTES)))
    order = []

    async def ask(message, into=None):
        await a.request("b", message, timeout_s=20, into=into)
        order.append(message)

    memory = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(8)]
    await asyncio.gather(*(ask(b"chunk", into) for into in memory), ask(b"small"))
    assert order[0] == b"small"


async def test_a_request_that_is_given_up_stops_the_answer_and_leaves_the_memory_alone(site):
    chunk = b"x" * (64 * 1024 * 1024)
    a, b = await site.pair(far=serving(chunk))
    memory = bytearray(len(chunk))
    pulling = asyncio.create_task(a.request("b", b"chunk", timeout_s=20, into=memoryview(memory)))
    while not memory[0]:  # noqa: ASYNC110 - memory tells nobody that it is written
        await asyncio.sleep(0)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    written = memory.count(b"x")
    assert written < len(chunk) / 2
    for _ in range(20):
        await a.request("b", b"still there", timeout_s=5)
    assert memory.count(b"x") == written
    assert b.bytes_out < len(chunk) / 2
    assert len(a._connections) == 1


async def test_bytes_that_tls_holds_back_are_not_forgotten(site, monkeypatch):
    """A wake-up may end in the middle of a TLS record, of which the kernel knows nothing any more."""
    monkeypatch.setattr(channel, "READ_BUDGET_BYTES", 30)
    a, _ = await site.pair(far=serving(b"x" * 10_000), timings=Timings())
    for _ in range(10):
        assert (await a.request("b", b"chunk", timeout_s=2, limit_bytes=10_000)).body == b"x" * 10_000


async def test_an_answer_of_another_length_closes_the_connection_and_the_next_request_has_a_new_one(site):
    a, _ = await site.pair(far=serving(bytes(1000)))
    for length in (999, 1001):
        with pytest.raises(FrameError, match=f"1000 bytes where {length} were asked for"):
            await a.request("b", b"chunk", timeout_s=5, into=memoryview(bytearray(length)))
    with pytest.raises(FrameError, match="the limit is 999"):
        await a.request("b", b"chunk", timeout_s=5, limit_bytes=999)
    assert (await a.request("b", b"chunk", timeout_s=5, limit_bytes=1000)).body_bytes == 1000


async def test_arrays_travel_as_their_bytes(site):
    a, _ = await site.pair(far=serving(memoryview(np.arange(6, dtype="<f4").reshape(2, 3))))
    memory = np.zeros((3, 2), dtype="<f4")
    assert (await a.request("b", b"chunk", timeout_s=5, into=memoryview(memory))).body_bytes == 24
    assert memory.ravel().tolist() == [0, 1, 2, 3, 4, 5]


async def test_an_answer_in_words_leaves_the_memory_alone(site):
    a, _ = await site.pair(far=serving(b""))
    memory = bytearray(b"kept")
    received = await a.request("b", b"no such chunk", timeout_s=5, into=memoryview(memory))
    assert received == (b"no such chunk", b"", 0)
    assert memory == b"kept"


async def test_a_handler_that_raises_refuses_that_request_only(site):
    async def broken(_who, message):
        if message == b"break":
            raise ValueError("a mistake")
        return Reply(message)

    a, _ = await site.pair(far=broken)
    with pytest.raises(PeerRefused, match="error of its own"):
        await a.request("b", b"break", timeout_s=5)
    assert (await a.request("b", b"go on", timeout_s=5)).message == b"go on"
    assert len(a._connections) == 1


async def test_a_member_that_can_only_dial_out_serves_requests(site):
    a = await site.node("a", listen=None)
    b = await site.node("b")
    a.set_peers([site.peer("b")])
    b.set_peers([site.peer("a")])
    assert not b._links["a"].address.addresses
    assert (await b.request("a", b"hello", timeout_s=5)).message == b"b said hello"
    assert link_to(b, "a").via == "accepted"


async def test_a_request_waits_for_a_peer_that_starts_later(site):
    spare = await site.node("b")
    await spare.close()
    a = await site.node("a", timings=replace(Timings(), backoff_max_s=0.2))
    a.set_peers([site.peer("b")])
    asking = asyncio.create_task(a.request("b", b"hello", timeout_s=10))
    await until(lambda: "Connection refused" in link_to(a, "b").problem)
    b = await site.node("b", listen=site.addresses["b"][0])
    b.set_peers([site.peer("a")])
    assert (await asking).message == b"a said hello"
    assert link_to(a, "b").problem == ""


async def test_an_unreachable_peer_is_named_with_the_reason(site):
    spare = await site.node("b")
    await spare.close()
    a = await site.node("a")
    a.set_peers([site.peer("b")])
    with pytest.raises(PeerUnreachable, match=r"No connection to 'b' in .* Connection refused"):
        await a.request("b", b"hello", timeout_s=0.3)
    with pytest.raises(PeerUnreachable, match="not in the directory"):
        await a.request("c", b"hello", timeout_s=0.3)


async def test_a_connection_cut_in_the_middle_of_a_chunk_fails_at_once_and_is_made_anew(site, proxy):
    chunk = os.urandom(8 * CHUNK_BYTES)
    b = await site.node("b", serving(chunk))
    async with proxy(b.port) as line:
        a = await site.node("a", listen=None)
        a.set_peers([site.peer("b", line.address)])
        b.set_peers([site.peer("a")])
        await a.request("b", b"hello", timeout_s=5)
        line.cut_after = line.carried + CHUNK_BYTES
        start_s = time.monotonic()
        memory = bytearray(len(chunk))
        with pytest.raises(PeerUnreachable, match="ended before its answer"):
            await a.request("b", b"chunk", timeout_s=60, into=memoryview(memory))
        assert time.monotonic() - start_s < 10
        line.cut_after = None
        await a.request("b", b"chunk", timeout_s=60, into=memoryview(memory))
        assert memory == chunk
        await a.close()
        await b.close()


async def test_a_node_dials_few_peers_at_a_time_and_at_once_one_that_is_wanted(site):
    dialled = []

    async def say_nothing(_reader, writer):
        dialled.append(writer)

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    try:
        z, a = await site.node("z"), await site.node("a")
        z.set_peers([site.peer("a")._replace(addresses=())])  # it waits to be dialled
        address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        a.set_peers([*(site.peer(f"m{n}", address) for n in range(DIALS_AT_ONCE + 4)), site.peer("z")])
        await until(lambda: len(dialled) >= DIALS_AT_ONCE)
        assert not link_to(a, "z").connected, "it is behind all others"
        assert (await a.request("z", b"hello", timeout_s=2)).message == b"a said hello"
        assert len(dialled) == DIALS_AT_ONCE, "the rest wait until one of these has been given up"
        await until(lambda: len(dialled) > DIALS_AT_ONCE)  # after handshake_s
    finally:
        silent.close()
        await asyncio.sleep(0.05)  # who is being accepted is in the list, too
        for writer in dialled:
            writer.transport.abort()
        await asyncio.sleep(0.05)


async def test_a_peer_that_falls_silent_is_noticed(site, proxy):
    b = await site.node("b", timings=Timings())  # so that it is a who notices first
    async with proxy(b.port) as line:
        a = await site.node("a", listen=None)
        a.set_peers([site.peer("b", line.address)])
        b.set_peers([site.peer("a")])
        await a.request("b", b"hello", timeout_s=5)
        line.still = True
        with pytest.raises(PeerUnreachable, match="silent"):
            await a.request("b", b"hello", timeout_s=30)
        line.still = False
        assert (await a.request("b", b"again", timeout_s=5)).message == b"a said again"
        await a.close()
        await b.close()


async def test_a_removed_peer_is_cut_off_while_connected(site):
    async def forever(_who, message):
        if message == b"wait":
            await asyncio.get_running_loop().create_future()
        return Reply(message)

    a, b = await site.pair(far=forever)
    asking = asyncio.create_task(a.request("b", b"wait", timeout_s=20))
    await until(lambda: any(c._serving for c in b._connections))
    b.set_peers([])
    with pytest.raises(PeerUnreachable, match="ended before its answer"):
        await asking
    assert b.links() == ()
    with pytest.raises(PeerUnreachable, match="does not trust our certificate"):
        await a.request("b", b"let me in", timeout_s=0.5)


async def test_both_sides_dial_at_once_and_no_request_is_lost(site):
    quick = replace(Timings(), yield_s=0.0)
    a, b = await site.node("a", timings=quick), await site.node("b", timings=quick)
    asking = []
    for one, other in ((a, "b"), (b, "a")):
        one.set_peers([site.peer(other)])
        asking += [one.request(other, b"%d" % number, timeout_s=10) for number in range(200)]
    received = await asyncio.gather(*asking)
    assert len(received) == 400
    await until(lambda: len(a._connections) == len(b._connections) == 1)
    assert link_to(a, "b").via == "dialled"
    assert link_to(b, "a").via == "accepted"


async def test_a_connection_is_renewed_before_its_certificate_ends_and_no_request_is_lost(site):
    issued = []

    def fresh():
        if not issued or time.time() > issued[-1].not_after_s - 2:
            issued.append(site.authority("a").issue(ttl_s=3))
        return issued[-1]

    identity = site.identity("a")
    identity.issue = fresh

    async def slow(_who, message):
        await asyncio.sleep(0.2)
        return Reply(message)

    a = await site.node("a", identity=identity)
    b = await site.node("b", slow)
    a.set_peers([site.peer("b")])
    b.set_peers([site.peer("a")])
    used, end_s = set(), time.monotonic() + 4

    async def ask(wait_s):
        await asyncio.sleep(wait_s)
        while time.monotonic() < end_s:
            await a.request("b", b"hello", timeout_s=2)
            used.update(a._connections)

    await asyncio.gather(*(ask(number * 0.02) for number in range(10)))
    assert len(used) > 1
    assert len(issued) > 1


async def test_a_request_in_flight_finishes_on_a_connection_that_is_left(site):
    go = asyncio.Event()

    async def slow(_who, message):
        if message == b"slow":
            await go.wait()
        return Reply(message, bytes(1000))

    a, b = await site.pair(near=slow, far=serving(b""))
    asking = asyncio.create_task(b.request("a", b"slow", timeout_s=10, limit_bytes=1000))
    await until(lambda: any(c._serving for c in a._connections))
    old = next(iter(a._connections))
    old.leave("for a test")
    assert (await b.request("a", b"quick", timeout_s=5, limit_bytes=1000)).message == b"quick"
    assert not old.ended
    go.set()
    assert (await asking).message == b"slow"
    await until(lambda: old.ended)
    assert len(a._connections) == 1


async def test_a_new_bundle_renews_the_connection_and_a_new_identity_cuts_it(site):
    a, _ = await site.pair()
    before = next(iter(a._connections))
    peer = site.peer("b")
    a.set_peers([peer._replace(bundle=peer.bundle + site.authority("other").bundle)])
    await until(lambda: before.ended)
    await a.request("b", b"hello", timeout_s=5)
    a.set_peers([peer._replace(spiffe_id="spiffe://b.example/elsewhere")])
    with pytest.raises(PeerUnreachable, match="stranger"):
        await a.request("b", b"hello", timeout_s=0.5)


@pytest.mark.parametrize("host", [f"{'x' * 64}.example", "nobody.invalid"])
async def test_a_peer_whose_address_names_no_host_is_said_to_be_so(site, host):
    """A member may announce any address that looks like one."""
    a = await site.node("a")
    a.set_peers([site.peer("b", f"{host}:7420")])
    with pytest.raises(PeerUnreachable) as caught:
        await a.request("b", b"hello", timeout_s=1.0)
    problem = next(link.problem for link in a.links())
    assert "see this node's log" not in problem
    assert "Unknown error" not in problem
    assert problem in str(caught.value)


async def test_a_port_in_use_is_named(site):
    a = await site.node("a")
    with pytest.raises(ConfigError, match=f"Port {a.port} at 127.0.0.1 is in use") as caught:
        await site.node("b", listen=f"127.0.0.1:{a.port}")
    assert "another port" in str(caught.value)


@pytest.mark.parametrize(
    "listen", ["nonsense", "127.0.0.1:", ":70", "127.0.0.1:70000", "203.0.113.7:0", f"{'x' * 64}.b:1"]
)
async def test_an_address_that_cannot_be_used_is_refused(site, listen):
    with pytest.raises(ConfigError):
        await site.node("a", listen=listen)


async def test_closing_leaves_nothing_behind(site):
    for name in "ab":
        site.identity(name)
    before = traces()

    async def forever(_who, message):
        if message == b"wait":
            await asyncio.get_running_loop().create_future()
        return Reply(message)

    a, b = await site.pair(far=forever)
    asking = asyncio.create_task(a.request("b", b"wait", timeout_s=20))
    await until(lambda: any(c._serving for c in b._connections))
    await b.close()
    with pytest.raises(PeerUnreachable, match="is stopping"):
        await asking
    await a.close()
    with pytest.raises(PeerUnreachable, match="stopping"):
        await a.request("b", b"hello", timeout_s=1)
    await asyncio.sleep(0)
    after = traces()
    assert after == before
