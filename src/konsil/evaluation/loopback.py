"""A swarm of real processes on this machine: every member a node of its own with its own keys and port.

For demonstrations, tests and benchmarks. Nothing is simulated: the directories are made as hospital IT
makes them, the nodes are `konsil node start`, and the command line's socket is what it always is.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

from konsil.core.rules import Agree, Call, Genesis, State, StudySettings, settings_digest
from konsil.core.wall import AskCall, AskNode, AskPropose, AskState, FromNode, ToldNode, ToldState, ToNode
from konsil.core.wall import Failed as FailedWord
from konsil.errors import NodeError
from konsil.node.config import NO_PROXY, Config, read_config
from konsil.node.genesis import Engine, found, keep_card, read_card_file, write_genesis
from konsil.node.setup import make_directory, write_own_card
from konsil.node.tables import BUILTIN, IdentityTable, LedgerTable, MemberTable, NodeTable
from konsil.wall.frames import raised
from konsil.wall.line import Line
from konsil.wall.told_state import read_state

READY_S = 60.0
"""How long a node may take to say that it is ready, on a busy machine."""

STOP_S = 20.0
"""How long a node may take to stop in order before it is killed."""

ANSWER_S = 60.0

_PORTS = range(20000, 32000)  # below the kernel's own choice for outgoing connections
_random = random.SystemRandom()


class Control:
    """The command line's side of a node's control socket."""

    def __init__(self, directory: Path) -> None:
        """``directory``: the member's."""
        self.directory = directory

    def ask(self, word: ToNode, fd: int | None = None, *, timeout_s: float = ANSWER_S) -> FromNode:
        """One question, one answer.

        Raises:
            KonsilError: the node's error.
        """
        with Line.connect(self.directory / "control.sock", timeout_s) as line:
            line.send(word, fd)
            answer, answer_fd = line.receive(timeout_s)
            if answer_fd is not None:
                os.close(answer_fd)
            return _no_failure(answer)

    def call(self, call: Call) -> None:
        """Put a call on the ledger."""
        self.ask(AskCall(call))

    def state(self, after: int = -1, wait_s: float = 0.0) -> State:
        """The contract's state at this node."""
        timeout_s = wait_s + ANSWER_S
        with Line.connect(self.directory / "control.sock", timeout_s) as line:
            line.send(AskState(after, wait_s))
            word, fd = line.receive(timeout_s)
            answer = _no_failure(word)
            if not isinstance(answer, ToldState):
                raise NodeError(f"The node answered with {type(answer).__name__}.")
            return read_state(answer, fd)

    def node(self) -> ToldNode:
        """What the node is doing."""
        answer = self.ask(AskNode())
        if not isinstance(answer, ToldNode):
            raise NodeError(f"The node answered with {type(answer).__name__}.")
        return answer


def _no_failure(answer: FromNode) -> FromNode:
    """A node's answer; what went wrong there is raised."""
    if isinstance(answer, FailedWord):
        raise raised(answer)
    return answer


class Kept(NamedTuple):
    """What keeps a swarm's ledger. ``table``: the members' settings for it, such as where its program is.
    ``witnesses``: members that take part in no study.
    """

    engine: Engine = "local"
    table: LedgerTable = LedgerTable()
    witnesses: tuple[str, ...] = ()


