"""A ledger engine's traffic in a tunnel, beside bare TCP on loopback: `python benchmarks/tunnel.py`.

Two nodes in processes of their own; both engines are threads of this one. Prints MB/s one way and both ways,
and how long 100 bytes take there and back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from konsil.identity.authority import Authority
from konsil.identity.svid import Svid, pem_from_der
from konsil.node.tunnels import Tunnels
from konsil.transport.base import PeerAddress, Reply
from transport import make_transport

BLOCK_BYTES = 256 * 1024
WORD_BYTES = 100
START_S = 30.0


def serve(pipe: Connection, name: str, svid: Svid, peer: PeerAddress, engine: tuple[str, int]) -> None:
    """A node with a tunnel to its peer."""
    asyncio.run(_serve(pipe, name, svid, peer, engine))


async def _serve(pipe: Connection, name: str, svid: Svid, peer: PeerAddress, engine: tuple[str, int]) -> None:
    async def handler(_peer: str, message: bytes) -> Reply:
        return Reply(message)

    async with make_transport(name, svid, handler, None if peer.addresses else "127.0.0.1:0") as transport:
        tunnels = Tunnels(transport, name)
        tunnels.set_target(*engine)
        tunnels.set_peers([peer.name])
        transport.set_peers([peer])
        pipe.send(transport.port)
        await transport.request(peer.name, b"are you there", timeout_s=START_S)
        pipe.send(tunnels.port_of(peer.name))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await tunnels.close()


def engine(listening: socket.socket) -> None:
    """Take connections: the first byte says what is wanted."""
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wanted = sock.recv(1)
        if wanted == b"e":
            while word := sock.recv(WORD_BYTES):
                sock.sendall(word)
        elif wanted == b"o":
            swallow(sock)
        else:
            pouring = threading.Thread(target=pour, args=(sock, int(sock.recv(8))))
            pouring.start()
            swallow(sock)
            pouring.join()
        sock.close()


def pour(sock: socket.socket, megabytes: int) -> None:
    """Send so much, then the end."""
    block = bytes(BLOCK_BYTES)
    for _ in range(megabytes * 1_000_000 // BLOCK_BYTES):
        sock.sendall(block)
    sock.shutdown(socket.SHUT_WR)


def swallow(sock: socket.socket) -> None:
    """Receive until the end."""
    memory = bytearray(BLOCK_BYTES)
    while sock.recv_into(memory):
        pass


def rate(port: int, megabytes: int, *, both: bool) -> float:
    """MB/s one way, or each way while both go."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"b%08d" % megabytes if both else b"o")
        start_s = time.perf_counter()
        pouring = threading.Thread(target=pour, args=(sock, megabytes))
        pouring.start()
        swallow(sock)
        pouring.join()
        return megabytes / (time.perf_counter() - start_s)


def words(port: int, count: int) -> list[float]:
    """Microseconds of so many words there and back, sorted."""
    took_us = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"e")
        for _ in range(count):
            start_s = time.perf_counter()
            sock.sendall(bytes(WORD_BYTES))
            left = WORD_BYTES
            while left:
                left -= len(sock.recv(left))
            took_us.append((time.perf_counter() - start_s) * 1e6)
    return sorted(took_us)


def measure(ports: dict[str, int], megabytes: int, count: int) -> dict[str, float]:
    """Every figure over each way, by turns."""
    figures: dict[str, float] = {}
    best: Callable[[str, float], None] = lambda name, value: figures.update(  # noqa: E731
        {name: max(figures.get(name, 0.0), value)}
    )
    for _ in range(3):
        for way, port in ports.items():
            best(f"{way}_MB_per_s", rate(port, megabytes, both=False))
            best(f"{way}_MB_per_s_each_way", rate(port, megabytes, both=True))
    for way, port in ports.items():
        words(port, count // 10)
        took_us = words(port, count)
        figures[f"{way}_100_bytes_us_p50"] = took_us[count // 2]
        figures[f"{way}_100_bytes_us_p95"] = took_us[count * 95 // 100]
    return figures


def main() -> None:
    """Start both nodes, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="to move in each run")
    parser.add_argument("--words", type=int, default=3000, help="of 100 bytes, there and back")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        authorities = {n: Authority.create(Path(directory) / n, f"{n}.example") for n in "ab"}
        svids = {name: authority.issue() for name, authority in authorities.items()}
        bundles = {name: pem_from_der([each.certificate_der]) for name, each in authorities.items()}
    listening = socket.create_server(("127.0.0.1", 0))
    where = listening.getsockname()
    threading.Thread(target=engine, args=(listening,), daemon=True).start()
    pipes, nodes = [], []
    try:
        address: tuple[str, ...] = ()
        for name, other in (("b", "a"), ("a", "b")):
            near, far = context.Pipe()
            peer = PeerAddress(other, svids[other].spiffe_id, address, bundles[other])
            node = context.Process(target=serve, args=(far, name, svids[name], peer, where))
            node.start()
            pipes.append(near)
            nodes.append(node)
            address = (f"127.0.0.1:{near.recv()}",)
        ports = {"bare": where[1], "tunnel": pipes[1].recv()}
        figures = measure(ports, arguments.megabytes, arguments.words)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for node in nodes:
            node.join(10)
        listening.close()
    if arguments.json:
        print(json.dumps(figures | {"processors": float(os.cpu_count() or 0)}))
        return
    for name, value in figures.items():
        print(f"{name:>30} {value:10.1f}")


if __name__ == "__main__":
    main()
