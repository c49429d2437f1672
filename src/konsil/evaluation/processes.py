"""The demo's training processes as the demo sees them: one a hospital, started together, ended together.

Importing scikit-learn costs a second of CPU, so one *launcher* process imports it once and forks the others
before any of them has seen a row. Each has a socket of its own to the demo, on which words go both ways as
JSON lines. When the demo ends, in whatever way, the launcher ends them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec

DEALER, CENTRAL = "(dealer)", "(central)"
"""Processes beside the hospitals': one deals out the rows, one trains on all of them. No hospital's name has
brackets."""

END_S = 10.0
"""How long the launcher may take to end everything before it is killed."""

_READ_BYTES = 1 << 16


class _Word(msgspec.Struct, frozen=True, tag_field="word"):
    """Common shape."""


# --- from the demo to a process ------------------------------------------------------------------


class Deal(_Word, frozen=True, tag="deal"):
    """Write every hospital's rows to ``folder``, a file each. Answer: ``Dealt``."""

    dataset: str
    data: str
    seed: int
    folder: str


class Train(_Word, frozen=True, tag="train"):
    """Join the study and train to its end, then train a model alone. ``place``: of the hospital among all.

    Answers: ``Entered``, ``Merged`` after each merge, ``Ended``, and ``Alone`` once its own model lies at
    ``model``.
    """

    study: str
    socket: str
    rows: str
    seed: int
    place: int
    epochs: int
    model: str


class TrainCentrally(_Word, frozen=True, tag="train_centrally"):
    """Train on these rows in one place; write the models to ``folder``. Answer: ``Alone``."""

    rows: dict[str, str]
    seed: int
    epochs: int
    folder: str


class Test(_Word, frozen=True, tag="test"):
    """Try all models on the patients held out here. ``local``: hospital -> file. Answer: ``Tested``."""

    local: dict[str, str]
    central: str
    central_together: str


# --- from a process to the demo ------------------------------------------------------------------


class Dealt(_Word, frozen=True, tag="dealt"):
    """The rows lie there. ``patients``: hospital -> [to train on, to score rounds on, held out]."""

    patients: dict[str, tuple[int, int, int]]


class Entered(_Word, frozen=True, tag="entered"):
    """The hospital has joined the study. ``at_s``: monotonic clock."""

    at_s: float


class Merged(_Word, frozen=True, tag="merged"):
    """A merge is in the hospital's model. ``at_s``: monotonic clock."""

    round: int
    at_s: float


class Ended(_Word, frozen=True, tag="ended"):
    """The study is over. ``digest``: of the parameters in this process's model, computed from them."""

    why: str
    digest: str


class Alone(_Word, frozen=True, tag="alone"):
    """A model trained without the swarm lies there."""


class Tested(_Word, frozen=True, tag="tested"):
    """``result``: the hospital's ``HospitalResult`` as JSON: probabilities and outcomes, no values."""

    result: str


class Broken(_Word, frozen=True, tag="broken"):
    """The process cannot go on. ``kind``: of the error; sentences as in ``KonsilError``."""

    kind: str
    what: str
    safe: str = ""
    do: str = ""


Order = Deal | Train | TrainCentrally | Test
News = Dealt | Entered | Merged | Ended | Alone | Tested | Broken

In = TypeVar("In")


class Channel(Generic[In]):
    """One end of a socket between the demo and a process."""

    def __init__(self, connection: socket.socket, incoming: Any) -> None:
        """``incoming``: the union of words that may come."""
        self.socket = connection
        self._decoder: msgspec.json.Decoder[In] = msgspec.json.Decoder(incoming)
        self._rest = b""
        self.ended = False

    def send(self, word: Order | News) -> None:
        """Send a word; the other end may be gone, which its reader will notice."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(msgspec.json.encode(word) + b"\n")

    def read(self) -> list[In]:
        """The words that one read brings; sets ``ended`` at the end. Blocks while there is nothing."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._decoder.decode(line) for line in lines]

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


class Processes:
    """The launcher and its processes, from the demo's side. Use ``with``: none is left afterwards."""

    def __init__(self, hospitals: Sequence[str], log: Path) -> None:
        """Start them; they import while the caller does something else. What they print goes to ``log``."""
        self.log = log
        self.channels: dict[str, Channel[News]] = {}
        theirs: dict[str, socket.socket] = {}
        for name in (DEALER, CENTRAL, *hospitals):
            mine, theirs[name] = socket.socketpair()
            self.channels[name] = Channel(mine, News)
        descriptors = {name: end.fileno() for name, end in theirs.items()}
        with log.open("ab") as stream:
            self._launcher = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "konsil.evaluation.launcher", json.dumps(descriptors)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                pass_fds=tuple(descriptors.values()),
                process_group=0,  # a Ctrl-C is the demo's alone; it ends the others in order
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        for end in theirs.values():
            end.close()

    def tell(self, name: str, order: Order) -> None:
        """Give a process its order."""
        self.channels[name].send(order)

    def log_tail(self, lines: int = 12) -> str:
        """The end of what the processes printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End every process."""
        for channel in self.channels.values():
            channel.close()
        if self._launcher.stdin is not None:
            self._launcher.stdin.close()  # for the launcher the word to end them
        self._launcher.terminate()  # ends it while it still imports; later it goes by its standard input
        try:
            self._launcher.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._launcher.pid, signal.SIGKILL)
            self._launcher.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
