"""The processes of one hospital's training (torch.distributed), and what the first says to the others.

Words travel in a process group of their own, on the CPU: they neither mix with the training's own traffic
nor wait for an accelerator. While the first one waits for the swarm it says so every few seconds: so the
group's time limit (PyTorch's default, 30 minutes) ends waits for processes that are gone, not for merges.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
import torch
from torch import distributed

from konsil.core.wall import Failed
from konsil.errors import KonsilError, StudyError
from konsil.wall.frames import failure, raised

FIRST = 0
"""The rank that speaks to the node."""

STILL_WAITING_S = 5.0
"""How often the others are told that the first one still waits for the swarm."""

Result = TypeVar("Result")


class Word(enum.IntEnum):
    """What the first process says to the others."""

    GO_ON = 0
    WAITING = 1
    SUM = 2
    ACCEPTED = 3
    FAILED = 4
    CLOSED = 5


class Ranks:
    """The processes of one hospital's training."""

    def __init__(self) -> None:
        """Make a process group for words; every process must do so."""
        self.rank: int = distributed.get_rank()
        self._own = distributed.is_gloo_available()
        self._group: Any = None
        self._device = torch.device("cpu")
        if self._own:
            self._group = _guarded(lambda: distributed.new_group(backend="gloo"))
        elif torch.cuda.is_available():
            self._device = torch.device("cuda", torch.cuda.current_device())

    # --- the first one ---------------------------------------------------------------------------

    def say(self, word: Word, payload: bytes = b"", *, limit_s: float | None = None) -> None:
        """Say a word to all others.

        Raises:
            StudyError: one of them is gone.
        """

        def send() -> None:
            for tensor in self._packed(word, payload):
                work = distributed.broadcast(tensor, src=FIRST, group=self._group, async_op=True)
                work.wait(*(() if limit_s is None else (timedelta(seconds=limit_s),)))

        _guarded(send)

    def fail(self, error: BaseException, *, limit_s: float | None = None) -> None:
        """Let an error be raised by all. Never raises itself."""
        if not isinstance(error, KonsilError):
            error = StudyError(
                f"The first process of this hospital's training ended: {type(error).__name__}: {error}",
                safe="Nothing was sent; the other hospitals go on.",
                do="See that process's own error.",
            )
        with suppress(KonsilError):
            self.say(Word.FAILED, msgspec.msgpack.encode(failure(error)), limit_s=limit_s)

    def summed(self, examples: int) -> int:
        """All processes' examples."""
        self.say(Word.SUM)
        return self.total(examples)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say again and again that the first one waits for the swarm."""
        over = threading.Event()
        lost: list[StudyError] = []

        def tell() -> None:
            while not over.wait(STILL_WAITING_S):
                try:
                    self.say(Word.WAITING)
                except StudyError as error:
                    lost.append(error)
                    return

        thread = threading.Thread(target=tell, name="konsil-ranks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()  # what it says at most meanwhile is one word
        if lost:
            raise lost[0]

    # --- the others ------------------------------------------------------------------------------

    def hear(self) -> tuple[Word, bytes]:
        """The next word that is more than that the first one waits; a failure is raised.

        Raises:
            KonsilError: what went wrong in the first process, or that it is gone.
        """
        while True:
            word, payload = _guarded(self._received)
            if word is Word.FAILED:
                raise raised(msgspec.msgpack.decode(payload, type=Failed))
            if word is not Word.WAITING:
                return word, payload

    # --- all of them -----------------------------------------------------------------------------

    def total(self, number: int) -> int:
        """The sum of all processes' numbers."""
        counted = torch.tensor([number], dtype=torch.int64, device=self._device)
        _guarded(lambda: distributed.all_reduce(counted, group=self._group))
        return int(counted.item())

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Give everyone the first process's values, in place."""
        for tensor in tensors:
            group = self._group if tensor.device.type == "cpu" else None
            values = tensor.detach().contiguous()
            _guarded(partial(distributed.broadcast, values, FIRST, group=group))
            if self.rank != FIRST and values.data_ptr() != tensor.data_ptr():
                with torch.no_grad():
                    tensor.copy_(values)

    def part(self) -> None:
        """Leave the others: whoever still waits for a word of this process is told by its absence."""
        group, self._group = self._group, None
        if group is not None:
            with suppress(RuntimeError, ValueError):  # the training may have ended all groups already
                distributed.destroy_process_group(group)

    # --- inside ----------------------------------------------------------------------------------

    def _packed(self, word: Word, payload: bytes) -> Iterator[torch.Tensor]:
        self._require_group()
        yield torch.tensor([word, len(payload)], dtype=torch.int64, device=self._device)
        if payload:
            yield torch.frombuffer(bytearray(payload), dtype=torch.uint8).to(self._device)

    def _received(self) -> tuple[Word, bytes]:
        self._require_group()
        head = torch.zeros(2, dtype=torch.int64, device=self._device)
        distributed.broadcast(head, src=FIRST, group=self._group)
        word, length = (int(number) for number in head.tolist())
        if not length:
            return Word(word), b""
        payload = torch.empty(length, dtype=torch.uint8, device=self._device)
        distributed.broadcast(payload, src=FIRST, group=self._group)
        return Word(word), payload.cpu().numpy().tobytes()

    def _require_group(self) -> None:
        if self._own and self._group is None:
            raise StudyError(
                "This process has left the others of this hospital.", do="Join again, all of them."
            )


def _guarded(work: Callable[[], Result]) -> Result:
    """Do something together with the other processes.

    Raises:
        StudyError: one of them is gone.
    """
    try:
        return work()
    except RuntimeError as error:  # what torch.distributed raises, whatever the reason
        raise StudyError(
            f"The processes of this hospital's training have lost each other: {str(error)[:300]}",
            safe="What the swarm has accepted stands; the other hospitals go on.",
            do="See which process ended first, and why; then start all of them again.",
        ) from error
