"""Members' turns one after the other, or at once through joblib and what it runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from konsil.errors import ConfigError
from konsil.simulation.member import Taken, Turn, take

TakeAll = Callable[[Sequence[Turn]], list[Taken]]


@contextmanager
def turns(jobs: int) -> Iterator[TakeAll]:
    """What takes members' turns, in order, so many at once.

    Raises:
        ConfigError: ``jobs`` is 0, joblib is missing, or a member cannot travel to joblib's processes.
    """
    if jobs == 0:
        raise ConfigError("`jobs` is 0.", do="Give 1 or more, or -1 for all processors.")
    if jobs == 1:
        yield lambda asked: [take(turn) for turn in asked]
        return
    try:
        joblib = import_module("joblib")
    except ImportError as error:
        raise ConfigError(
            "Members train at the same time through joblib, which is not installed.",
            safe="Nothing was trained.",
            do="pip install 'konsil[simulate]', or simulate with jobs=1.",
        ) from error
    # Threads unless the caller's `joblib.parallel_config` says otherwise. Arrays are not mapped from files:
    # these would be read-only, and a model is trained in place.
    with joblib.Parallel(n_jobs=jobs, prefer="threads", max_nbytes=None) as parallel:

        def take_all(asked: Sequence[Turn]) -> list[Taken]:
            try:
                return list(parallel(joblib.delayed(take)(turn) for turn in asked))
            except Exception as error:
                raise ConfigError(
                    f"The members could not be trained through joblib: {type(error).__name__}: {error}",
                    safe="The rounds before this one are done; their merges are lost with this run.",
                    do="docs/data-scientist.md says what can go to other processes and back; in threads, the "
                    "default, everything can.",
                ) from error

        yield take_all
