"""Where attacks take place: a real swarm of three nodes, and a fourth member whose keys the attacker has.

bonn keeps the ledger, koeln follows, lyon is the attacker: no node of its own runs unless an attack starts
one. oslo is a member too; its node does not run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from konsil.core.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Answer,
    Failure,
    GetStatus,
    Hello,
    LedgerSubmit,
    Request,
    Status,
    decode_answer,
    encode,
)
from konsil.core.rules import Announce, Call, State
from konsil.core.wall import FromNode
from konsil.evaluation.loopback import Control, LoopbackSwarm
from konsil.identity.authority import Authority
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.svid import Svid
from konsil.identity.tls import client_context
from konsil.ledger.history import sign_call
from konsil.node.config import Config, read_config
from konsil.wall.frames import FrameReader, words_from_node

OPERATOR, OTHER, ATTACKER, ASLEEP = "bonn", "koeln", "lyon", "oslo"
RUNNING = (OPERATOR, OTHER)

GROWTH_BYTES = 256 * 1024 * 1024
"""What a node's memory may grow by over all attacks together."""

ANSWER_S = 20.0
HELLO, REQUEST, ANSWER, DATA, CANCEL, PING, PONG, GOAWAY = range(1, 9)


class NotStopped(AssertionError):
    """The node let through what it must stop, or serves others no more."""


class Own:
    """A member's identity in the attacker's hands."""

    def __init__(self, directory: Path) -> None:
        """``directory``: the member's."""
        self.config: Config = read_config(directory)
        self.name = self.config.name
        self.authority = Authority.load(self.config.keys_dir)
        self.svid: Svid = self.authority.issue()
        self.key = LedgerKey.load(self.config.ledger_key_file)


class Raw:
    """A connection to a node's port, over which anything can be said."""

    def __init__(self, stage: Stage, to: str, identity: Own | None = None) -> None:
        """Shake hands as the attacker, or as somebody else; nothing is said yet."""
        self.own = identity or stage.own
        self.genesis = stage.genesis
        plain = stage.dial(to)
        context = client_context(
            self.own, Authority.load(read_config(stage.swarm.directory(to)).keys_dir).bundle
        )
        self.line = context.wrap_socket(plain, server_hostname=None)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.close()

    def frame(
        self, kind: int, message: bytes = b"", *, request: int = 0, length: int | None = None, body: int = 0
    ) -> None:
        """Send a frame's header and message, whatever they announce."""
        length = len(message) if length is None else length
        self.line.sendall(struct.pack("!BBBBIIQ", 0x4B, kind, 0, 0, request, length, body) + message)

    def greet(self, **changes: object) -> Self:
        """Say who is there, as the attacker's own node would."""
        words = {
            "version": PROTOCOL_VERSION,
            "swarm": self.genesis,
            "member": self.own.name,
            "instance": "by hand",
        }
        self.frame(HELLO, encode(Hello(**(words | changes))))  # type: ignore[arg-type]
        return self

    def ask(self, request: Request | bytes) -> Answer:
        """A request's answer; its body is thrown away."""
        return self.ask_all([request])[0]

    def ask_all(self, requests: Sequence[Request | bytes]) -> list[Answer]:
        """The answers to requests that are sent at once."""
        numbers = [self._send(request) for request in requests]
        answers = self._hear(numbers, len(numbers))
        return [answers[number] for number in numbers]

    def first(self, times: int, request: Request, count: int) -> list[Answer]:
        """The answers that come first to a request that is sent many times at once."""
        return list(self._hear([self._send(request) for _ in range(times)], count).values())

    def _send(self, request: Request | bytes) -> int:
        self._number += 1
        self.frame(REQUEST, request if isinstance(request, bytes) else encode(request), request=self._number)
        return self._number

    def _hear(self, numbers: Sequence[int], count: int) -> dict[int, Answer]:
        answers: dict[int, Answer] = {}
        while len(answers) < count:
            _, kind, _, _, number, length, body = struct.unpack("!BBBBIIQ", self._exactly(20))
            words = self._exactly(length)
            if kind == ANSWER and number in numbers:
                answers[number] = decode_answer(words)
            elif kind == DATA:
                self._exactly(body)
            elif kind == PING:
                self.frame(PONG, request=number)
        return answers

    def _exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            more = self.line.recv(min(count - len(got), 1 << 16))
            if not more:
                raise ConnectionError("the node hung up")
            got += more
        return bytes(got)

    def is_ended(self, timeout_s: float = ANSWER_S) -> bool:
        """Whether the node hangs up in time."""
        self.line.settimeout(timeout_s)
        try:
            while self.line.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            pass
        return True