class LoopbackSwarm:
    """Members on 127.0.0.1. Use ``with``: every process that it started has ended afterwards.

    ``workload_apis``: for members whose identities come from a running SPIRE, its socket's address; to be set
    in a subclass.
    """

    workload_apis: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        root: Path,
        members: Sequence[str],
        *,
        swarm: str = "loopback",
        dial_only: Sequence[str] = (),
        advertise: Mapping[str, str] | None = None,
        log_level: str = "info",
        environment: Mapping[str, str] | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Make every member's directory under ``root``; start nothing yet.

        ``advertise``: for members that peers must dial elsewhere than where they listen, that address.
        ``kept``: what keeps the ledger; by default one of the members.
        """
        self.root = root
        self.members = tuple(members)
        self.swarm = swarm
        self.log_level = log_level
        self.environment = dict(environment or {})
        self.kept = kept or Kept()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held: list[socket.socket] = []
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(root / "ready.sock"))
        for name in members:
            self.make(name, dial_only=name in dial_only, advertise=(advertise or {}).get(name, ""))
        self.genesis = self._found()

    # --- setting up ----------------------------------------------------------------------------

    def directory(self, name: str) -> Path:
        """A member's directory."""
        return self.root / name

    def control(self, name: str) -> Control:
        """A member's control socket."""
        return Control(self.directory(name))

    def make(self, name: str, *, dial_only: bool = False, advertise: str = "") -> Config:
        """A member's directory with keys, config and card."""
        listen = "" if dial_only else f"127.0.0.1:{free_port(self._held)}"
        config = Config(
            self.directory(name),
            MemberTable(name, witness=name in self.kept.witnesses),
            IdentityTable(self.workload_apis.get(name, BUILTIN)),
            ledger=self.kept.table,
            node=NodeTable(
                listen=listen,
                advertise=(advertise,) if advertise and listen else (),
                log_level=self.log_level,  # type: ignore[arg-type]  # a word
                proxy=NO_PROXY,  # whatever the environment names: nothing leaves this machine
            ),
        )
        make_directory(config)
        write_own_card(config)
        return config

    def _found(self) -> Genesis:
        cards = [read_card_file(read_config(self.directory(name)).card_file) for name in self.members]
        genesis = found(self.swarm, cards, engine=self.kept.engine)
        for name in self.members:
            self.give_genesis(name, genesis)
        return genesis

    def give_genesis(self, name: str, genesis: Genesis) -> None:
        """Put the genesis and the founders' cards into a member's directory."""
        config = read_config(self.directory(name))
        for member in self.members:
            keep_card(read_card_file(read_config(self.directory(member)).card_file), config.cards_dir)
        write_genesis(genesis, config.genesis_file)

    # --- running -------------------------------------------------------------------------------

    def start(self, names: Sequence[str] = (), *, wait: bool = True) -> None:
        """Start nodes (all by default) and wait until each says that it is ready."""
        for name in names or self.members:
            log = (self.directory(name) / "node.log").open("ab")
            with log:
                self._processes[name] = subprocess.Popen(  # noqa: S603 - our own command
                    [sys.executable, "-m", "konsil", "node", "start", "--dir", str(self.directory(name))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"NOTIFY_SOCKET": str(self.root / "ready.sock")} | self.environment,
                )
        if wait:
            self.wait_ready(set(names or self.members))

    def wait_ready(self, names: set[str]) -> None:
        """Wait until these nodes say that they are ready.

        Raises:
            NodeError: one ended, or is not ready in time; with the end of its log.
        """
        until_s = time.monotonic() + READY_S
        waiting = {self._processes[name].pid: name for name in names}
        while waiting:
            self._ready.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                fields = self._ready.recv(4096).decode().splitlines()
                pids = {int(field[8:]) for field in fields if field.startswith("MAINPID=")}
                for pid in pids:
                    waiting.pop(pid, None)
            for name in waiting.values():
                ended = self._processes[name].poll()
                if ended is not None or time.monotonic() > until_s:
                    raise NodeError(
                        f"The node of {name} did not start (status {ended}):\n{self.log_tail(name)}"
                    )

    def log_tail(self, name: str, lines: int = 20) -> str:
        """The end of a node's log."""
        text = (self.directory(name) / "node.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def require_running(self) -> None:
        """See that every started node runs.

        Raises:
            NodeError: one ended by itself; with the end of its log.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise NodeError(
                    f"The node of {name} ended (status {process.returncode}):\n{self.log_tail(name)}"
                )

    def pid(self, name: str) -> int:
        """A node's process id."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """End a node at once, as a power cut does to it."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> int:
        """Stop a node in order; its exit status."""
        process = self._processes.pop(name)
        self._forget_words()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _forget_words(self) -> None:
        """Make room for what a node says when it stops: the system keeps ten words, then senders wait."""
        self._ready.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._ready.recv(4096)

    def close(self) -> None:
        """Stop every node."""
        self._ready.close()  # else the nodes' last words would wait here for somebody who reads them
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        for holder in self._held:
            holder.close()
        self._held.clear()

    # --- studies -------------------------------------------------------------------------------

    def propose(self, settings: StudySettings, by: str = "", fd: int | None = None) -> None:
        """Propose a study at one member and agree to it at all others."""
        proposer = by or self.members[0]
        self.control(proposer).ask(AskPropose(settings), fd)
        for name in sorted({*self.members} - {proposer, *self.kept.witnesses}):
            if not settings.members or name in settings.members:
                self.wait(name, lambda state: settings.name in state.studies)
                self.control(name).call(Agree(settings.name, settings_digest(settings)))

    def wait(self, name: str, reached: object, timeout_s: float = 60.0) -> State:
        """Wait until the state at a member is as wanted. ``reached``: a function of the state."""
        control = self.control(name)
        until_s = time.monotonic() + timeout_s
        state = control.state()
        while not reached(state):  # type: ignore[operator]  # a function of the state
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise NodeError(f"{name} did not get there in {timeout_s:g} s:\n{self.log_tail(name)}")
            state = control.state(after=state.height, wait_s=min(left_s, 5.0))
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def free_port(held: list[socket.socket] | None = None) -> int:
    """A port on 127.0.0.1 that nobody listens at.

    Args:
        held: gets what keeps other swarms of this machine from the port, until it is closed: between now and
            the start of a node there is time for them to choose the same one.
    """
    for port in _random.sample(_PORTS, 200):
        holder = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe, contextlib.suppress(OSError):
            if sys.platform == "linux":
                holder.bind(f"\0konsil port {port}")  # a name without a file: gone with its process
            probe.bind(("127.0.0.1", port))
            if held is None:
                holder.close()
            else:
                held.append(holder)
            return port
        holder.close()
    raise NodeError("No free port between 20000 and 32000.")
