"""Strangers, twins, and members that break the rules: what they get, and that the others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
import tracemalloc
from dataclasses import replace

import pytest

from konsil.errors import FrameError, PeerUnreachable
from konsil.identity.tls import client_context
from konsil.transport.base import Reply
from konsil.transport.listener import origin
from konsil.transport.timings import MAX_HANDSHAKES, MAX_IN_FLIGHT, Timings

pytestmark = pytest.mark.real

HELLO, REQUEST, ANSWER, DATA, CANCEL, PING, PONG, GOAWAY = range(1, 9)


async def closed(reader, timeout_s=5.0) -> bytes:
    """Everything that still comes until the other side closes."""
    try:
        return await asyncio.wait_for(reader.read(), timeout_s)
    except (ConnectionError, ssl.SSLError):
        return b""


async def refused(node, peer, text, timeout_s=5.0) -> None:
    """Wait until a peer's link shows this problem."""
    async with asyncio.timeout(timeout_s):
        while text not in next(link.problem for link in node.links() if link.name == peer):  # noqa: ASYNC110 - a link is a plain value
            await asyncio.sleep(0.005)


async def test_a_stranger_is_refused_at_the_handshake_and_told_so(site):
    b = await site.node("b", site.never)
    stranger = await site.node("c")
    b.set_peers([site.peer("a")])
    stranger.set_peers([site.peer("b")])
    await refused(stranger, "b", "the peer does not trust our certificate")
    with pytest.raises(PeerUnreachable, match="does not trust our certificate"):
        await stranger.request("b", b"hello", timeout_s=0.3)


async def test_another_member_at_a_peers_address_is_not_believed(site):
    """The one at b's address is a member, but not b."""
    c = await site.node("c", site.never)
    a = await site.node("a")
    c.set_peers([site.peer("a")])
    a.set_peers([site.peer("b", site.addresses["c"][0])])
    await refused(a, "b", "certificate is not trusted")


async def test_a_certificate_from_a_false_authority_of_the_same_name_is_refused(site, tmp_path):
    from konsil.identity.authority import Authority  # noqa: PLC0415 - only this test forges

    forged = Authority.create(tmp_path / "forged", "a.example").issue()
    identity = site.identity("a")
    identity.issue = lambda: forged
    a = await site.node("a", identity=identity)
    b = await site.node("b", site.never)
    b.set_peers([site.peer("a")])
    a.set_peers([site.peer("b")])
    await refused(a, "b", "the peer")
    assert not b.links()[0].connected


async def test_an_expired_certificate_is_refused_and_named(site):
    identity = site.identity("a", ttl_s=1)
    await asyncio.sleep(identity.expires_s + 0.1 - time.time())
    a = await site.node("a", identity=identity)
    b = await site.node("b", site.never)
    b.set_peers([site.peer("a")])
    a.set_peers([site.peer("b")])
    await refused(a, "b", "own certificate has expired")
    await refused(
        b, "a", "certificate is not trusted (certificate has expired; compare both machines' clocks"
    )
    reader, writer = await site.raw("a", "b", instance=None, identity=identity)
    assert await closed(reader) == b""
    writer.transport.abort()
    assert not b.links()[0].connected


async def test_a_plaintext_visitor_is_closed_and_the_others_go_on(site):
    a, b = await site.pair()
    reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
    answer = await closed(reader)
    assert not answer.startswith(b"HTTP")
    writer.close()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


