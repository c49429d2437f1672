"""The lines between members' nodes, for tests that cut, slow down and heal them. TLS goes through untouched.

network.py ROOT MEMBER...
Listens at one port a member, which peers are told to dial in place of the member's own, and passes bytes on to
the node that really listens. Who dialled is found by the process that holds the other end of the connection
(Linux: /proc), so each pair of members and each direction is a line of its own.
One JSON object a line on standard input, one answer a line on standard output; see ``Network.do``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

READ_BYTES = 64 * 1024
ON_THE_WAY_BYTES = 256 * 1024
"""What the kernel may hold at each end: more would hide from the sender that its line is slow."""

WAITING = 256
"""Pieces of at most READ_BYTES that may be on a delayed line."""

RESET = struct.pack("ii", 1, 0)


class Way:
    """One direction of a member's line, or of that between two members."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.bytes_s = math.inf
        self.delay_s = 0.0
        self.moved = 0
        self._free_s = 0.0

    async def let_through(self, count: int) -> None:
        """Wait for a cut to heal, and as long as so many bytes take."""
        await self.open.wait()
        self.moved += count
        if self.bytes_s < math.inf:
            now_s = asyncio.get_running_loop().time()
            self._free_s = max(now_s, self._free_s) + count / self.bytes_s
            await asyncio.sleep(self._free_s - now_s)
            await self.open.wait()


class Relay:
    """One connection: from the member that dialled to the one that it wants."""

    def __init__(self, dialler: str, near: socket.socket, to: str) -> None:
        self.ends = {dialler, to}
        self.dialler, self.to = dialler, to
        self.near, self.far = near, socket.socket()
        self.lost = False
        """Nothing passes any more, and nobody is told: what a rebooted gateway does to connections."""

        self.reset = False

    def close(self) -> None:
        for each in (self.near, self.far):
            if self.reset:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            each.close()


