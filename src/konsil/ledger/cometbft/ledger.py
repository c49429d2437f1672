"""The ledger as a node sees it, where CometBFT keeps it: own calls go in, and blocks come out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import structlog

from konsil.core.messages import MAX_ENTRIES_BYTES
from konsil.core.rules import Call, Genesis, State, may_fail, validators
from konsil.errors import LedgerError, LedgerUnreachable
from konsil.ledger.cometbft.application import Misbehaviour, Outcome
from konsil.ledger.cometbft.claims import Claims
from konsil.ledger.cometbft.duties import Duties
from konsil.ledger.cometbft.home import Home
from konsil.ledger.cometbft.keeper import Keeper
from konsil.ledger.cometbft.peering import Mesh, Peering
from konsil.ledger.cometbft.program import Supervisor, find
from konsil.ledger.cometbft.rpc import Rpc
from konsil.ledger.cometbft.server import AbciServer
from konsil.ledger.cometbft.timings import Timings
from konsil.ledger.history import Key, Verify
from konsil.ledger.replica import Replica, closed

SUBMIT_S = 30.0
"""How long a call may take, other calls before it and restarts of the engine included."""

OFFER_AGAIN_S = 3.0
"""A call that is in no block by then is put into the pool again: the pool is not on disk."""

FIRST_WAIT_S = 0.1
"""How long an engine that does not answer is left alone; doubled up to the above."""


SLOWER = 1.5
"""By how much the time-outs that the lines ask for must be above the present ones to be worth a restart."""

_log = structlog.get_logger(__name__)


class VotingKey(Key, Protocol):
    """A ledger key with which CometBFT votes. ``seed``: its private half, 32 bytes."""

    @property
    def seed(self) -> bytes:
        """The private half."""
        ...


class Site(NamedTuple):
    """What a member has for CometBFT. ``program``: name or path. ``directory``: where it keeps its own.
    ``validate``: whether its node decides on blocks with the others.
    """

    program: str
    directory: Path
    mesh: Mesh
    timings: Callable[[], Timings]
    validate: bool = True


class CometbftLedger:
    """The cometbft engine at a member. Implements ``konsil.ledger.base.Ledger``; ``async with`` closes it."""

    def __init__(self, replica: Replica, genesis: Genesis, key: VotingKey, name: str, site: Site) -> None:
        """Use ``open`` instead."""
        self._replica = replica
        self._genesis = genesis
        self._key = key
        self._name = name
        self._site = site
        self._home = Home(site.directory)
        self._rpc = Rpc(self._home.rpc_socket)
        self._keeper = Keeper(genesis, replica, replica.verify, name, self._on_block, self._on_misbehaviour)
        self._peering = Peering(self._rpc, site.mesh, self._fit_timings)
        self._timings = site.timings()
        self._claims = Claims(name, key)
        self._duties = Duties(name, site.validate, self._rpc, replica, self.submit)
        self._news = asyncio.Event()
        self._offering: asyncio.Task[None] | None = None
        self._offer_all = False
        self._closed = False
        self._problem = ""
        self._supervisor: Supervisor | None = None
        self._stack = AsyncExitStack()

    @classmethod
    async def open(
        cls, path: Path, genesis: Genesis, key: VotingKey, name: str, site: Site, verify: Verify
    ) -> Self:
        """Open or create the journal, replay it, and start CometBFT.

        Args:
            path: the journal's file.
            genesis: what the founding members agreed on.
            key: this member's ledger key.
            name: this member.
            site: what it has for CometBFT.
            verify: whether a signature is that of a public key (hex) over some bytes.

        Raises:
            ConfigError: no CometBFT here, or another version; or the journal belongs to another genesis.
            JournalCorrupt: the journal does not replay; names the height.
            NodeBusy: another process has the journal open.
            LedgerError: the disk refuses.
        """
        program = await find(site.program)
        replica = await Replica.open(path, genesis, verify)
        ledger = cls(replica, genesis, key, name, site)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(replica.close)
            await ledger._start(program, stack)
            ledger._stack = stack.pop_all()
        return ledger

    async def _start(self, program: Path, stack: AsyncExitStack) -> None:
        self._require_votes()
        if self._home.has_blocks:
            self._keeper.take_up()
        else:
            await self._keeper.begin_anew()
        self._home.make()
        stack.callback(self._rpc.close)
        await stack.enter_async_context(AbciServer(self._home.abci_socket, self._keeper.answer))
        self._supervisor = Supervisor(program, self._home.directory, self._prepare, self._has_started)
        self._peering.look(self.state)
        stack.push_async_callback(self._supervisor.close)
        self._supervisor.start()
        self._peering.start()
        stack.push_async_callback(self._peering.close)
        self._duties.start()
        stack.push_async_callback(self._duties.close)

    def _require_votes(self) -> None:
        """See that it is known how far this member has voted: a vote in the place of another is a lie."""
        home = self._home
        if (home.has_blocks or self._replica.journal.height) and not home.votes.exists():
            raise LedgerError(
                f"It is not known how far this member has voted: {home.votes} is gone.",
                safe="Nothing was started: a second vote for what it has voted on would be proof against it.",
                do="Put the file back as it was when the node stopped. Without it this member needs a new "
                "directory with new keys: be removed, and admitted anew.",
                file=str(home.votes),
            )

    async def _prepare(self) -> None:
        port = _free_port()
        self._timings = self._site.timings()
        # In the journal's thread, for whose end closing waits: nothing is written behind it.
        await self._replica.in_worker(
            partial(self._home.prepare, self._genesis, self._key.seed, port, self._timings)
        )
        self._site.mesh.take_at(port)

    def _has_started(self) -> None:
        self._peering.again()
        self._offer_all = True
        self._news.set()

    def _fit_timings(self) -> None:
        """Start CometBFT again where the lines turned out to be much slower than its time-outs allow for."""
        now = self._site.timings()
        if now.propose > SLOWER * self._timings.propose and self._supervisor is not None:
            _log.info("the ledger's engine gets longer time-outs", propose_ms=now.propose)
            self._supervisor.restart()

    # --- the interface -----------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The contract's state; all of it is on disk."""
        return self._replica.state

    @property
    def description(self) -> str:
        """Who keeps this ledger and what that means."""
        return describe(self.state)

    @property
    def problem(self) -> str:
        """Why no call can be taken just now; "" while all is well."""
        engine = self._supervisor.problem if self._supervisor is not None else ""
        return self._keeper.problem or engine or self._problem

    @property
    def engine_process(self) -> int | None:
        """The id of CometBFT's process, while it runs."""
        return self._supervisor.process_id if self._supervisor is not None else None

    async def submit(self, call: Call) -> int:
        """Sign a call with this member's key and put it on the ledger; the height at which it stands.

        Raises:
            Refused: the contract refused it; the state is unchanged.
            LedgerUnreachable: it is in no block yet; it may or may not come into one.
            LedgerError: the ledger was closed.
        """
        self._require_one_history()
        try:
            async with asyncio.timeout(SUBMIT_S):
                while True:
                    if self._closed:
                        raise closed()
                    claim = self._claims.make(self.state, call, self._keeper.now_s())
                    self._begin_to_offer()
                    if height := await asyncio.shield(claim.height):
                        return height
        except TimeoutError as error:
            raise LedgerUnreachable(
                f"The call is in no block after {SUBMIT_S:g} s. {self._why_slow()}",
                safe="It may or may not still be taken; nothing else was changed.",
                do="Submitting it again is safe.",
            ) from error

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the height is above ``after`` or the time is up; the height then."""
        return await self._replica.changed(after, timeout_s)

    async def follow(self, after: int, wait_s: float, max_bytes: int = MAX_ENTRIES_BYTES) -> list[bytes]:
        """Encoded entries above a height, as many as fit; waits up to ``wait_s`` seconds for the first.

        Raises:
            LedgerError: the asker's history is longer than this one.
        """
        return await self._replica.follow(after, wait_s, max_bytes)

    async def close(self) -> None:
        """Stop CometBFT in order and close the journal; nothing accepted is lost."""
        self._closed = True
        self._claims.fail(closed())
        if self._offering is not None:
            self._offering.cancel()
            await asyncio.wait((self._offering,))
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    # --- own calls ---------------------------------------------------------------------------------

    def _require_one_history(self) -> None:
        """See that what is signed here is signed on the members' history, and not on another.

        Raises:
            LedgerError: this member's is another.
        """
        if self._supervisor is not None and self._supervisor.diverged:
            raise LedgerError(
                "This node's ledger is not what the other members have: its state differs.",
                safe="The call was not signed.",
                do="Stop the node and run `konsil ledger repair`.",
            )

    async def _offer(self) -> None:
        """Put calls into the pool, again and again, until blocks have decided about all of them."""
        wait_s = FIRST_WAIT_S
        offered: set[bytes] = set()
        while waiting := self._claims.waiting:
            self._news.clear()
            try:
                for claim in waiting:
                    if claim.signed not in offered:
                        await self._rpc.broadcast(claim.signed)
                        offered.add(claim.signed)
                self._problem, pause_s, wait_s = "", OFFER_AGAIN_S, FIRST_WAIT_S
            except LedgerUnreachable as error:
                self._problem, pause_s = error.what, wait_s
                wait_s = min(2 * wait_s, OFFER_AGAIN_S)
            offered &= {claim.signed for claim in waiting}
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            except TimeoutError:
                offered.clear()
            if self._offer_all:  # CometBFT starts with an empty pool; a block may have come out of order
                self._offer_all = False
                offered.clear()

    def _begin_to_offer(self) -> None:
        self._news.set()
        if self._offering is None or self._offering.done():
            self._offering = asyncio.create_task(self._offer(), name="konsil-ledger-offer")

    def _on_block(self, outcomes: Sequence[Outcome]) -> None:
        if any(outcome.entry is not None for outcome in outcomes):
            self._peering.look(self.state)
        waiting = len(self._claims.waiting)
        self._claims.decided(self.state, outcomes)
        if waiting and outcomes:
            self._offer_all |= any(outcome.error is not None for outcome in outcomes)
            self._news.set()

    def _on_misbehaviour(self, found: Sequence[Misbehaviour]) -> None:
        self._duties.accuse(found)

    def _why_slow(self) -> str:
        keepers = validators(self.state)
        # Who is gone is known from the lines at once, and from the engine a moment later.
        here = set(self._peering.connected) & self._site.mesh.ports().keys() | {self._name}
        away = [name for name in keepers if name not in here]
        if len(away) > may_fail(len(keepers)):
            return (
                f"Of {len(keepers)} members that keep this ledger, {len(away)} cannot be reached from "
                f"here ({', '.join(away[:20])}); it goes on once more than two thirds are there."
            )
        return self.problem or "The members' engines have not agreed on a block with it."


def describe(state: State) -> str:
    """Who keeps a cometbft ledger and what that means, in a plain sentence."""
    keepers = validators(state)
    spare = may_fail(len(keepers))
    lost = (
        f"any {spare} of them may fail or lie without harm"
        if spare
        else "all of them are needed: while one is away, nothing new is taken. Enrol a witness"
    )
    return (
        f"CometBFT ledger kept by {len(keepers)} members ({', '.join(keepers)}): each block needs the votes "
        f"of more than two thirds of them; {lost}. Every member replays the whole history."
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
