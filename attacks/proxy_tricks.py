"""Be a hospital's forward proxy, and lie: injected bytes, plain text, old TLS, another node."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stage import ANSWER_S, ASLEEP, GOAWAY, HELLO, OPERATOR, OTHER, Stage, alone

from konsil.core.rules import Announce
from konsil.core.wall import AskPeers
from konsil.errors import KonsilError
from konsil.identity.tls import server_context
from konsil.node.config import CONFIG_NAME
from konsil.transport.tunnel import TUNNEL_S

BEHIND = f"{OTHER}.invalid:7400"
"""Where the victim looks for its peer: a name that leads through the proxy alone."""

WAIT = b"HTTP/1.1 100 Continue\r\n\r\n"
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"
ALL_S = 60.0
GROWTH_BYTES = 64 * 1024 * 1024


class Trick(NamedTuple):
    """What the proxy does with a connection, and what the victim must say of it."""

    what: str
    play: Callable[[socket.socket], None]
    says: str


class Proxy:
    """The victim's proxy: for each connection the next trick; after the last one honest, and listening."""

    def __init__(self, stage: Stage, tricks: list[Trick]) -> None:
        """Listen; nobody is served yet."""
        self.stage = stage
        self.tricks = tricks
        self.requests: list[bytes] = []
        self.heard = bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with self.listener:
            self.listener.settimeout(0.2)
            while not self.ended.is_set():
                try:
                    near, _ = self.listener.accept()
                except TimeoutError:
                    continue
                near.settimeout(ANSWER_S)
                with near, contextlib.suppress(OSError):  # a victim that hangs up is what is wanted
                    self._one(near)

    def _one(self, near: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += near.recv(4096) or b"\r\n\r\n"
        number = len(self.requests)
        self.requests.append(request)
        if number < len(self.tricks):
            self.tricks[number].play(near)
        else:
            near.sendall(OPEN)
            self.tunnel(near, OTHER, self.heard)

    def tunnel(self, near: socket.socket, to: str, heard: bytearray, flipped: int = -1) -> None:
        """Pass bytes on, keep a copy, and change one of those that come back."""
        with self.stage.dial(to) as far:
            back = 0
            while not self.ended.is_set():
                for source in select.select([near, far], [], [], 0.2)[0]:
                    data = bytearray(source.recv(1 << 16))
                    if not data:
                        return
                    heard += data
                    if source is far:
                        if back <= flipped < back + len(data):
                            data[flipped - back] ^= 1
                        back += len(data)
                    (far if source is near else near).sendall(data)


def attack(stage: Stage) -> None:
    """A victim that reaches a peer through the attacker alone; each trick has it dial again."""
    _smuggle(stage)
    trap = socket.create_server(("127.0.0.1", 0))
    trap.setblocking(False)
    tricks: list[Trick] = []
    proxy = Proxy(stage, tricks)
    tricks += _tricks(stage, proxy, trap)
    proxy.thread.start()
    try:
        with trap, _victim(stage, proxy) as began_bytes:
            _until_connected(stage)
            _look(stage, proxy, trap, began_bytes)
    finally:
        proxy.ended.set()
        proxy.thread.join(ANSWER_S)


def _smuggle(stage: Stage) -> None:
    """An address that would become lines of the request to the proxy."""
    with stage.member() as line:
        for host in ("a\r\nX-Evil: 1", "a b", "a/../b", "a@b"):
            stage.refused(stage.submit(line, Announce((f"{host}:7400",))), "bad_addresses")
    stage.says("addresses that would become lines of a request: refused by the contract")


@contextlib.contextmanager
def _victim(stage: Stage, proxy: Proxy) -> Iterator[int]:
    """A member's node behind the proxy, which knows its peer by a name alone; the memory it began with."""
    stage.control(OTHER).call(Announce((BEHIND,)))
    height = stage.state().height
    file = stage.swarm.directory(ASLEEP) / CONFIG_NAME
    before = file.read_text()
    file.write_text(re.sub(r'\nlisten = "[^"]*"', '\nlisten = ""', before))
    stage.swarm.start([ASLEEP])  # once to hear of the name
    stage.swarm.wait(ASLEEP, lambda state: state.height >= height, ANSWER_S)
    stage.swarm.stop(ASLEEP)
    log = file.with_name("node.log")
    log.write_bytes(b"")
    named = f'\nproxy = "http://127.0.0.1:{proxy.port}"'
    file.write_text(file.read_text().replace('\nproxy = "none"', named))
    try:
        stage.swarm.start([ASLEEP])
        yield stage.memory_bytes(ASLEEP)
    finally:
        stage.swarm.stop(ASLEEP)
        file.write_text(before)


def _until_connected(stage: Stage) -> None:
    """Have the victim want its peer until the tricks are over and it has it."""
    until_s = time.monotonic() + ALL_S
    while True:
        with contextlib.suppress(KonsilError):
            stage.control(ASLEEP).ask(AskPeers())  # a request that waits has it dial every second
        links = {link.member: link for link in stage.control(ASLEEP).node().peers}
        if links[OTHER].connected:
            return
        stage.must(time.monotonic() < until_s, f"no way to the peer is left: {links[OTHER].problem}")


def _look(stage: Stage, proxy: Proxy, trap: socket.socket, began_bytes: int) -> None:
    """What came of it. Had a trick let the victim in, it would have dialled no more."""
    stage.must(len(proxy.requests) > len(proxy.tricks), "a trick held the victim: it dialled no more")
    raw = (stage.swarm.directory(ASLEEP) / "node.log").read_bytes()
    log = re.sub(r"\x1b\[[0-9;]*m", "", raw.decode(errors="replace"))
    for trick in proxy.tricks:
        stage.must(trick.says in log, f"{trick.what}: the victim does not say {trick.says!r}:\n{log[-3000:]}")
        stage.says(f"{trick.what}: {trick.says}")
    stage.must("Traceback" not in log, f"the victim met an error of its own:\n{log[-3000:]}")
    stage.must(b"\x1b]0;" not in raw and b"\x1b[2J" not in raw, "the proxy's words steer the terminal")
    stage.must(not any(b"Authorization" in each for each in proxy.requests), "it told a password")
    with contextlib.suppress(BlockingIOError):
        trap.accept()
        stage.must(held=False, what="the victim went where the proxy sent it")
    known = (stage.genesis.encode(), OTHER.encode(), ASLEEP.encode(), b"spiffe://")
    stage.must(len(proxy.heard) > 1000, "nothing went through the honest proxy")
    stage.must(not any(word in proxy.heard for word in known), "the proxy could read what went through it")
    stage.says(f"{len(proxy.heard)} bytes of an honest way: no name, no identity, no digest can be read")
    grown = stage.memory_bytes(ASLEEP) - began_bytes
    stage.must(grown < GROWTH_BYTES, f"the victim has grown by {grown / 1e6:.0f} MB")


def _tricks(stage: Stage, proxy: Proxy, trap: socket.socket) -> list[Trick]:
    frames = struct.pack("!BBBBIIQ", 0x4B, HELLO, 1, 0, 0, 4, 0) + b"gone"
    frames += struct.pack("!BBBBIIQ", 0x4B, GOAWAY, 0, 0, 0, 4, 0) + b"gone"
    found = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{trap.getsockname()[1]}/\r\n\r\n".encode()
    return [
        Trick("frames behind the answer", _saying(OPEN + frames), "bytes of its own into the way"),
        Trick("a redirect", _saying(found), "elsewhere (302 Found)"),
        Trick(
            "a question for a password",
            _saying(b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic realm=bank\r\n\r\n"),
            "wants a user and a password",
        ),
        Trick(
            "words that clear the screen",
            _saying(b"HTTP/1.1 403 \x1b]0;owned\x07\x1b[2J\r\n\r\n"),
            "refuses the way to",
        ),
        Trick("two answers", _saying(OPEN + OPEN), "bytes of its own into the way"),
        Trick("answers to wait without an end", _saying(WAIT * 10_000), "has not come after 8 others"),
        Trick("a head without an end", _flooding, "more than 16384 bytes"),
        Trick("another protocol", _saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "does not answer as an HTTP proxy"),
        Trick("plain text in place of TLS", _after(frames), "the other side does not speak TLS"),
        Trick("TLS 1.2", lambda near: _as_somebody(stage, near, ssl.TLSVersion.TLSv1_2), "TLS version in"),
        Trick(
            "the attacker's own certificate",
            lambda near: _as_somebody(stage, near, ssl.TLSVersion.TLSv1_3),
            "certificate is not trusted (unable to get local issuer certificate)",
        ),
        Trick("another node", lambda near: _elsewhere(proxy, near), "certificate is not trusted"),
        Trick("one bit of what comes back", lambda near: _flip(proxy, near), "TLS failed"),
        Trick("a byte at a time", _dripping, f"did not open the way to {BEHIND} in {TUNNEL_S:g} s"),
    ]  # fmt: skip


def _until_hung_up(near: socket.socket) -> None:
    while near.recv(1 << 16):
        pass


def _saying(words: bytes) -> Callable[[socket.socket], None]:
    def play(near: socket.socket) -> None:
        near.sendall(words)
        _until_hung_up(near)

    return play


def _after(words: bytes) -> Callable[[socket.socket], None]:
    """Open the way, and say this to the first words of TLS."""

    def play(near: socket.socket) -> None:
        near.sendall(OPEN)
        near.recv(1 << 16)
        near.sendall(words)
        _until_hung_up(near)

    return play


def _flooding(near: socket.socket) -> None:
    near.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (1 << 20))


def _dripping(near: socket.socket) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nA: " + b"b" * 4096:
        near.sendall(bytes((letter,)))
        time.sleep(0.05)


def _as_somebody(stage: Stage, near: socket.socket, version: ssl.TLSVersion) -> None:
    """Be the peer, with the attacker's own keys."""
    bundle = stage.own.authority.bundle
    context = server_context(stage.own, [bundle])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    near.sendall(OPEN)
    with context.wrap_socket(near, server_side=True) as line:
        _until_hung_up(line)


def _elsewhere(proxy: Proxy, near: socket.socket) -> None:
    """A real member's node, but not the one that was asked for."""
    near.sendall(OPEN)
    proxy.tunnel(near, OPERATOR, bytearray())


def _flip(proxy: Proxy, near: socket.socket) -> None:
    """In the part of the handshake that is encrypted."""
    near.sendall(OPEN)
    proxy.tunnel(near, OTHER, bytearray(), flipped=300)


if __name__ == "__main__":
    alone(attack)
