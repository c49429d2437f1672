"""What a member's node says on the ledger by itself: that it validates, and who was proven to cheat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog

from konsil.core.rules import Call, ProposeRemove, State, Validate
from konsil.core.rules.members import active
from konsil.errors import KonsilError, LedgerUnreachable
from konsil.ledger.cometbft.application import Misbehaviour
from konsil.ledger.cometbft.rpc import Rpc
from konsil.ledger.replica import Replica

LOOK_S = 5.0
"""How long the engine is given to catch up before it is asked again, where no block tells."""

WATCH_S = 3600.0
"""A look at least this often, news or not."""

TURN_S = 10.0
"""How long each member, in the order of names, leaves it to those before it to accuse a cheat."""

_log = structlog.get_logger(__name__)


class Duties:
    """Runs beside the ledger.

    Args:
        me: this member.
        validate: whether its node is to decide on blocks.
        rpc: asks whether the engine has all blocks.
        replica: this member's history.
        submit: puts a call on the ledger.
    """

    def __init__(
        self, me: str, validate: bool, rpc: Rpc, replica: Replica, submit: Callable[[Call], Awaitable[int]]
    ) -> None:
        """Nothing is said before ``start``."""
        self._me = me
        self._validate = validate
        self._rpc = rpc
        self._replica = replica
        self._submit = submit
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """See to it that this member validates, or does not, as its settings say."""
        self._spawn(self._enrol(), "konsil-engine-enrol")

    def accuse(self, found: Sequence[Misbehaviour]) -> None:
        """Put before the members what CometBFT has proof of."""
        for one in found:
            self._spawn(self._accuse(one), "konsil-engine-accuse")

    async def close(self) -> None:
        """Say nothing more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- validating --------------------------------------------------------------------------------

    async def _enrol(self) -> None:
        while True:
            state = self._replica.state
            if self._wants_a_word(state):
                await self._when_caught_up()
                if self._wants_a_word(self._replica.state):
                    await self._say(Validate(self._validate))
            await self._replica.changed(state.height, WATCH_S)

    def _wants_a_word(self, state: State) -> bool:
        member = state.members.get(self._me)
        return member is not None and member.active and member.validates != self._validate

    # --- accusing ----------------------------------------------------------------------------------

    async def _accuse(self, found: Misbehaviour) -> None:
        """Open a vote to remove the cheat, unless another member does."""
        await self._when_caught_up()
        loop = asyncio.get_running_loop()
        others = [name for name in active(self._replica.state) if name != found.member]
        if self._me not in others:
            return
        until_s = loop.time() + TURN_S * others.index(self._me)
        reason = f"{found.what} at height {found.height} of the ledger's engine, which has proof of it"
        while True:
            state = self._replica.state
            if found.member not in active(state) or _was_accused(state, found.member, reason):
                return
            left_s = until_s - loop.time()
            if left_s <= 0:
                break
            await self._replica.changed(state.height, left_s)
        await self._say(ProposeRemove(found.member, reason))

    # --- both --------------------------------------------------------------------------------------

    async def _when_caught_up(self) -> None:
        while True:
            try:
                told = await self._rpc.ask("status")
                if not told["sync_info"]["catching_up"]:
                    return
            except (LedgerUnreachable, LookupError, TypeError):
                pass  # it is just starting, or its answer is none
            await self._replica.changed(self._replica.state.height, LOOK_S)

    async def _say(self, call: Call) -> None:
        try:
            await self._submit(call)
        except KonsilError as error:
            _log.warning("a duty on the ledger was not done", call=type(call).__name__, why=str(error))
            await asyncio.sleep(LOOK_S)  # not at once again, whatever changes meanwhile

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _was_accused(state: State, member: str, reason: str) -> bool:
    return any(
        isinstance(proposal.subject, ProposeRemove)
        and proposal.subject.member == member
        and (proposal.outcome == "open" or proposal.subject.reason == reason)
        for proposal in state.proposals
    )
