"""The contract in one place, seen by each member through a line of its own: late, lossy, halted for a while.

The local engine can keep the ledger of a world, too (see ``node``); this one has the faults that an engine
of many members would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from konsil.core.rules import Call, State, apply
from konsil.errors import LedgerUnreachable, Refused
from konsil.simulation.nodes.loop import SimulatedLoop

SUBMIT_S = 30.0
"""As at a follower of the local engine."""

AGAIN_S = 0.5
"""After this a call without an answer is sent again."""

ASTRAY = 0.5
"""How often what a node had sent when it died never arrives."""

Told = Callable[[str, Call, State, State], None]
"""(caller, call, state before, state after): a call that the contract took."""


@dataclass(frozen=True)
class _Sent:
    """A call under its number: sent again and again until an answer comes."""

    caller: str
    sequence: int
    call: Call
    lives: Callable[[], bool] = lambda: True


class SharedContract:
    """The contract, and everyone who looks at it.

    Args:
        loop: the world's.
        seed: for the lines' luck.
        state: at the beginning.
        clock: the ledger's time, in unix seconds.
        told: hears of every call that was taken.
        delay_s: one way, on average.
        lost: share of calls, and of answers, that are lost.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        seed: str,
        state: State,
        clock: Callable[[], float],
        told: Told,
        *,
        delay_s: float,
        lost: float,
    ) -> None:
        """Nobody looks yet."""
        self.loop = loop
        self.states = [state]
        self._seed = seed
        self._clock = clock
        self._told = told
        self._delay_s = delay_s
        self._lost = lost
        self._taken: dict[tuple[str, int], tuple[Call, int]] = {}
        self._lots: dict[str, random.Random] = {}
        self._halted: Counter[str] = Counter()
        self._views: dict[str, SharedLedger] = {}

    @property
    def state(self) -> State:
        """The contract's state."""
        return self.states[-1]

    def put(self, caller: str, call: Call) -> int:
        """Put a call on the ledger at once; its height.

        Raises:
            Refused: as the contract says.
        """
        return self._take(_Sent(caller, self.state.members[caller].sequence + 1, call))

    def halt(self, name: str) -> None:
        """A member reaches the ledger no more."""
        self._halted[name] += 1

    def release(self, name: str) -> None:
        """Undo one ``halt``."""
        self._halted[name] -= 1
        if name in self._views:
            self._tell(name)

    def look(self, view: SharedLedger) -> None:
        """A member's node has started: from now on this is where it looks."""
        self._views[view.name] = view
        self._tell(view.name)

    def send(self, sent: _Sent, answer: asyncio.Future[int]) -> None:
        """Let a call travel; the answer comes back, unless one of them is lost."""
        if not self._is_lost(sent.caller):
            self.loop.call_later(self.takes_s(sent.caller), self._arrive, sent, answer)

    def _arrive(self, sent: _Sent, answer: asyncio.Future[int]) -> None:
        if self._halted[sent.caller] > 0:
            return
        if not sent.lives() and self._lots_of(sent.caller).random() < ASTRAY:
            return  # its node has died meanwhile, and the line with it
        outcome: int | Refused
        try:
            outcome = self._take(sent)
        except Refused as refused:
            outcome = refused
        if not self._is_lost(sent.caller):
            self.loop.call_later(self.takes_s(sent.caller), _answer, answer, outcome)

    def _take(self, sent: _Sent) -> int:
        known = self._taken.get((sent.caller, sent.sequence))
        if known is not None and known[0] == sent.call:
            return known[1]
        before = self.state
        after = apply(before, sent.caller, sent.sequence, sent.call, int(self._clock()))
        self.states.append(after)
        self._taken[sent.caller, sent.sequence] = sent.call, after.height
        self._told(sent.caller, sent.call, before, after)
        for name in sorted(self._views):
            self._tell(name)
        return after.height

    def _tell(self, name: str) -> None:
        self.loop.call_later(self.takes_s(name), self._show, self._views[name], self.state.height)

    def _show(self, view: SharedLedger, height: int) -> None:
        if self._halted[view.name] <= 0:
            view.show(height)

    def takes_s(self, name: str) -> float:
        """How long a message to or from a member takes now."""
        return self._lots_of(name).expovariate(1 / self._delay_s)

    def _is_lost(self, name: str) -> bool:
        return self._lots_of(name).random() < self._lost

    def _lots_of(self, name: str) -> random.Random:
        if name not in self._lots:
            self._lots[name] = random.Random(f"{self._seed}, ledger of {name}")  # noqa: S311 - reproducible
        return self._lots[name]


class SharedLedger:
    """A member's view of the shared contract; see ``konsil.ledger.base.Ledger``."""

    def __init__(self, contract: SharedContract, name: str, height: int) -> None:
        """Begin at a height that this member has seen before."""
        self.name = name
        self._contract = contract
        self._height = height
        self._news = asyncio.Event()
        self._turn = asyncio.Lock()
        self._closed = False
        contract.look(self)

    @property
    def state(self) -> State:
        """The contract's state, as far as this member has heard."""
        return self._contract.states[self._height]

    @property
    def description(self) -> str:
        """What keeps this ledger."""
        return "A contract in memory that all members share."

    def show(self, height: int) -> None:
        """News has come."""
        if height > self._height:
            self._height = height
            self._news.set()
            self._news = asyncio.Event()

    async def submit(self, call: Call) -> int:
        """Put a call on the ledger; see ``konsil.ledger.base.Ledger``.

        Raises:
            Refused: the contract refused it.
            LedgerUnreachable: no answer in time.
        """
        try:
            async with asyncio.timeout(SUBMIT_S), self._turn:
                return await self._submit(call)
        except TimeoutError:
            raise LedgerUnreachable(f"No answer from the ledger within {SUBMIT_S:g} s.") from None

    async def _submit(self, call: Call) -> int:
        sent = self._numbered(call)
        while True:
            answer = self._contract.loop.create_future()
            if not self._closed:
                self._contract.send(sent, answer)
            try:
                async with asyncio.timeout(AGAIN_S):
                    height = int(await answer)
            except TimeoutError:
                continue
            except Refused as refused:
                if refused.code not in {"replayed", "sequence_gap"}:
                    raise
                # Of an earlier life of this node: what it sent has the number, and is to be heard of first.
                await self.changed(self._height, AGAIN_S)
                sent = self._numbered(call)
                continue
            while self._height < height:
                await self._news.wait()
            return height

    def _numbered(self, call: Call) -> _Sent:
        """The call under this member's next number."""
        number = self.state.members[self.name].sequence + 1
        return _Sent(self.name, number, call, lambda: not self._closed)

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the height is above ``after`` or the time is up; the height then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._height <= after:
                    await self._news.wait()
        return self._height

    def silence(self) -> None:
        """Say nothing more: this node has crashed."""
        self._closed = True

    async def close(self) -> None:
        """Say nothing more."""
        self.silence()


def _answer(answer: asyncio.Future[int], outcome: int | Refused) -> None:
    if answer.done():
        return
    if isinstance(outcome, Refused):
        answer.set_exception(outcome)
        answer.exception()  # seen: nobody may be waiting any more
    else:
        answer.set_result(outcome)