async def test_tls_1_2_is_refused(site):
    a, b = await site.pair()
    context = client_context(site.identity("a"), site.authority("b").bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", b.port, ssl=context, server_hostname="")
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


async def test_a_visitor_without_a_certificate_is_refused(site):
    a, b = await site.pair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["konsil/1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", b.port, ssl=context, server_hostname="")
    assert await closed(reader) == b""
    writer.transport.abort()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


async def test_a_node_of_another_swarm_is_refused_with_the_reason(site):
    a = await site.node("a", hello=b"swarm of others")
    b = await site.node("b", site.never)
    b.set_peers([site.peer("a")])
    a.set_peers([site.peer("b")])
    await refused(a, "b", "refused the connection: This node is in another swarm. Compare the genesis.")
    assert not b.links()[0].connected


@pytest.mark.parametrize(
    "words",
    [
        {"kind": REQUEST, "request": 1, "message_bytes": 0xFFFF_FFFF},
        {"kind": REQUEST, "request": 1, "body_bytes": 1 << 62},
        {"kind": DATA, "request": 1, "body_bytes": 1 << 62},
        {"kind": DATA, "request": 1, "body_bytes": 4},
        {"kind": ANSWER, "request": 1, "body_bytes": 1 << 62},
        {"kind": 77},
        {"kind": PING, "flags": 9},
        {"kind": HELLO, "message": b"again"},
    ],
    ids=str,
)
async def test_a_member_that_breaks_the_format_is_cut_off_before_memory_is_reserved(site, make_frame, words):
    b = await site.node("b")
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    tracemalloc.start()
    try:
        writer.write(make_frame(**words))
        await closed(reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
    assert "connected=True" not in str(b.links())
    a = await site.node("a", listen=None)
    a.set_peers([site.peer("b")])
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


async def test_an_answer_that_announces_too_much_reserves_no_memory(site, make_frame):
    b = await site.node("b")
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    asking = asyncio.create_task(b.request("a", b"chunk", timeout_s=5, limit_bytes=1000))
    header = await reader.readexactly(20)
    while header[1] != REQUEST:
        header = await reader.readexactly(20)
    tracemalloc.start()
    try:
        writer.write(make_frame(ANSWER, int.from_bytes(header[4:8]), body_bytes=1 << 33))
        with pytest.raises(FrameError, match="announces 8589934592 bytes; the limit is 1000"):
            await asking
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


async def test_a_body_that_is_longer_than_announced_is_cut_off(site, make_frame):
    b = await site.node("b")
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    memory = bytearray(20)
    asking = asyncio.create_task(b.request("a", b"chunk", timeout_s=5, into=memoryview(memory)[:10]))
    header = await reader.readexactly(20)
    while header[1] != REQUEST:
        header = await reader.readexactly(20)
    number = int.from_bytes(header[4:8])
    writer.write(
        make_frame(ANSWER, number, body_bytes=10) + make_frame(DATA, number, body_bytes=11) + b"x" * 11
    )
    with pytest.raises(FrameError, match="longer than its answer announced"):
        await asking
    assert memory == bytes(20)


async def test_a_request_before_the_hello_is_not_served(site, make_frame):
    b = await site.node("b", site.never)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b", instance=None)
    writer.write(make_frame(REQUEST, 1, b"hello"))
    await closed(reader)
    assert not b.links()[0].connected


async def test_more_requests_than_allowed_end_the_connection(site, make_frame):
    served = 0

    async def forever(_who, _message):
        nonlocal served
        served += 1
        await asyncio.get_running_loop().create_future()
        return Reply(b"")

    b = await site.node("b", forever)
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    writer.write(b"".join(make_frame(REQUEST, number, b"x") for number in range(1, MAX_IN_FLIGHT + 2)))
    await closed(reader)
    assert served <= MAX_IN_FLIGHT


async def test_requests_that_are_cancelled_make_room(site, make_frame):
    async def forever(_who, message):
        if message == b"wait":
            await asyncio.get_running_loop().create_future()
        return Reply(message)

    b = await site.node("b", forever, timings=Timings())
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    for number in range(1, 2 * MAX_IN_FLIGHT):
        writer.write(make_frame(REQUEST, number, b"wait") + make_frame(CANCEL, number))
    writer.write(make_frame(REQUEST, 9999, b"done"))
    received = b""
    while b"done" not in received:
        received += await asyncio.wait_for(reader.read(1000), 5)
    assert not any(connection._serving for connection in b._connections)


async def test_a_header_and_then_nothing_costs_the_connection_at_a_deadline(site, make_frame):
    b = await site.node("b", timings=replace(Timings(), frame_s=0.3))
    b.set_peers([site.peer("a")])
    reader, writer = await site.raw("a", "b")
    half = make_frame(REQUEST, 1, b"x" * 1000)
    writer.write(half[:30])
    start_s = time.monotonic()

    async def trickle():
        for number in range(30, 1000):
            writer.write(half[number : number + 1])
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    await closed(reader)
    trickling.cancel()
    assert 0.25 < time.monotonic() - start_s < 4


@pytest.mark.parametrize("how_far", ["nothing", "some bytes", "no hello"])
async def test_a_handshake_that_does_not_end_is_ended(site, how_far):
    b = await site.node("b", timings=replace(Timings(), handshake_s=0.3))
    b.set_peers([site.peer("a")])
    if how_far == "no hello":
        reader, writer = await site.raw("a", "b", instance=None)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
        if how_far == "some bytes":
            writer.write(b"\x16\x03\x01")
    await closed(reader)
    writer.transport.abort()
    assert not b._connections


async def test_a_flood_of_connections_is_bounded_and_passes(site):
    b = await site.node("b", timings=replace(Timings(), handshake_s=0.4))
    b.set_peers([site.peer("a")])
    flood = [socket.create_connection(("127.0.0.1", b.port), 5) for _ in range(MAX_HANDSHAKES + 40)]
    try:
        await asyncio.sleep(0.1)
        assert len(b._tasks) <= MAX_HANDSHAKES + 1
        a = await site.node("a", listen=None)
        a.set_peers([site.peer("b")])
        assert (await a.request("b", b"hello", timeout_s=8)).message == b"a said hello"
    finally:
        for sock in flood:
            sock.close()


async def test_who_says_nothing_from_one_place_does_not_keep_members_out(site):
    b = await site.node("b", timings=replace(Timings(), handshake_s=30.0))
    b.set_peers([site.peer("a")])
    where = ("127.0.0.2", 0)
    silent = [
        socket.create_connection(("127.0.0.1", b.port), 5, source_address=where)
        for _ in range(2 * MAX_HANDSHAKES)
    ]
    try:
        a = await site.node("a", listen=None)
        a.set_peers([site.peer("b")])
        assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
        assert len(b._tasks) <= MAX_HANDSHAKES + 4
    finally:
        for sock in silent:
            sock.close()


async def test_many_handshakes_from_one_place_are_all_finished_where_there_is_room(site):
    """A proxy may stand for many members: none of them is hung up on for the others."""
    b = await site.node("b", timings=replace(Timings(), handshake_s=30.0))
    many = [socket.create_connection(("127.0.0.1", b.port), 5) for _ in range(MAX_HANDSHAKES)]
    try:
        await asyncio.sleep(0.3)
        for sock in many:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # it waits for us to begin
                sock.recv(1)
    finally:
        for sock in many:
            sock.close()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%lo", "fe80::2%lo", True),
    ],
)
def test_a_place_is_an_address_or_the_network_of_a_site(one, other, alike):
    assert (origin(one) == origin(other)) is alike