class Stage:
    """A running swarm, and what attacks need of it."""

    def __init__(self, swarm: LoopbackSwarm) -> None:
        """The swarm runs."""
        self.swarm = swarm
        self.own = Own(swarm.directory(ATTACKER))
        self.genesis = self.control(OPERATOR).node().genesis
        self._memory = {name: self.memory_bytes(name) for name in RUNNING}
        self._looked = 0

    # --- talking -------------------------------------------------------------------------------

    def says(self, what: str) -> None:
        """Tell what was tried, and what happened."""
        print(f"  {what}", flush=True)

    def must(self, held: object, what: str) -> None:
        """Go on only if the node did what it must.

        Raises:
            NotStopped: it did not.
        """
        if not held:
            raise NotStopped(what)

    # --- reaching nodes ------------------------------------------------------------------------

    def control(self, name: str) -> Control:
        """A node's control socket."""
        return self.swarm.control(name)

    def state(self) -> State:
        """The ledger's state at the operator."""
        return self.control(OPERATOR).state()

    def dial(self, to: str, source: str = "127.0.0.1") -> socket.socket:
        """A plain connection to a node's port, from one of this machine's addresses."""
        host, port = read_config(self.swarm.directory(to)).node.listen.split(":")
        plain = socket.create_connection((host, int(port)), ANSWER_S, source_address=(source, 0))
        plain.settimeout(ANSWER_S)
        return plain

    def raw(self, to: str = OPERATOR, identity: Own | None = None) -> Raw:
        """A connection as the attacker."""
        return Raw(self, to, identity)

    def member(self, to: str = OPERATOR) -> Raw:
        """The same, greeted: what the attacker's own node would have."""
        return self.raw(to).greet()

    def signed(self, call: Call, *, sequence: int = 0, own: Own | None = None, swarm: str = "") -> bytes:
        """A call, signed by the attacker or by somebody whose key it has."""
        own = own or self.own
        sequence = sequence or self.state().members[own.name].sequence + 1
        return sign_call(swarm or self.genesis, own.key, own.name, sequence, call)

    def submit(self, line: Raw, call: Call) -> Answer:
        """Put a call on the ledger over a connection of the attacker's."""
        return line.ask(LedgerSubmit(self.signed(call)))

    def wall(self, name: str, socket_name: str = "session.sock") -> Wall:
        """A connection to one of a node's Unix sockets."""
        return Wall(self.swarm.directory(name) / socket_name)

    # --- looking -------------------------------------------------------------------------------

    def refused(self, answer: Answer, *codes: str) -> Failure:
        """A refusal with one of these codes.

        Raises:
            NotStopped: anything else was answered.
        """
        if not isinstance(answer, Failure):
            raise NotStopped(f"it was answered {type(answer).__name__}")
        code = answer.code or answer.kind
        self.must(not codes or code in codes, f"it was refused as {code!r}: {answer.what}")
        return answer

    def process(self, name: str) -> psutil.Process:
        """A node's process."""
        return psutil.Process(self.swarm.pid(name))

    def memory_bytes(self, name: str) -> int:
        """Memory that a node's process holds."""
        return int(self.process(name).memory_info().rss)

    def descriptors(self, name: str) -> int:
        """Descriptors that a node's process holds."""
        return int(self.process(name).num_fds())

    def settles(self, name: str, most: int, timeout_s: float = ANSWER_S) -> None:
        """Wait until a node holds no more descriptors than this.

        Raises:
            NotStopped: it still holds more.
        """
        until_s = time.monotonic() + timeout_s
        while (held := self.descriptors(name)) > most:
            self.must(time.monotonic() < until_s, f"{name} still holds {held} descriptors, over {most}")
            time.sleep(0.1)  # another process's descriptors tell nobody when they are closed

    def serves_others(self, *, attacker_runs: bool = False) -> None:
        """The nodes run, answer one another and the command line, take calls, and have not grown.

        Args:
            attacker_runs: whether the attacker's own node is connected just now; else a member that comes is
                to be answered.

        Raises:
            NotStopped: one of this is not so.
        """
        began_s = time.monotonic()
        self.swarm.require_running()
        self._looked += 1
        port = 7000 + self._looked % 1000
        self.control(OTHER).call(Announce((*self.addresses(OTHER), f"127.0.0.1:{port}")))
        at = self.control(OTHER).state().height
        for name, peer in ((OPERATOR, OTHER), (OTHER, OPERATOR)):
            self.swarm.wait(name, lambda state: state.height >= at, ANSWER_S)
            links = {link.member: link for link in self.control(name).node().peers}
            self.must(links[peer].connected, f"{name} does not reach {peer}: {links[peer].problem}")
            log = (self.swarm.directory(name) / "node.log").read_text(errors="replace")
            self.must("Traceback" not in log, f"{name} met an error of its own:\n{log[-3000:]}")
            grown = self.memory_bytes(name) - self._memory[name]
            self.must(grown < GROWTH_BYTES, f"{name} has grown by {grown / 1e6:.0f} MB")
        if not attacker_runs:
            with self.member(OTHER) as line:
                self.must(isinstance(line.ask(GetStatus()), Status), f"{OTHER} does not answer a member")
        self.says(f"the others are served ({time.monotonic() - began_s:.1f} s)")

    def addresses(self, name: str) -> tuple[str, ...]:
        """Where a node listens."""
        return read_config(self.swarm.directory(name)).addresses


