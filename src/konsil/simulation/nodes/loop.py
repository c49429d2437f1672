"""An event loop with virtual time: one seed gives one order of events, and nothing is really waited for.

Time stands still while anything is ready, and jumps to the next timer when nothing is. A thread is a moment
later on: what was handed to one runs in the loop itself, after a delay drawn from the seed, so that others
run meanwhile and a crash can fall before, between or after.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

QUEUED_SHARE = 0.1
"""How often a thread is not free at once: only then can a cancellation still prevent the work."""

LOOKS_STUCK = 100_000
"""Callbacks without any time going by: somebody spins."""


class EverybodyWaits(RuntimeError):
    """Nothing is ready, and no timer will ever make anything ready."""


class Spinning(RuntimeError):
    """Callbacks follow one another for ever and time stands still."""


class Process:
    """What callbacks belong to: a node between a start and its end, or a training process.

    ``lots``: its own source of chance, so that what others do does not change its luck.
    """

    def __init__(self, name: str, seed: str) -> None:
        """Alive until somebody says otherwise."""
        self.name = name
        self.alive = True
        self.lots = random.Random(f"{seed}, {name}")  # noqa: S311 - reproducible, keeps no secret

    def context(self) -> contextvars.Context:
        """A context for tasks of this process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        return context


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)


class _Numbered:
    """Hashes by the order in which it was made, so that sets of such things go the same way every time."""

    number: int

    def __hash__(self) -> int:
        return self.number


class _Task(_Numbered, asyncio.Task[Any]):
    def __init__(self, coro: Any, *, loop: SimulatedLoop, **options: Any) -> None:
        self.number = loop.next_number()  # before anything puts it into a set
        super().__init__(coro, loop=loop, **options)


class _Future(_Numbered, asyncio.Future[Any]):
    def __init__(self, *, loop: SimulatedLoop) -> None:
        self.number = loop.next_number()
        super().__init__(loop=loop)


class _NoSelector:
    """In place of the system's: no socket ever speaks, and waiting is letting time pass."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if timeout_s is None:
            raise EverybodyWaits("Everybody waits: nothing is ready and no timer is set.")
        self._loop.pass_time(timeout_s)
        return []

    def close(self) -> None:
        """There is nothing to close."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """A loop whose clock, threads and order come from a seed. ``problems``: what nobody caught."""

    def __init__(self, seed: str) -> None:
        """Begin at 0 s."""
        super().__init__()
        self._now_s = 0.0
        self._numbers = 0
        self._still = 0
        self._turns: dict[int, float] = {}
        self._lots = random.Random(f"{seed}, loop")  # noqa: S311 - reproducible, keeps no secret
        self._selector = _NoSelector(self)
        self._clock_resolution = 1e-9
        self.problems: list[str] = []
        self.set_task_factory(cast("Any", _Task_of))
        self.set_exception_handler(self._uncaught)

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now_s

    def pass_time(self, seconds: float) -> None:
        """What waiting is."""
        if seconds > 0:
            self._now_s += seconds
            self._still = 0
            return
        self._still += 1
        if self._still > LOOKS_STUCK:
            raise Spinning(f"Something spins at {self._now_s:.3f} s: time stands still.")

    def next_number(self) -> int:
        """A number for a task or future."""
        self._numbers += 1
        return self._numbers

    def create_future(self) -> asyncio.Future[Any]:
        """A future that hashes by its number."""
        return _Future(loop=self)

    def run_in_executor(self, executor: object, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Carry something out later on. What is under way cannot be stopped, as in a thread.

        An executor of its own is one thread: its works come one after the other.
        """
        process = PROCESS.get()
        lots = process.lots if process is not None else self._lots
        future: asyncio.Future[T] = self.create_future()
        queued = lots.random() < QUEUED_SHARE
        works_s, tells_s = lots.expovariate(500), lots.expovariate(2000)
        at_s = self._now_s + works_s
        if executor is not None:
            at_s = max(at_s, self._turns.get(id(executor), 0.0))
            self._turns[id(executor)] = at_s

        def work() -> None:
            if queued and future.cancelled():
                return
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits, as a thread's is
                self.call_later(tells_s, _fail, future, error)
            else:
                self.call_later(tells_s, _settle, future, result)

        self.call_at(at_s, work)
        return future

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """A task of a process."""
        return self.create_task(coroutine, name=name or None, context=process.context())

    def _uncaught(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.problems.append(f"{context.get('message')}: {error!r}" if error else str(context.get("message")))

    # --- what a loop without sockets has no use for ---------------------------------------------

    def _process_events(self, _events: list[Any]) -> None:
        """No socket ever speaks."""

    def _write_to_self(self) -> None:
        """There is one thread: nobody has to be woken."""


def _Task_of(loop: SimulatedLoop, coro: Any, **options: Any) -> _Task:  # noqa: N802 - stands for the class
    return _Task(coro, loop=loop, **options)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