class Network:
    """All lines."""

    def __init__(self, root: Path, members: list[str]) -> None:
        self.root = root
        self.members = members
        self.targets: dict[str, tuple[str, int]] = {}
        self.ways: defaultdict[tuple[str, str], Way] = defaultdict(Way)
        """("koeln", "*"): out of koeln; ("*", "koeln"): into it; ("koeln", "bonn"): from one to the other."""
        self.resetting: set[str] = set()
        self.walled: set[str] = set()
        self.relays: dict[Relay, asyncio.Task[None]] = {}
        self.dialled: list[tuple[str, str]] = []
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    def listen(self) -> dict[str, str]:
        """Start; the address of each member for its peers."""
        addresses = {}
        for member in self.members:
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ON_THE_WAY_BYTES)
            listener.setblocking(False)
            self._listeners.append(listener)
            self._accepting.append(asyncio.create_task(self._accept(listener, member)))
            addresses[member] = f"127.0.0.1:{listener.getsockname()[1]}"
        return addresses

    async def _accept(self, listener: socket.socket, to: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, where = await loop.sock_accept(listener)
            near.setblocking(False)
            relay = Relay(self._who_dials(where[1]), near, to)
            self.dialled.append((relay.dialler, to))
            if relay.ends & self.resetting or to in self.walled:
                relay.reset = True
                relay.close()
                continue
            task = asyncio.create_task(self._relay(relay))
            self.relays[relay] = task
            task.add_done_callback(lambda _, relay=relay: self._over(relay))

    def _over(self, relay: Relay) -> None:
        relay.close()
        self.relays.pop(relay, None)

    async def _relay(self, relay: Relay) -> None:
        loop = asyncio.get_running_loop()
        tune(relay.near)
        tune(relay.far)
        with contextlib.suppress(OSError):
            # A line that is cut lets nobody through, the first words of a new connection neither.
            await self._through(relay.dialler, relay.to, 0)
            await loop.sock_connect(relay.far, self.targets[relay.to])
            pumps = [
                asyncio.create_task(self._pump(relay, relay.near, relay.far, relay.dialler, relay.to)),
                asyncio.create_task(self._pump(relay, relay.far, relay.near, relay.to, relay.dialler)),
            ]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, relay: Relay, source: socket.socket, sink: socket.socket, by: str, to: str) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING)
        leaving = asyncio.create_task(self._deliver(relay, sink, queue))
        try:
            while True:
                piece = await loop.sock_recv(source, READ_BYTES)
                if relay.lost:
                    await asyncio.Event().wait()
                for start in range(0, max(len(piece), 1), self._step(by, to)):
                    await self._through(by, to, len(piece[start : start + self._step(by, to)]))
                delay_s = max(way.delay_s for way in self._ways(by, to))
                await queue.put((loop.time() + delay_s, piece))
                if not piece:
                    break
            await leaving
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _deliver(
        self, relay: Relay, sink: socket.socket, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, piece = await queue.get()
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            if relay.lost:
                await asyncio.Event().wait()
            if not piece:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, piece)

    def _step(self, by: str, to: str) -> int:
        """A slow line moves small pieces, so that a cut finds it in the middle of something."""
        slowest = min(way.bytes_s for way in self._ways(by, to))
        return READ_BYTES if slowest == math.inf else max(1024, min(READ_BYTES, int(slowest / 20)))

    def _ways(self, by: str, to: str) -> tuple[Way, ...]:
        return self.ways[by, "*"], self.ways[by, to], self.ways["*", to]

    async def _through(self, by: str, to: str, count: int) -> None:
        for way in self._ways(by, to):
            await way.let_through(count)

    # --- who dials -------------------------------------------------------------------------------

    def _who_dials(self, port: int) -> str:
        """The member whose process has the socket with this local port; "" for anybody else."""
        inode = _inode(port)
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                member = next((name for name in self.members if str(self.root / name) in words), "")
                if member and any(_is_socket(link, inode) for link in (process / "fd").iterdir()):
                    return member
        return ""

    # --- what the test says ------------------------------------------------------------------------

    def _between(self, word: dict[str, Any]) -> list[Way]:
        """The ways that a word is about: of a member, to and from a peer, or to and from everybody."""
        member, peer, way = word["member"], word.get("peer") or "*", word.get("way", "both")
        out, into = self.ways[member, peer], self.ways[peer, member]
        return {"both": [out, into], "out": [out], "in": [into]}[way]

    def _relays_of(self, word: dict[str, Any]) -> list[Relay]:
        ends = {word["member"], word.get("peer") or word["member"]}
        return [relay for relay in self.relays if ends <= relay.ends]

    async def do(self, word: dict[str, Any]) -> Any:
        """Carry out a word of the test: the method of that name."""
        done = getattr(self, f"on_{word['do']}")(word)
        return await done if asyncio.iscoroutine(done) else done

    def on_aim(self, word: dict[str, Any]) -> None:
        """Where nodes really listen."""
        self.targets |= {name: (host, port) for name, (host, port) in word["targets"].items()}

    def on_cut(self, word: dict[str, Any]) -> None:
        """A black hole: nothing arrives, nobody is told, and what is under way is kept until it heals."""
        for way in self._between(word):
            way.open.clear()

    def on_lose(self, word: dict[str, Any]) -> None:
        """As a cut, and connections of now never come back: a gateway that was restarted."""
        for relay in self._relays_of(word):
            relay.lost = True
        self.on_cut(word)

    def on_reset(self, word: dict[str, Any]) -> None:
        """Connections break, and new ones are refused."""
        self.resetting.add(word["member"])
        for relay in self._relays_of(word):
            relay.reset = True
            self.relays[relay].cancel()

    def on_heal(self, word: dict[str, Any]) -> None:
        """The end of a cut, a loss or resets."""
        self.resetting.discard(word["member"])
        for way in self._between(word):
            way.open.set()

    def on_wall(self, word: dict[str, Any]) -> None:
        """A firewall: nobody gets in, the member gets out."""
        self.walled.add(word["member"])

    def on_slow(self, word: dict[str, Any]) -> None:
        """So many bytes a second; 0 for as many as there are."""
        for way in self._between(word):
            way.bytes_s = word["bytes_s"] or math.inf

    def on_delay(self, word: dict[str, Any]) -> None:
        """Every line of every member takes so long each way."""
        for member in self.members:
            self.ways[member, "*"].delay_s = word["delay_s"]

    def on_moved(self, word: dict[str, Any]) -> int:
        """How many bytes have gone this way."""
        return sum(way.moved for way in self._between(word))

    async def on_until_moved(self, word: dict[str, Any]) -> None:
        """Wait until so many have."""
        async with asyncio.timeout(word["timeout_s"]):
            while self.on_moved(word) < word["bytes"]:  # noqa: ASYNC110 - bytes that pass wake nobody
                await asyncio.sleep(0.005)

    def on_dialled(self, _word: dict[str, Any]) -> list[tuple[str, str]]:
        """Who has dialled whom."""
        return self.dialled

    async def close(self) -> None:
        tasks = [*self._accepting, *self.relays.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()


def tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, buffer, ON_THE_WAY_BYTES)


def _inode(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == f"0100007F:{port:04X}" and fields[9] != "0":
            return fields[9]
    return ""


def _is_socket(link: Path, inode: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(link) == f"socket:[{inode}]"  # noqa: PTH115 - not a real link
    return False


async def main(root: Path, members: list[str]) -> None:
    network = Network(root, members)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    answer(network.listen())
    try:
        while line := await commands.readline():
            try:
                answer({"done": await network.do(json.loads(line))})
            except TimeoutError:
                answer({"late": True})
    finally:
        await network.close()


def answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
