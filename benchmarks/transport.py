"""How fast chunks move over mutual TLS on loopback, between two processes: `python benchmarks/transport.py`.

Prints GB/s for 4 MiB chunks pulled with four requests in flight into preallocated memory, requests a second
for tiny messages, and how long a tiny request takes while chunks are being pulled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from konsil.identity.authority import Authority
from konsil.identity.svid import Svid, pem_from_der
from konsil.identity.tls import check_peer, client_context, server_context
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.tls import TlsTransport

CHUNK_BYTES = 4 * 1024 * 1024
WINDOW = 4


class BenchIdentity:
    """A fixed SVID as a transport wants it."""

    def __init__(self, svid: Svid) -> None:
        """Keep the SVID."""
        self.svid = svid

    @property
    def expires_s(self) -> float:
        """Unix time of its end."""
        return self.svid.not_after_s

    def client_context(self, peer: PeerAddress) -> ssl.SSLContext:
        """For a connection to this peer."""
        return client_context(self, peer.bundle)

    def server_context(self, peers: Iterable[PeerAddress]) -> ssl.SSLContext:
        """For a connection from any of these."""
        return server_context(self, [peer.bundle for peer in peers])

    def check_peer(self, connection: ssl.SSLSocket, peers: Mapping[str, PeerAddress]) -> tuple[str, float]:
        """Which of them it is."""
        directory = {peer.spiffe_id: peer.bundle for peer in peers.values()}
        spiffe_id, not_after_s = check_peer(connection, directory)
        return next(peer.name for peer in peers.values() if peer.spiffe_id == spiffe_id), not_after_s


Handler = Callable[[str, bytes], Coroutine[object, object, Reply]]


def make_transport(name: str, svid: Svid, handler: Handler, listen: str | None) -> TlsTransport:
    """A transport whose Hello is its name and process."""
    return TlsTransport(
        name,
        identity=BenchIdentity(svid),
        make_hello=f"{name} {os.getpid()}".encode,
        check_hello=lambda _peer, hello: hello.decode(),
        handler=handler,
        listen=listen,
    )


def serve(pipe: Connection, svid: Svid, peer: PeerAddress) -> None:
    """The other process: answers until it is told to stop."""
    asyncio.run(_serve(pipe, svid, peer))


async def _serve(pipe: Connection, svid: Svid, peer: PeerAddress) -> None:
    chunk = memoryview(os.urandom(CHUNK_BYTES))

    async def handler(_peer: str, message: bytes) -> Reply:
        return Reply(b"", chunk) if message == b"chunk" else Reply(message)

    async with make_transport("b", svid, handler, "127.0.0.1:0") as transport:
        transport.set_peers([peer])
        pipe.send(transport.port)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)


async def pull(transport: TlsTransport, chunks: int) -> float:
    """Seconds for so many chunks, four at a time."""
    memory = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(WINDOW)]
    left = iter(range(chunks))

    async def puller(into: memoryview) -> None:
        for _ in left:
            await transport.request("b", b"chunk", timeout_s=30, into=into)

    start_s = time.perf_counter()
    await asyncio.gather(*(puller(into) for into in memory))
    return time.perf_counter() - start_s


async def tiny(transport: TlsTransport, count: int, window: int) -> float:
    """Seconds for so many tiny requests."""
    left = iter(range(count))

    async def asker() -> None:
        for _ in left:
            await transport.request("b", b"hello", timeout_s=30)

    start_s = time.perf_counter()
    await asyncio.gather(*(asker() for _ in range(window)))
    return time.perf_counter() - start_s


async def between(transport: TlsTransport, chunks: int) -> list[float]:
    """Milliseconds that tiny requests take while chunks are pulled."""
    pulling = asyncio.create_task(pull(transport, chunks))
    took_ms = []
    while not pulling.done():
        start_s = time.perf_counter()
        await transport.request("b", b"hello", timeout_s=30)
        took_ms.append((time.perf_counter() - start_s) * 1e3)
        await asyncio.sleep(0.005)
    await pulling
    return sorted(took_ms)


async def measure(svid: Svid, peer: PeerAddress, chunks: int) -> dict[str, float]:
    """All figures, over one connection."""

    async def handler(_peer: str, message: bytes) -> Reply:
        return Reply(message)

    async with make_transport("a", svid, handler, None) as transport:
        transport.set_peers([peer])
        start_s = time.perf_counter()
        await transport.request("b", b"hello", timeout_s=10)
        connect_ms = (time.perf_counter() - start_s) * 1e3
        await pull(transport, chunks // 10)
        pull_s = min([await pull(transport, chunks) for _ in range(3)])
        alone_s = await tiny(transport, 2000, 1)
        many_s = await tiny(transport, 10_000, 64)
        took_ms = await between(transport, chunks)
        return {
            "chunks_GB_per_s": chunks * CHUNK_BYTES / pull_s / 1e9,
            "requests_per_s_one_by_one": 2000 / alone_s,
            "requests_per_s_64_at_once": 10_000 / many_s,
            "connect_ms": connect_ms,
            "tiny_between_chunks_ms_p50": took_ms[len(took_ms) // 2],
            "tiny_between_chunks_ms_p99": took_ms[len(took_ms) * 99 // 100],
        }


def main() -> None:
    """Start the other process, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=250, help="4 MiB chunks to pull in each of three runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        svids, bundles = {}, {}
        for name in ("a", "b"):
            authority = Authority.create(Path(directory) / name, f"{name}.example")
            svids[name] = authority.issue()
            bundles[name] = pem_from_der([authority.bundle_der])
    near, far = context.Pipe()
    asker = PeerAddress("a", svids["a"].spiffe_id, (), bundles["a"])
    other = context.Process(target=serve, args=(far, svids["b"], asker))
    other.start()
    try:
        address = f"127.0.0.1:{near.recv()}"
        answerer = PeerAddress("b", svids["b"].spiffe_id, (address,), bundles["b"])
        figures = asyncio.run(measure(svids["a"], answerer, arguments.chunks))
    finally:
        near.send(None)
        other.join(10)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:>30} {value:10.2f}")


if __name__ == "__main__":
    main()