class Wall:
    """A connection to a node's Unix socket, over which anything can be said and sent."""

    def __init__(self, path: Path) -> None:
        """Connect."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_S)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Bytes, and descriptors with the first of them; a node that hangs up meanwhile is heard to."""
        with contextlib.suppress(ConnectionError):
            if fds:
                sent = socket.send_fds(self.socket, [data], list(fds))
                data = data[sent:]
            self.socket.sendall(data)

    def hears(self) -> FromNode | None:
        """The next word; None if the node hung up."""
        reader = FrameReader(words_from_node)
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, reader.wanted, 4)
            except ConnectionError:
                return None
            if not data:
                return None
            delivery = reader.feed(data, fds)
            if delivery is not None:
                if delivery.fd is not None:
                    os.close(delivery.fd)
                return delivery.word


Attack = Callable[[Stage], None]


@contextlib.contextmanager
def open_stage() -> Iterator[Stage]:
    """A swarm of its own for attacks; all of it is gone afterwards."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else the nodes would outlive this process
    root = Path(tempfile.mkdtemp(prefix="konsil-"))  # Unix sockets need a short path
    try:
        with LoopbackSwarm(root, (OPERATOR, OTHER, ATTACKER, ASLEEP)) as swarm:
            swarm.start(RUNNING)
            yield Stage(swarm)
    finally:
        shutil.rmtree(root)


def took(line: Answer) -> bool:
    """Whether the ledger took a call."""
    return isinstance(line, Accepted)


def alone(attack: Attack) -> None:
    """Run one attack against a swarm of its own; ends the process: 0 only if it was stopped."""
    with open_stage() as stage:
        print(sys.argv[0])
        attack(stage)
        stage.serves_others()
    print("  stopped")
    sys.exit(0)
