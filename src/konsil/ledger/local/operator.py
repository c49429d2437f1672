"""The engine at the member whose node serves the ledger: takes calls, orders them, writes, tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from konsil.core.messages import MAX_ENTRIES_BYTES
from konsil.core.rules import Call, Entry, Genesis, State, decode_signed, entry_digest
from konsil.errors import ConfigError, KonsilError, LedgerError
from konsil.ledger.budget import Budgets
from konsil.ledger.history import Key, Verify, next_sequence, put_on, sign_call
from konsil.ledger.replica import Replica, closed

MAX_PENDING = 4096
"""Calls that may wait for the disk at once; 256 MiB if each were as large as a call may be."""


class _Pending(NamedTuple):
    entry: Entry
    state: State
    written: asyncio.Future[int]


class LocalLedger:
    """The local engine at its operator. Implements ``konsil.ledger.base.Ledger``; ``async with`` closes it.

    Calls are checked and ordered in the event loop and written by one worker thread. Those that arrive
    while it writes share its next fsync; each is acknowledged only once it is on disk.
    """

    def __init__(
        self, replica: Replica, genesis: Genesis, key: Key, name: str, clock: Callable[[], float]
    ) -> None:
        """Use ``open`` instead."""
        self._replica = replica
        self._genesis = genesis
        self._key = key
        self._name = name
        self._clock = clock
        self._tip = replica.state  # the state after every call taken so far, on disk or on its way there
        self._head = replica.journal.head
        self._pending: list[_Pending] = []
        self._writing: asyncio.Task[None] | None = None
        self._problem = ""
        self._budgets = Budgets()
        self._closed = False

    @classmethod
    async def open(
        cls, path: Path, genesis: Genesis, key: Key, name: str, clock: Callable[[], float], verify: Verify
    ) -> Self:
        """Open or create the journal, replay it, and serve.

        Args:
            path: the journal's file.
            genesis: what the founding members agreed on; names this member as the operator.
            key: this member's ledger key.
            name: this member.
            clock: unix time in seconds.
            verify: whether a signature is that of a public key (hex) over some bytes.

        Raises:
            ConfigError: another member is the operator, or the journal belongs to another genesis.
            JournalCorrupt: the journal does not replay; names the height.
            NodeBusy: another process has the journal open.
            LedgerError: the disk refuses.
        """
        if genesis.operator != name:
            raise ConfigError(
                f"'{name}' cannot serve this ledger: the genesis names '{genesis.operator}' as its operator.",
                safe="Nothing was changed.",
                do="Follow the operator instead; the operator is part of what the members agreed on.",
            )
        return cls(await Replica.open(path, genesis, verify), genesis, key, name, clock)

    @property
    def state(self) -> State:
        """The contract's state; all of it is on disk."""
        return self._replica.state

    @property
    def description(self) -> str:
        """Who keeps this ledger and what that means."""
        return describe(self._genesis)

    @property
    def problem(self) -> str:
        """Why no call can be taken just now; "" while all is well."""
        return self._problem

    async def submit(self, call: Call) -> int:
        """Sign a call with this member's key and put it on the ledger; the height at which it stands.

        Concurrent calls are put on in the order in which they were submitted.

        Raises:
            Refused: the contract refused it; the state is unchanged.
            LedgerError: the disk is full or failed; nothing was promised.
        """
        sequence = next_sequence(self._tip, self._name, self._key)
        return await self.accept(sign_call(self._tip.genesis, self._key, self._name, sequence, call))

    async def accept(self, signed: bytes) -> int:
        """Put a member's signed call on the ledger; the height at which it stands, once it is on disk.

        Raises:
            FrameError: not a signed call, or over the limit.
            Refused: not by a member of this swarm under its next number, against the contract, or more than
                a member may write at once; the state is unchanged.
            LedgerError: the disk is full or failed, or too many calls wait for it; nothing was promised.
        """
        if self._closed:
            raise closed()
        if len(self._pending) >= MAX_PENDING:
            raise LedgerError(
                f"{MAX_PENDING} calls are waiting for the operator's disk.",
                safe="This one was not taken.",
                do="Try again in a moment.",
            )
        # Where the machine's clock goes back, the contract keeps the ledger's time where it was.
        entry, state = put_on(self._tip, self._head, signed, int(self._clock()), self._replica.verify)
        caller = decode_signed(signed).caller
        if caller != self._name:  # only now is it sure who pays
            self._budgets.pay(caller, len(signed), asyncio.get_running_loop().time())
        self._tip, self._head = state, entry_digest(entry)
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(entry, state, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_pending(), name="konsil-ledger-write")
        return await written

    async def follow(self, after: int, wait_s: float, max_bytes: int = MAX_ENTRIES_BYTES) -> list[bytes]:
        """Encoded entries above a height, as many as fit; waits up to ``wait_s`` seconds for the first.

        Raises:
            LedgerError: the asker's history is longer than this one.
        """
        return await self._replica.follow(after, wait_s, max_bytes)

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the height is above ``after`` or the time is up; the height then."""
        return await self._replica.changed(after, timeout_s)

    async def close(self) -> None:
        """Take no more calls, finish writing those taken, close the journal."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._replica.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def _write_pending(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                entries = [pending.entry for pending in batch]
                try:
                    await self._replica.in_worker(partial(self._replica.journal.append, entries))
                except KonsilError as error:
                    self._undo(batch, error)
                    continue
                except BaseException as error:
                    self._undo(
                        batch, LedgerError(f"Writing failed: {error!r}.", safe="Nothing was promised.")
                    )
                    raise
                self._problem = ""
                self._replica.publish(entries, batch[-1].state)
                for pending in batch:
                    if not pending.written.done():
                        pending.written.set_result(pending.entry.height)
        finally:
            self._writing = None

    def _undo(self, batch: list[_Pending], error: KonsilError) -> None:
        """Forget a batch that did not reach the disk, and every call that was taken on top of it."""
        self._problem = str(error)
        failed, self._pending = batch + self._pending, []
        self._tip, self._head = self._replica.state, self._replica.journal.head
        for pending in failed:
            if not pending.written.done():
                pending.written.set_exception(
                    LedgerError(error.what, safe=error.safe, do=error.do, **error.fields)
                )


def describe(genesis: Genesis) -> str:
    """Who keeps a local ledger and what that means, in a plain sentence."""
    return (
        f"Local ledger with one operator, '{genesis.operator}': it could delay or withhold calls and sets "
        "the ledger's time, but it cannot forge or alter a call, since each is signed by its member and "
        "every member replays the whole history. While the operator is away, nothing new is taken."
    )