async def test_a_second_node_with_the_same_identity_is_refused_while_the_first_lives(site):
    b = await site.node("b")
    first = await site.node("a", listen=None, instance="first")
    b.set_peers([site.peer("a")])
    first.set_peers([site.peer("b")])
    await first.request("b", b"hello", timeout_s=5)
    second = await site.node("a", listen=None, instance="second")
    second.set_peers([site.peer("b")])
    await refused(second, "b", "Two nodes with one identity")
    assert "Two nodes with one identity" in b.links()[0].problem
    assert b.links()[0].connected
    assert (await first.request("b", b"still here", timeout_s=5)).message == b"a said still here"
    await first.close()
    assert (await second.request("b", b"my turn", timeout_s=5)).message == b"a said my turn"


async def test_a_node_that_comes_again_replaces_its_dead_connection(site, proxy):
    b = await site.node("b", timings=replace(Timings(), rival_s=0.3))
    async with proxy(b.port) as line:
        first = await site.node("a", listen=None, instance="first", timings=Timings())
        b.set_peers([site.peer("a")])
        first.set_peers([site.peer("b", line.address)])
        await first.request("b", b"hello", timeout_s=5)
        line.still = True
        second = await site.node("a", listen=None, instance="second")
        second.set_peers([site.peer("b")])
        assert (await second.request("b", b"again", timeout_s=5)).message == b"a said again"
        assert len(b._connections) == 1
        await first.close()
        await second.close()
        await b.close()


async def test_a_peer_that_reads_nothing_is_cut_off_and_its_requests_do_not_pile_up(site, make_frame):
    b = await site.node("b", timings=replace(Timings(), ping_s=30))
    b.set_peers([site.peer("a")])
    _, writer = await site.raw("a", "b")
    writer.transport.pause_reading()
    pings = make_frame(PING, 1) * 1000
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while b._connections:
                writer.write(pings)
                await writer.drain()
    assert not b._connections
