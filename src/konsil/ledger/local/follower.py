"""The engine at every other member: replays what the operator tells before it believes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from konsil.core.rules import Call, Entry, Genesis, State, decode_signed
from konsil.errors import KonsilError, LedgerError, LedgerUnreachable, Refused, TransportError
from konsil.ledger.history import Key, Verify, next_sequence, sign_call
from konsil.ledger.local.operator import describe
from konsil.ledger.replica import Bad, Replica, check_and_write

SUBMIT_S = 30.0
"""How long a call may take, other calls before it and reconnecting to the operator included."""

FOLLOW_S = 25.0
"""How long one request for news waits at the operator: below the 30 s after which middleboxes may forget."""

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
"""Back-off between attempts to reach the operator: doubled from the first to the longest."""

NEWS_S = 1.0
"""How long the entry of a call that the operator took may be on its way before it is asked for."""

WRONG_SEQUENCE = ("replayed", "sequence_gap")
"""The contract's words for a call whose number is not its member's next one."""


class Remote(Protocol):
    """The operator's ledger, as its node serves it to the others."""

    async def submit(self, signed: bytes) -> int:
        """Put a signed call on the ledger; its height.

        Raises:
            Refused: the contract refused it.
            LedgerError, TransportError: no answer, or the operator could not take it.
        """
        ...

    async def follow(self, after: int, wait_s: float) -> list[bytes]:
        """Encoded entries above a height; waits up to ``wait_s`` seconds for the first.

        Raises:
            LedgerError, TransportError: no answer, or the operator's history is shorter than ``after``.
        """
        ...


class _Claim(NamedTuple):
    """A call that was sent: its number, its bytes, and where it stands once an entry says so.

    ``height`` becomes 0 where another call took the number.
    """

    sequence: int
    signed: bytes
    height: asyncio.Future[int]


