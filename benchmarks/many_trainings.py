"""Training processes for many members, forked from one that has imported everything. For benchmarks/load.py.

many_trainings.py SOCKETS WORK     both as JSON; each member says a line of JSON at every call
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

TENSORS = 10

STUDY = "load"

REST_S = 0.3
"""What training takes longer in a round before which processes are looked at, so that all are at rest."""

ROUND_S = 120.0
"""A round that takes longer than this has hung."""


@dataclass(frozen=True)
class Work:
    """What is done. ``every``: so many rounds lie between two looks at all processes; 0 for none."""

    members: int
    rounds: int
    megabytes: float
    every: int = 0
    audit: float = 0.05
    score: bool = False

    def looked_at(self, round_number: int) -> bool:
        """Whether all processes are looked at after this round."""
        return bool(self.every) and 0 < round_number < self.rounds and round_number % self.every == 0


def train(socket: str, number: int, work: Work) -> None:
    """One member's training: says a line of JSON at every call."""
    import numpy as np  # noqa: PLC0415 - the parent needs none of this

    import konsil  # noqa: PLC0415

    elements = int(work.megabytes * 1e6 / 4 / TENSORS)
    model = {f"t{i}": np.zeros(elements, np.float32) for i in range(TENSORS)}
    with konsil.join(STUDY, model, node=socket) as swarm:
        for call in range(1, work.rounds + 2):
            at_s = time.time()
            expected = np.float32((work.members + 1) / 2 * (call - 1))
            right = all(bool((array == expected).all()) for array in model.values())
            right = right and (call == 1 or len(swarm.last.members) == work.members)
            line = json.dumps({"member": number, "call": call, "at_s": at_s, "right": right})
            os.write(1, line.encode() + b"\n")  # whole: below PIPE_BUF, and all members write into one pipe
            if swarm.finished:
                break
            for array in model.values():
                np.add(array, number, out=array)
            if work.looked_at(call - 1):
                time.sleep(REST_S)
            if swarm.step(examples=1) and work.score:
                swarm.score(examples=1, loss=1 / call)


def train_all(sockets: Sequence[str], work: Work) -> None:
    """Import once, then be one training process a member; says their process ids first."""
    import konsil.session.joining  # noqa: PLC0415 - the point of this process: imported once, for all

    assert konsil.session.joining
    alive: set[int] = set()

    def end_all(*_: object) -> None:
        for child in alive:
            os.kill(child, signal.SIGKILL)  # not waited for yet, so its number is nobody else's

    children = []
    for number, socket in enumerate(sockets, start=1):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(socket, number, work)
                status = 0
            except BaseException:  # noqa: BLE001 - it is printed, and the process ends
                import traceback  # noqa: PLC0415

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
        alive.add(child)
    signal.signal(signal.SIGTERM, end_all)
    os.write(1, json.dumps({"pids": children}).encode() + b"\n")
    failed = False
    while alive:
        child, status = os.wait()
        alive.remove(child)
        if status and not failed:
            failed = True
            end_all()  # the others would wait for it
    sys.exit(1 if failed else 0)


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Trainers:
    """The training processes of all members, and what they say. Use ``with``: none is left afterwards."""

    def __init__(
        self, sockets: Sequence[Path], work: Work, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps([str(path) for path in sockets]),
                 json.dumps(asdict(work))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **ONE_THREAD, **(environment or {})},
            )  # fmt: skip
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        self._log = log
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    def words(self) -> Any:
        """Every word of every member until the last has ended.

        Raises:
            AssertionError: nothing came for ``ROUND_S``, or a member's training failed; with its log.
        """
        while True:
            assert self._selector.select(ROUND_S), f"nothing was said for {ROUND_S:g} s:\n{self.errors()}"
            data = os.read(self._pipe, 1 << 16)
            if not data:
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from map(json.loads, lines)
        assert self._process.wait(ROUND_S) == 0, f"a member's training failed:\n{self.errors()}"

    def errors(self) -> str:
        """The end of what they printed on standard error."""
        return self._log.read_text(errors="replace")[-4000:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()  # it ends its children first
        self._process.wait()
        self._selector.close()
        assert self._process.stdout is not None
        self._process.stdout.close()


if __name__ == "__main__":
    train_all(json.loads(sys.argv[1]), Work(**json.loads(sys.argv[2])))
