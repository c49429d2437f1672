"""What must be otherwise while a world runs, and only then: small chunks, chance by the seed, a quiet log."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import structlog

from konsil import files
from konsil.core import digest
from konsil.ledger import replica
from konsil.node import bench

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Another value under a name while the ``with`` lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def chunks_of(chunk_bytes: int) -> Iterator[None]:
    """Chunks of this size, wherever the size is known: so that a small model has several."""
    real = digest.CHUNK_BYTES
    with ExitStack() as stack:
        for name, module in sorted(sys.modules.items()):
            if name.startswith("konsil.") and getattr(module, "CHUNK_BYTES", None) == real:
                stack.enter_context(replaced(module, "CHUNK_BYTES", chunk_bytes))
        yield


class _Tokens:
    """In place of ``secrets``: names of unfinished files that are the same every time."""

    def __init__(self, seed: str) -> None:
        self._lots = random.Random(f"{seed}, tokens")  # noqa: S311 - reproducible, keeps no secret

    def token_hex(self, count: int) -> str:
        return self._lots.randbytes(count).hex()


class _AtOnce:
    """In place of an executor with one thread: the loop is what carries its work out later on."""

    def __init__(self, *_: object, **__: object) -> None:
        """There is no thread to make."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> Future[T]:
        """Carry it out now."""
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, as a thread's is
            future.set_exception(error)
        return future

    def shutdown(self, *, wait: bool = True) -> None:
        """There is nothing to end."""


class _Heard:
    """The log's end: what is a warning or worse is told, the rest is dropped."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        error = event.pop("exc_info", None)
        what = ", ".join(f"{key}={value}" for key, value in sorted(event.items()) if key != "event")
        self._tell(method, f"{event.get('event')}: {what}" + (f" {_shown(error)}" if error else ""))
        raise structlog.DropEvent


def _shown(error: object) -> str:
    return repr(error)


@contextmanager
def quiet(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Give what nodes log, from errors on, to ``tell(level, sentence)``."""
    before = structlog.get_config()
    structlog.configure(
        processors=[_Heard(tell)],
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def simulated(seed: str, chunk_bytes: int, tell: Callable[[str, str], None]) -> Iterator[None]:
    """Everything that a world changes about this process, undone at its end."""
    with (
        chunks_of(chunk_bytes),
        replaced(bench, "_secret", random.Random(f"{seed}, audits")),  # noqa: S311 - reproducible
        replaced(files, "secrets", _Tokens(seed)),
        replaced(replica, "ThreadPoolExecutor", _AtOnce),
        quiet(tell),
    ):
        yield