class FollowerLedger:
    """The local engine at a follower. Implements ``konsil.ledger.base.Ledger``; ``async with`` closes it.

    It keeps its own journal, checks every entry of the operator (link, signature, rules, state) before it
    adds it, and stops for good at the first that is wrong: what it has is kept, and every further call
    raises the reason.
    """

    def __init__(
        self, replica: Replica, genesis: Genesis, key: Key, name: str, remote: Remote, submit_s: float
    ) -> None:
        """Use ``open`` instead."""
        self._replica = replica
        self._genesis = genesis
        self._key = key
        self._name = name
        self._remote = remote
        self._submit_s = submit_s
        self._turn = asyncio.Lock()  # one call of this member at a time: their numbers must arrive in order
        self._taking_in = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._claim: _Claim | None = None
        self._stopped: LedgerError | None = None
        self._problem = ""
        self._following: asyncio.Task[None] | None = None
        self._adding: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        path: Path,
        genesis: Genesis,
        key: Key,
        name: str,
        remote: Remote,
        verify: Verify,
        *,
        submit_s: float = SUBMIT_S,
    ) -> Self:
        """Open or create the journal, replay it, and begin to follow.

        Args:
            path: the journal's file.
            genesis: what the founding members agreed on.
            key: this member's ledger key.
            name: this member.
            remote: the operator.
            verify: whether a signature is that of a public key (hex) over some bytes.
            submit_s: the deadline of one ``submit``, in seconds.

        Raises:
            ConfigError: the journal belongs to another genesis.
            JournalCorrupt: the journal does not replay; names the height.
            NodeBusy: another process has the journal open.
            LedgerError: the disk refuses.
        """
        replica = await Replica.open(path, genesis, verify)
        ledger = cls(replica, genesis, key, name, remote, submit_s)
        ledger._following = asyncio.create_task(ledger._follow(), name="konsil-ledger-follow")
        ledger._following.add_done_callback(ledger._ended)
        return ledger

    @property
    def state(self) -> State:
        """The contract's state as far as it was checked here."""
        return self._replica.state

    @property
    def description(self) -> str:
        """Who keeps this ledger and what that means."""
        return describe(self._genesis)

    @property
    def problem(self) -> str:
        """Why there is no news from the operator just now; "" while all is well."""
        return str(self._stopped) if self._stopped else self._problem

    def nudge(self) -> None:
        """Try the operator again at once, for instance because its connection is back."""
        self._nudged.set()

    async def submit(self, call: Call) -> int:
        """Sign a call with this member's key and put it on the ledger; the height at which it stands here.

        A lost answer is no reason to send another: the number of the call tells whether it was taken.

        Raises:
            Refused: the contract refused it; the state is unchanged.
            LedgerUnreachable: no answer in time; it may or may not have been taken.
            LedgerError: the operator's history does not replay, or its disk failed.
        """
        try:
            async with asyncio.timeout(self._submit_s), self._turn:
                return await self._submit(call)
        except TimeoutError as error:
            operator = self._genesis.operator
            raise LedgerUnreachable(
                f"No answer from operator '{operator}' within {self._submit_s:g} s. {self._problem}".strip(),
                safe="The call may or may not have been taken; nothing else was changed.",
                do="Submitting it again is safe.",
            ) from error

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the height is above ``after`` or the time is up; the height then.

        Raises:
            LedgerError: the operator's history does not replay; there will be no more news.
        """
        height = await self._replica.changed(after, timeout_s, stop=lambda: self._stopped is not None)
        if height <= after and self._stopped is not None:
            raise self._stopped
        return height

    async def close(self) -> None:
        """Stop following and close the journal; nothing accepted is lost."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))
        if self._adding:
            await asyncio.wait(self._adding)
        await self._replica.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    # --- own calls -------------------------------------------------------------------------------

    async def _submit(self, call: Call) -> int:
        wait_s = FIRST_WAIT_S
        claim = self._sign(call)
        while True:
            try:
                if await self._send(claim):
                    await asyncio.wait((claim.height,), timeout=NEWS_S)
                # Without news: the answer says that the call stands, or that its number is taken, perhaps by
                # this very call where an answer was lost. Only the history itself tells which.
                if not claim.height.done():
                    await self._catch_up()
                if not claim.height.done():
                    raise self._undecided(claim)
            except (LedgerError, TransportError) as error:
                if self._stopped is not None:
                    raise self._stopped from None
                self._problem = str(error)
                await self._pause(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            if claim.height.done():
                if height := claim.height.result():
                    return height
                claim = self._sign(call)  # another call has its number: only now is a new one safe

    def _sign(self, call: Call) -> _Claim:
        """The call under the member's next number; the same bytes again while that number is free."""
        if self._stopped is not None:
            raise self._stopped
        sequence = self._next()
        signed = sign_call(self.state.genesis, self._key, self._name, sequence, call)
        if self._claim is None or self._claim.signed != signed or self._claim.height.done():
            self._claim = _Claim(sequence, signed, asyncio.get_running_loop().create_future())
        return self._claim

    def _next(self) -> int:
        return next_sequence(self.state, self._name, self._key)

    async def _send(self, claim: _Claim) -> bool:
        """Whether the operator took the call, or its entry came; False where it wants another number."""
        sending = asyncio.ensure_future(self._remote.submit(claim.signed))
        try:
            # An entry that arrives is an answer too, and may come where the answer itself was lost.
            await asyncio.wait((sending, claim.height), return_when=asyncio.FIRST_COMPLETED)
            if claim.height.done():
                return True
            await sending
        except Refused as refused:
            if refused.code not in WRONG_SEQUENCE:
                raise
            return False
        else:
            self.nudge()
            return True
        finally:
            await _ended(sending)

    def _undecided(self, claim: _Claim) -> LedgerError:
        return LedgerError(
            f"The operator does not tell what became of call {claim.sequence} of '{self._name}'.",
            safe="The call is not sent under another number while this is open.",
            do="It is tried again.",
            sequence=claim.sequence,
        )

    async def _catch_up(self) -> None:
        """Take in all that the operator has now."""
        while entries := await self._remote.follow(self.state.height, 0.0):
            await self._take_in(entries)

    # --- following -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        wait_s = FIRST_WAIT_S
        loop = asyncio.get_running_loop()
        while self._stopped is None:
            started_s = loop.time()
            try:
                # After a failure only a look, so that the problem is not shown longer than it lasts.
                looking = bool(self._problem)
                entries = await self._remote.follow(self.state.height, 0.0 if looking else FOLLOW_S)
                self._problem = ""
                await self._take_in(entries)
            except KonsilError as error:
                if self._stopped is not None:
                    return
                self._problem = str(error)
                await self._pause(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            wait_s = FIRST_WAIT_S
            if not entries and not looking and loop.time() - started_s < FIRST_WAIT_S:
                await self._pause(FIRST_WAIT_S)  # an operator that does not wait must not make this spin

    def _ended(self, following: asyncio.Task[None]) -> None:
        """A fault of this program must not look like silence of the operator."""
        if not following.cancelled() and (fault := following.exception()) is not None:
            self._stopped = LedgerError(
                f"Following the ledger failed: {fault!r}.",
                safe="What was checked is kept.",
                do="Restart the node, and report this.",
            )
            self._replica.wake()

    async def _pause(self, wait_s: float) -> None:
        self._nudged.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._nudged.wait()

    async def _take_in(self, encoded: Sequence[bytes]) -> None:
        """Check entries and add them; stop for good at one that is wrong."""
        if not encoded:
            return
        adding = asyncio.create_task(self._add(encoded), name="konsil-ledger-add")
        self._adding.add(adding)
        adding.add_done_callback(self._added)
        # Shielded: entries that are being written must also be shown, even when the asker gives up.
        await asyncio.shield(adding)

    async def _add(self, encoded: Sequence[bytes]) -> None:
        async with self._taking_in:
            if self._stopped is not None:
                raise self._stopped
            work = partial(check_and_write, self._replica, self.state, encoded)
            entries, state, bad = await self._replica.in_worker(work)
            if entries:
                self._replica.publish(entries, state)
                for entry in entries:
                    self._settle(entry)
            if bad is not None:
                raise self._stop(bad)

    def _added(self, adding: asyncio.Task[None]) -> None:
        self._adding.discard(adding)
        if not adding.cancelled():
            adding.exception()  # seen: nobody may be waiting for it any more

    def _settle(self, entry: Entry) -> None:
        """Tell the call that waits for this number where it stands, or that another one took it."""
        claim = self._claim
        if claim is None or claim.height.done():
            return
        read = decode_signed(entry.signed)
        if (read.caller, read.sequence) == (self._name, claim.sequence):
            claim.height.set_result(entry.height if entry.signed == claim.signed else 0)
            self.nudge()

    def _stop(self, bad: Bad) -> LedgerError:
        operator = self._genesis.operator
        kept = f"The {self.state.height} entries that were checked are kept, in {self._replica.journal.path}."
        what = (
            f"The operator '{operator}' now tells another history than the one it told before: at entry "
            f"{bad.height}, {bad.why}."
            if bad.fork
            else f"The operator '{operator}' tells a history that does not hold. {bad.why}"
        )
        self._stopped = LedgerError(
            what,
            safe=kept,
            do="Compare `konsil ledger verify` at several members, and ask the operator; this node waits.",
            height=bad.height,
            fork=bad.fork,
        )
        self._replica.wake()
        if self._claim is not None and not self._claim.height.done():
            self._claim.height.set_exception(self._stopped)
            self._claim.height.exception()  # seen: nobody may be waiting for it
        return self._stopped


async def _ended(task: asyncio.Future[int]) -> None:
    """Leave no request behind; whatever it says now does not matter."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
