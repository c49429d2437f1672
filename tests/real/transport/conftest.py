"""Members with real certificates, and transports of theirs on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
import struct
from collections.abc import Callable

import pytest

from konsil.errors import KonsilError
from konsil.identity.authority import Authority
from konsil.identity.tls import check_peer, client_context, server_context
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.sockets import connect
from konsil.transport.timings import Timings
from konsil.transport.tls import TlsTransport

QUICK = Timings(
    handshake_s=3.0,
    ping_s=0.3,
    frame_s=0.6,
    rival_s=0.3,
    backoff_min_s=0.01,
    backoff_max_s=0.1,
    yield_s=0.05,
    close_s=0.5,
)


class FixedIdentity:
    """The node's identity as a transport wants it, over `konsil.identity`."""

    def __init__(self, issue: Callable[[], object]) -> None:
        self.issue = issue

    @property
    def svid(self):
        return self.issue()

    @property
    def expires_s(self):
        return self.svid.not_after_s

    def client_context(self, peer):
        return client_context(self, peer.bundle)

    def server_context(self, peers):
        return server_context(self, [peer.bundle for peer in peers])

    def check_peer(self, connection, peers):
        spiffe_id, not_after_s = check_peer(
            connection, {peer.spiffe_id: peer.bundle for peer in peers.values()}
        )
        return next(peer.name for peer in peers.values() if peer.spiffe_id == spiffe_id), not_after_s


async def echo(who, message):
    return Reply(who.encode() + b" said " + message)


class Site:
    """Everything that one test starts; closed at its end."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.authorities = {}
        self.addresses = {}
        self.served = []
        self._runs = itertools.count()
        self._closing = contextlib.AsyncExitStack()

    def authority(self, name):
        if name not in self.authorities:
            self.authorities[name] = Authority.create(self.folder / name, f"{name}.example")
        return self.authorities[name]

    def identity(self, name, **how):
        svid = self.authority(name).issue(**how)
        return FixedIdentity(lambda: svid)

    def peer(self, name, address=None):
        addresses = (address,) if address else self.addresses.get(name, ())
        return PeerAddress(name, f"spiffe://{name}.example/node", addresses, self.authority(name).bundle)

    async def node(
        self,
        name,
        handler=echo,
        *,
        listen="127.0.0.1:0",
        identity=None,
        instance=None,
        timings=QUICK,
        hello=None,
        dial=connect,
    ):
        instance = instance or f"run {next(self._runs)}"
        transport = TlsTransport(
            name,
            identity=identity or self.identity(name),
            make_hello=lambda: hello or instance.encode(),
            check_hello=self.check_hello,
            handler=handler,
            listen=listen,
            timings=timings,
            dial=dial,
        )
        await self._closing.enter_async_context(transport)
        if listen:
            self.addresses[name] = (f"127.0.0.1:{transport.port}",)
        return transport

    async def never(self, who, message):
        """Answer for a node that nobody may ask anything; the test's end sees if somebody could."""
        self.served.append((who, message))
        return Reply(b"")

    @staticmethod
    def check_hello(_peer, hello):
        if hello.startswith(b"swarm "):
            raise KonsilError("This node is in another swarm.", do="Compare the genesis.")
        return hello.decode()

    async def pair(self, near=echo, far=echo, **how):
        one, other = await self.node("a", near, **how), await self.node("b", far, **how)
        one.set_peers([self.peer("b")])
        other.set_peers([self.peer("a")])
        await one.request("b", b"are you there", timeout_s=5)
        return one, other

    async def raw(self, name, to, *, instance=b"raw", identity=None):
        """A TLS connection of a member that then says what a test wants it to say; after its Hello."""
        context = client_context(identity or self.identity(name), self.authority(to).bundle)
        host, port = self.addresses[to][0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="")
        self._closing.push_async_callback(close_writer, writer)
        if instance:
            writer.write(frame(1, message=instance))
            header = await asyncio.wait_for(reader.readexactly(20), 5)
            assert header[1] == 1
            await reader.readexactly(struct.unpack("!I", header[8:12])[0])
        return reader, writer

    async def close(self):
        await self._closing.aclose()


async def close_writer(writer):
    writer.transport.abort()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


def frame(kind, request=0, message=b"", *, flags=0, message_bytes=None, body_bytes=0):
    """A frame as the format's description says, whatever the codec thinks of it."""
    length = len(message) if message_bytes is None else message_bytes
    return struct.pack("!BBBBIIQ", 0x4B, kind, flags, 0, request, length, body_bytes) + message


class Proxy:
    """A line between two nodes that a test can cut, or hold still."""

    def __init__(self, port) -> None:
        self.port_behind = port
        self.writers = set()
        self.carried = 0
        self.cut_after = None
        self.still = False

    async def __aenter__(self):
        self.listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.listener.close()
        self.cut()
        await asyncio.sleep(0.05)

    async def _carry(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port_behind)
        self.writers |= {writer, far_writer}
        await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))

    async def _pipe(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                self.carried += len(data)
                if self.cut_after is not None and self.carried > self.cut_after:
                    self.cut()
                    return
                if not self.still:
                    writer.write(data)
                    await writer.drain()
        writer.close()

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@pytest.fixture
async def site(tmp_path):
    site = Site(tmp_path)
    yield site
    await site.close()
    assert site.served == []


@pytest.fixture
def proxy():
    return Proxy


@pytest.fixture
def make_frame():
    return frame
