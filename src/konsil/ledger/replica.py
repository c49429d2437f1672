"""A member's own copy of the history: replayed from its journal, written before it is shown, watched."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from konsil.core.messages import MAX_ENTRIES_BYTES
from konsil.core.rules import (
    Entry,
    Genesis,
    State,
    decode_entry,
    encode_entry,
    entry_digest,
    genesis_digest,
)
from konsil.errors import KonsilError, LedgerError
from konsil.ledger.history import Verify, follow_on, replay
from konsil.ledger.journal import Journal

RECENT_ENTRIES = 1024
"""Entries kept in memory for peers that follow; who is further behind is served from the journal."""

FRAMING_BYTES = 4
"""What an entry's length costs where many are sent as one run of bytes."""

T = TypeVar("T")


class _Recent(NamedTuple):
    height: int
    encoded: bytes


class Bad(NamedTuple):
    """The first entry that does not replay."""

    height: int
    why: str
    fork: bool


class Replica:
    """A journal, the state that it replays to, and those who wait for news.

    The journal is touched by one worker thread only, so the event loop never waits for a disk. Everything
    else is used from the event loop.
    """

    def __init__(self, journal: Journal, state: State, verify: Verify, worker: ThreadPoolExecutor) -> None:
        """Take over an open journal and the state that it replays to."""
        self.journal = journal
        self.state = state
        self.verify = verify
        self._worker = worker
        self._recent: deque[_Recent] = deque(maxlen=RECENT_ENTRIES)
        self._news = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, path: Path, genesis: Genesis, verify: Verify) -> Self:
        """Open or create a journal and replay it.

        Raises:
            JournalCorrupt: an entry is missing, was changed, or does not replay; names its height.
            ConfigError: the journal belongs to another genesis.
            NodeBusy: another process has it open.
            LedgerError: the disk refuses.
        """
        worker = ThreadPoolExecutor(1, thread_name_prefix="konsil-ledger")
        loading = worker.submit(_load, path, genesis, verify)
        try:
            journal, state = await asyncio.wrap_future(loading)
        except BaseException:
            loading.add_done_callback(_close_loaded)  # whoever gave up waiting leaves no open journal behind
            worker.shutdown(wait=False)
            raise
        return cls(journal, state, verify, worker)

    async def in_worker(self, work: Callable[[], T]) -> T:
        """Run something in the one thread that may touch the journal.

        Raises:
            LedgerError: the ledger was closed.
        """
        if self._closed:
            raise closed()
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def publish(self, entries: Sequence[Entry], state: State) -> None:
        """Show entries that are on disk, and the state after them, to everyone who waits."""
        self._recent.extend(_Recent(entry.height, encode_entry(entry)) for entry in entries)
        self.state = state
        self.wake()

    def wake(self) -> None:
        """Let everyone who waits look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, after: int, timeout_s: float, stop: Callable[[], bool] = lambda: False) -> int:
        """Wait until the height is above ``after``, or ``stop()``, or the time is up; the height then."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.state.height <= after and not stop() and not self._closed:
                    await self._news.wait()
        except TimeoutError:
            pass
        return self.state.height

    async def follow(self, after: int, wait_s: float, max_bytes: int = MAX_ENTRIES_BYTES) -> list[bytes]:
        """Encoded entries above a height, as many as fit; waits up to ``wait_s`` seconds for the first.

        At least one entry comes whenever there is one, whatever ``max_bytes`` is.

        Raises:
            LedgerError: nothing stands at ``after`` yet: the asker's history is longer than this one.
        """
        if not 0 <= after <= self.state.height:
            raise LedgerError(
                f"Entries after {after} were asked for, but this history ends at {self.state.height}.",
                safe="Nothing was changed here or there.",
                do="One of the two histories is not the swarm's: compare `konsil ledger verify` at both.",
                after=after,
                height=self.state.height,
            )
        if await self.changed(after, wait_s) <= after:
            return []
        max_bytes = min(max_bytes, MAX_ENTRIES_BYTES)
        if self._recent and self._recent[0].height <= after + 1:
            start = after + 1 - self._recent[0].height
            return _fitting((recent.encoded for recent in islice(self._recent, start, None)), max_bytes)
        return await self.in_worker(
            lambda: _fitting((encode_entry(entry) for entry in self.journal.read(after)), max_bytes)
        )

    async def close(self) -> None:
        """Close the journal once what is being written is on disk. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        await asyncio.get_running_loop().run_in_executor(self._worker, self.journal.close)
        self._worker.shutdown()


def check_and_write(
    replica: Replica, state: State, encoded: Sequence[bytes]
) -> tuple[list[Entry], State, Bad | None]:
    """In the worker: replay entries on the state and write those that are right.

    Entries that are in the journal already (two requests overlapped) are passed over; the link of the next
    one shows whether they were the same.
    """
    good: list[Entry] = []
    bad: Bad | None = None
    head = replica.journal.head
    for data in encoded:
        try:
            entry = decode_entry(data)
            if entry.height <= state.height:
                continue
            if entry.height == state.height + 1 and entry.previous != head:
                bad = Bad(entry.height, "it does not follow the last one that this member has", fork=True)
                break
            state = follow_on(state, entry, head, replica.verify)
        except KonsilError as error:
            bad = Bad(state.height + 1, error.what, fork=False)
            break
        head = entry_digest(entry)
        good.append(entry)
    if good:
        replica.journal.append(good)
    return good, state, bad


def closed() -> LedgerError:
    """What calls on a closed ledger get."""
    return LedgerError(
        "The ledger was closed.", safe="All that was accepted is on disk.", do="Start the node again."
    )


def _close_loaded(loading: Future[tuple[Journal, State]]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result()[0].close()


def _load(path: Path, genesis: Genesis, verify: Verify) -> tuple[Journal, State]:
    journal = Journal(path, genesis_digest(genesis))
    try:
        state = replay(genesis, journal.read(), verify)
    except BaseException:
        journal.close()
        raise
    return journal, state


def _fitting(encoded: Iterable[bytes], max_bytes: int) -> list[bytes]:
    taken: list[bytes] = []
    total_bytes = 0
    for entry in encoded:
        total_bytes += len(entry) + FRAMING_BYTES
        if taken and total_bytes > max_bytes:
            break
        taken.append(entry)
    return taken
