"""Nodes that get out only through an HTTP proxy: what goes through it, what it may not do, and what people are told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import socket
import time
from typing import Self

import pytest

from konsil.errors import PeerUnreachable, ProxyError
from konsil.transport.proxy import Direct, Proxy
from konsil.transport.tunnel import connect_through, dialling

pytestmark = pytest.mark.real

OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
BEHIND = "b.invalid"
"""A name that this machine cannot find: who gets there got there through the proxy."""


class ConnectProxy:
    """A proxy that opens ways to the names that it knows, or says what a test wants it to say."""

    def __init__(self, **ways: str) -> None:
        self.ways = {name.replace("_", "."): address for name, address in ways.items()}
        self.says: bytes | None = None
        self.first: bytes = b""
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.requests: list[bytes] = []
        self.left: asyncio.Queue[None] = asyncio.Queue()
        self.port = 0
        self.moved = 0
        self.spy = bytearray()
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None] | None] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        """Be gone, with every way that was open."""
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in [task for task in self._tasks if task is not None]:
            task.cancel()
            await asyncio.wait((task,))
        await self._listener.wait_closed()

    def seen_by(self, **more) -> Proxy:
        return Proxy("127.0.0.1", self.port, **more)

    async def _serve(self, reader, writer) -> None:
        self._writers.add(writer)
        self._tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            self._writers.discard(writer)
            self._tasks.discard(asyncio.current_task())
            self.left.put_nowait(None)

    async def _answer(self, reader, writer) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        await self.hangs.wait()
        writer.write(self.first)
        if self.says is not None:
            writer.write(self.says)
            await reader.read()
        else:
            await self._open(request, reader, writer)

    async def _open(self, request: bytes, reader, writer) -> None:
        name, _, port = request.split(b" ")[1].decode().rpartition(":")
        if name not in self.ways:
            writer.write(b"HTTP/1.1 502 No such host\r\n\r\n")
            return
        host, port = self.ways[name].split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._writers.add(far_writer)
        writer.write(OPEN)
        await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))
        self._writers.discard(far_writer)

    async def _pipe(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                self.moved += len(data)
                self.spy += data
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(serve):
    """A port of this machine at which ``serve`` has each connection; all are over at the end."""
    tasks = []

    async def one(reader, writer):
        tasks.append(asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                await serve(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(one, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def behind(site):
    """A node, a proxy that knows the way to it, and a function that makes another node behind the proxy."""
    b = await site.node("b")
    b.set_peers([site.peer("a")])
    async with ConnectProxy(b_invalid=site.addresses["b"][0]) as proxy:

        async def node(**more):
            a = await site.node("a", listen=None, dial=dialling(proxy.seen_by(**more), 0.5))
            a.set_peers([site.peer("b", f"{BEHIND}:7400")])
            return a

        yield b, proxy, node


async def told(node, text, timeout_s=5.0) -> str:
    """Wait until a node says this of its peer; all that it says."""
    async with asyncio.timeout(timeout_s):
        while text not in (problem := node.links()[0].problem):  # noqa: ASYNC110 - a link is a plain value
            await asyncio.sleep(0.005)
    return problem


async def test_a_node_behind_a_proxy_asks_and_is_asked_through_it(site, behind):
    b, proxy, node = behind
    a = await node()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    assert (await b.request("a", b"hello", timeout_s=5)).message == b"b said hello"
    assert [(link.via, link.problem) for link in a.links()] == [("dialled", "")]
    assert proxy.requests == [
        b"CONNECT b.invalid:7400 HTTP/1.1\r\nHost: b.invalid:7400\r\nUser-Agent: konsil\r\n\r\n"
    ]


async def test_a_proxy_may_say_several_times_that_it_goes_on(site, behind):
    _, proxy, node = behind
    proxy.first = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 102 Processing\r\nVia: 1.1 squid\r\n\r\n"
    a = await node()
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


async def test_the_proxy_sees_nothing_of_what_is_said(site, behind):
    _, proxy, node = behind
    a = await node()
    word = b"nobody between them reads this"
    assert (await a.request("b", word, timeout_s=5)).message == b"a said " + word
    assert proxy.moved > 1000
    assert word not in proxy.spy
    assert b"run " not in proxy.spy, "the greetings"
    assert proxy.spy[:3] == b"\x16\x03\x01", "TLS from the first byte on"


async def test_large_bodies_go_through_whole(site):
    from konsil.transport.base import Reply  # noqa: PLC0415 - only here

    body = bytes(range(256)) * 16 * 1024

    async def large(_who, _message):
        return Reply(b"", body)

    b = await site.node("b", large)
    b.set_peers([site.peer("a")])
    async with ConnectProxy(b_invalid=site.addresses["b"][0]) as proxy:
        a = await site.node("a", listen=None, dial=dialling(proxy.seen_by()))
        a.set_peers([site.peer("b", f"{BEHIND}:7400")])
        got = bytearray(len(body))
        await a.request("b", b"", timeout_s=20, into=memoryview(got))
    assert got == body


async def test_a_proxy_that_dies_and_comes_back_costs_a_request_and_nothing_else(site, behind):
    _, proxy, node = behind
    a = await node()
    await a.request("b", b"hello", timeout_s=5)
    await proxy.die()
    problem = await told(a, "cannot be reached: Connection refused")
    assert problem.startswith(f"The proxy http://127.0.0.1:{proxy.port} cannot be reached")
    with pytest.raises(PeerUnreachable, match="The last attempt: The proxy"):
        await a.request("b", b"hello", timeout_s=0.3)
    waiting = asyncio.create_task(a.request("b", b"again", timeout_s=5))
    async with proxy:
        assert (await waiting).message == b"a said again"


async def test_a_host_of_the_list_and_this_machine_are_reached_without_the_proxy(site, behind):
    _, proxy, _ = behind
    a = await site.node("a", listen=None, dial=dialling(proxy.seen_by(), 0.5))
    a.set_peers([site.peer("b")])
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    assert proxy.requests == []
    dial = dialling(proxy.seen_by(direct=Direct.parse(".invalid")))
    with pytest.raises(socket.gaierror):
        await dial(BEHIND, 7400)
    assert proxy.requests == []


def status(line: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {line}", *fields, "", ""]).encode() + b"<html>why</html>"


@pytest.mark.parametrize(
    ("says", "what", "do"),
    [
        (status("403 Forbidden"), "refuses the way to b.invalid:7400 (403 Forbidden)", "Ask IT to allow CONNECT to b.invalid:7400 from this"),
        (status("407 Who?", "Proxy-Authenticate: Basic realm=x"), "wants a user and a password (407 Who?)", "Name both where the proxy is named."),
        (status("407 Who?", "Proxy-Authenticate: Negotiate", "Proxy-Authenticate: NTLM"), "by Negotiate, NTLM; this node can tell it only by Basic", "Ask IT to let this machine through without"),
        (status("502 Bad Gateway"), "could not reach b.invalid:7400 (502 Bad Gateway)", "Is that node running"),
        (status("503 Away"), "could not reach b.invalid:7400 (503 Away)", "Is that node running"),
        (status("504 Gateway Timeout"), "could not reach b.invalid:7400 (504", "does its firewall let the proxy in?"),
        (status("405 Method Not Allowed"), "opens no way to b.invalid:7400 (405", "knows CONNECT"),
        (status("302 Found", "Location: http://log.in/"), "sends this node elsewhere (302 Found)", "that is not followed. "),
        (status("500 Oops"), "answered 500 Oops instead of opening the way", "See the proxy's log"),
        (status("101 Switching Protocols"), "answered 101 Switching Protocols instead", "See the proxy's log"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + OPEN, "The answer has not come after 8 others that say to wait", "See whether its address"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer as an HTTP proxy. The answer does not begin like an HTTP/1.1 response. Nothing", "See whether its address and port are right"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000, "more than 16384 bytes", "See whether its address"),
        (OPEN + b"\x4b\x01\x00\x00", "sent 4 bytes of its own into the way to b.invalid:7400", "ask IT to let this way through untouched"),
        (OPEN + OPEN, "bytes of its own into the way", "ask IT to let this way through untouched"),
    ],
)  # fmt: skip
async def test_what_a_proxy_says_instead_of_opening_the_way_is_told_with_what_to_do(behind, says, what, do):
    _, proxy, node = behind
    proxy.says = says
    a = await node()
    problem = await told(a, what)
    assert do in problem
    assert problem.startswith(f"The proxy http://127.0.0.1:{proxy.port} ")
    async with asyncio.timeout(5):
        await proxy.left.get()  # the node has hung up
    # The way is open: the same node goes on by itself.
    proxy.says = None
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"


@pytest.mark.parametrize(
    ("says", "what"),
    [(b"", "closed without an answer"), (b"HTTP/1.1 200 OK\r\n", "in the middle of its answer")],
)
async def test_a_proxy_that_hangs_up_is_told_as_such(says, what):
    async def hang_up(_reader, writer):
        writer.write(says)

    async with serving(hang_up) as port:
        with pytest.raises(ProxyError, match=what):
            await connect_through(Proxy("127.0.0.1", port), BEHIND, 7400)


async def test_a_proxy_that_says_nothing_or_a_byte_at_a_time_is_given_up_in_time(behind):
    _, proxy, _ = behind
    proxy.hangs.clear()
    began_s = time.monotonic()
    with pytest.raises(ProxyError, match=r"did not open the way to b.invalid:7400 in 0.3 s.* is it running"):
        await connect_through(proxy.seen_by(), BEHIND, 7400, 0.3)

    async def drip(_reader, writer):
        for letter in itertools.chain(b"HTTP/1.1 200 OK\r\nA: ", itertools.repeat(ord("b"))):
            writer.write(bytes((letter,)))
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(drip) as port:
        slow = Proxy("127.0.0.1", port)
        with pytest.raises(ProxyError, match=r"did not open the way to b.invalid:7400 in 0.3 s"):
            await connect_through(slow, BEHIND, 7400, 0.3)
    assert time.monotonic() - began_s < 3
    proxy.hangs.set()


async def test_a_proxy_that_answers_nowhere_is_given_up_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # its backlog is full: the next one's first packet is thrown away
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        try:
            with pytest.raises(ProxyError, match=r"cannot be reached: nothing answered in 0.3 s"):
                await connect_through(Proxy(*full.getsockname()), BEHIND, 7400, 0.3)
        finally:
            for filler in fillers:
                filler.close()


async def test_user_and_password_go_to_the_proxy_alone_and_a_changed_password_is_used_at_once(behind):
    _, proxy, node = behind
    passwords = ["old"]
    proxy.says = status("407 Who?", "Proxy-Authenticate: Basic realm=x")
    a = await node(user="konsil", password=lambda: passwords[-1], known_from="HERE")
    problem = await told(a, "does not take the user 'konsil' with its password (407 Who?)")
    assert "See whether both are right: they come from HERE." in problem
    assert base64.b64encode(b"konsil:old") in proxy.requests[-1]
    assert "old" not in problem.split()
    passwords.append("n\u00ebw")
    proxy.says = None
    assert (await a.request("b", b"hello", timeout_s=5)).message == b"a said hello"
    known = base64.b64encode("konsil:n\u00ebw".encode())
    assert b"\r\nProxy-Authorization: Basic " + known + b"\r\n" in proxy.requests[-1]
    assert known not in proxy.spy


async def test_a_proxy_cannot_put_another_member_in_a_peers_place(site, behind):
    _, proxy, node = behind
    c = await site.node("c", site.never)
    c.set_peers([site.peer("a")])
    proxy.ways[BEHIND] = site.addresses["c"][0]
    a = await node()
    await told(a, "certificate is not trusted")
    assert not a.links()[0].connected


async def test_a_proxy_cannot_speak_in_place_of_tls(site):

    async def plain(reader, writer):
        writer.write(OPEN)
        await reader.read(100)  # behind the head, but after the node's first words
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nwelcome")

    async with serving(plain) as port:
        a = await site.node("a", listen=None, dial=dialling(Proxy("127.0.0.1", port), 0.5))
        a.set_peers([site.peer("b", f"{BEHIND}:7400")])
        await told(a, "the other side does not speak TLS")
        assert not a.links()[0].connected


@pytest.mark.parametrize("host", ["b\r\nX-Evil: 1", "b c", "b/../c", "b@c", "", "\u00e9.example", "a" * 300])
async def test_no_host_can_become_lines_of_the_request(behind, host):
    _, proxy, _ = behind
    with pytest.raises(ProxyError, match="neither a name nor an IP address"):
        await connect_through(proxy.seen_by(), host, 7400)
    assert proxy.requests == []


async def test_an_ipv6_address_is_asked_for_in_brackets(behind):
    _, proxy, _ = behind
    with pytest.raises(ProxyError, match=r"could not reach \[2001:db8::1\]:7400"):
        await connect_through(proxy.seen_by(), "2001:db8::1", 7400)
    assert proxy.requests[0].startswith(
        b"CONNECT [2001:db8::1]:7400 HTTP/1.1\r\nHost: [2001:db8::1]:7400\r\n"
    )
