"""Answers CometBFT: blocks become entries in this member's own journal, and those who wait are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from konsil.core.rules import Entry, Genesis, SignedCall, entry_digest
from konsil.errors import FrameError, JournalCorrupt, KonsilError, Refused
from konsil.ledger.budget import Budgets
from konsil.ledger.cometbft.abci import message
from konsil.ledger.cometbft.application import (
    RULES_VERSION,
    Application,
    Decided,
    Misbehaviour,
    Outcome,
    chain_id,
    is_peer,
)
from konsil.ledger.cometbft.pool import Numbers
from konsil.ledger.history import Verify, remembering
from konsil.ledger.replica import Replica

FRESH_S = 2.0
"""A block's time is when the members agreed on the one before it. After a silence as long as this, a block
without calls comes first, so that no call is stamped with the time of what was agreed long ago."""

FRESHENED_S = 10.0
"""After such a block this is enough: where blocks take seconds, calls must not wait for ever."""

_ACCEPT, _REJECT = 1, 2
_NEW = 0
_REFUSED = 1
_MISBEHAVIOUR = {1: "signed two different votes", 2: "helped to forge a header"}
_FILTER_ID = "/p2p/filter/id/"
_FILTER = "/p2p/filter/"

_exec_result = message("ExecTxResult")
_update = message("ValidatorUpdate")

_log = structlog.get_logger(__name__)


class Keeper:
    """The application behind the socket: what CometBFT decided is on disk before it is told so.

    Attributes:
        app: the contract, as far as blocks have come.
        problem: why blocks cannot be kept; "" while all is well.
    """

    def __init__(
        self,
        genesis: Genesis,
        replica: Replica,
        verify: Verify,
        me: str,
        on_block: Callable[[Sequence[Outcome]], None],
        on_misbehaviour: Callable[[Sequence[Misbehaviour]], None],
    ) -> None:
        """``on_block``: told what became of a block's calls, once it is kept."""
        self._genesis = genesis
        self._verify = remembering(
            verify
        )  # each call is looked at when it waits, is proposed, and is decided
        self._replica = replica
        self._me = me
        self._on_block = on_block
        self._on_misbehaviour = on_misbehaviour
        self._budgets = Budgets()
        self._numbers = Numbers()
        self._replaying = True
        self._decided: Decided | None = None
        self._block_s = 0.0
        self._freshened = False
        self._clock_ahead_s: float | None = None
        self.app = Application(genesis, self._verify)
        self.problem = ""

    def take_up(self) -> None:
        """Go on where this member's journal ends."""
        journal = self._replica.journal
        if journal.position:
            self.app.go_to(self._replica.state, journal.head, journal.position)

    async def begin_anew(self) -> None:
        """Have every block applied again from the first, and compared with the journal.

        Raises:
            LedgerError: the disk refuses.
        """
        self.app = Application(self._genesis, self._verify)
        # Until all of the journal was compared, a new start begins anew as well: CometBFT, whose blocks are
        # gone, stops when it is told of a block that it does not have yet.
        await self._replica.in_worker(self._replica.journal.forget_position)

    def now_s(self) -> int:
        """The ledger's time, as far as blocks tell; this machine's before the first."""
        ahead_s = self._clock_ahead_s
        now_s = time.time() if ahead_s is None else ahead_s + time.monotonic()
        return max(int(now_s), self._replica.state.now_s)

    async def answer(self, kind: str, request: Any) -> dict[str, Any]:
        """The fields of the answer to a request.

        Raises:
            KonsilError: it cannot be answered; CometBFT stops.
        """
        handler = getattr(self, f"_{kind}", None)
        if handler is None:
            return {}  # snapshots and vote extensions, of which this application has none
        answer: dict[str, Any] = await handler(request)
        return answer

    # --- what it asks ------------------------------------------------------------------------------

    async def _echo(self, request: Any) -> dict[str, Any]:
        return {"message": request.message}

    async def _info(self, _request: Any) -> dict[str, Any]:
        app = self.app
        self._replaying = True  # CometBFT has just started: what it shows now was decided some time ago
        self._numbers.clear()
        return {
            "data": "konsil",
            "app_version": RULES_VERSION,
            "last_block_height": app.position,
            "last_block_app_hash": bytes.fromhex(app.head),
        }

    async def _init_chain(self, request: Any) -> dict[str, Any]:
        own = chain_id(self._genesis)
        if request.chain_id != own:
            raise FrameError(
                f"CometBFT begins {request.chain_id!r}, not {own!r}.",
                safe="Nothing was begun.",
                do="Compare genesis digests; `engine/` may be another swarm's.",
            )
        return {"app_hash": bytes.fromhex(self.app.head)}

    async def _query(self, request: Any) -> dict[str, Any]:
        """Whether a peer may connect: a node of a member may; by which address does not matter."""
        path: str = request.path
        if path.startswith(_FILTER_ID):
            # By this member's own history: the application may be applying it from the first block again.
            stranger = not is_peer(self._replica.state, path.removeprefix(_FILTER_ID))
            return {"code": _REFUSED, "log": "not an active member's node"} if stranger else {}
        return {} if path.startswith(_FILTER) else {"code": _REFUSED, "log": "nothing is asked here"}

    async def _check_tx(self, request: Any) -> dict[str, Any]:
        try:
            if request.type == _NEW:
                self.app.check(request.tx, self._pay)
            else:
                self.app.recheck(request.tx)
        except KonsilError as error:
            return _refusal(error)
        return {}

    async def _prepare_proposal(self, request: Any) -> dict[str, Any]:
        self._replaying = False
        silent_s = time.monotonic() - self._block_s
        if silent_s > (FRESHENED_S if self._freshened else FRESH_S):
            return {}
        return {"txs": self.app.prepare(request.txs, request.max_tx_bytes)}

    async def _process_proposal(self, request: Any) -> dict[str, Any]:
        self._replaying = False
        return {"status": _ACCEPT if self.app.process(request.txs) else _REJECT}

    async def _finalize_block(self, request: Any) -> dict[str, Any]:
        self._see_time(request)
        decided = self.app.finalize(request.height, request.time.seconds, request.txs)
        self._decided = decided
        if request.misbehavior:
            self._tell_misbehaviour(request.misbehavior)
        return {
            "tx_results": [_exec_result(**_result(outcome)) for outcome in decided.outcomes],
            "validator_updates": [
                _update(pub_key={"ed25519": bytes.fromhex(key)}, power=power)
                for key, power in decided.updates.items()
            ],
            "app_hash": decided.app_hash,
        }

    async def _commit(self, _request: Any) -> dict[str, Any]:
        decided, self._decided = self._decided, None
        if decided is None:
            raise FrameError(
                "CometBFT commits a block that it has not shown.",
                safe="Nothing was kept of it.",
                do="Use CometBFT 0.38: see `konsil doctor`.",
            )
        entries = decided.entries
        if entries:
            await self._keep(entries, decided.height)
        self.app.commit()
        self._numbers.decided(decided.outcomes, self.app.state)
        fresh = [entry for entry in entries if entry.height > self._replica.state.height]
        if fresh:
            self._replica.publish(fresh, self.app.state)
        self._on_block(decided.outcomes)
        return {}

    # --- inside ------------------------------------------------------------------------------------

    async def _keep(self, entries: Sequence[Entry], height: int) -> None:
        try:
            await self._replica.in_worker(partial(_write, self._replica, entries, height))
        except KonsilError as error:
            self.problem = str(error)
            raise
        self.problem = ""

    def _pay(self, read: SignedCall, signed: bytes) -> None:
        if self._numbers.waits(read, signed):
            return
        if read.caller != self._me:  # its own are counted where they are submitted
            self._budgets.pay(read.caller, len(signed), time.monotonic())
        self._numbers.take(read, signed)

    def _see_time(self, block: Any) -> None:
        """Learn the ledger's clock: a block's time is when the one before it was decided.

        Not from blocks that CometBFT shows again or catches up with: those were decided some time ago.
        """
        if self._replaying:
            self._block_s = 0.0
            return
        now_s = time.monotonic()
        if self._block_s:
            self._clock_ahead_s = block.time.seconds + block.time.nanos / 1e9 - self._block_s
        self._freshened = not block.txs and now_s - self._block_s > FRESH_S
        self._block_s = now_s

    def _tell_misbehaviour(self, found: Any) -> None:
        told = [
            Misbehaviour(
                self.app.member_at(one.validator.address),
                _MISBEHAVIOUR.get(one.type, "broke the engine's protocol"),
                one.height,
            )
            for one in found
        ]
        for one in told:
            _log.error("a member's node broke the protocol", member=one.member, what=one.what)
        self._on_misbehaviour(told)


def _write(replica: Replica, entries: Sequence[Entry], position: int) -> None:
    """In the worker: add what is new, and see that what is there already is the same."""
    journal = replica.journal
    known = [entry for entry in entries if entry.height <= journal.height]
    for entry in known:
        if journal.digest_at(entry.height) != entry_digest(entry):
            raise JournalCorrupt(
                f"The members' blocks and this member's journal {journal.path.name} differ at entry "
                f"{entry.height}.",
                safe="Nothing was changed.",
                do="Compare `konsil ledger verify` with other members, then stop the node and run "
                "`konsil ledger repair`.",
                height=entry.height,
            )
    new = entries[len(known) :]
    whole = known and known[-1].height == journal.height
    if new or (whole and position > journal.position):
        journal.append(new, position)


def _result(outcome: Outcome) -> dict[str, Any]:
    return _refusal(outcome.error) if outcome.error is not None else {}


def _refusal(error: KonsilError) -> dict[str, Any]:
    """A refusal's code is the same at every node; its words may differ, and are not compared."""
    space = error.code if isinstance(error, Refused) else error.kind
    return {
        "code": _REFUSED,
        "codespace": space,
        "log": str(error),
    }
