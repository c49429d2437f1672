"""A member's own calls on their way into a block: signed once, several at a time, none ever twice.

A call keeps its number until a block has decided about that number. Were a later call signed anew under the
number of a refused one, its first form could still come into a block, and it would count twice. The number of
a refused call goes to one that changes nothing: then it is over, whoever shows it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from konsil.core.rules import Alive, Announce, Call, State, Tick, apply, decode_signed
from konsil.core.rules.state import Member
from konsil.errors import FrameError, KonsilError, LedgerUnreachable, Refused
from konsil.ledger.budget import Budgets
from konsil.ledger.cometbft.application import SEQUENCE_WINDOW, Outcome
from konsil.ledger.history import Key, next_sequence, sign_call

WRONG_SEQUENCE = ("replayed", "sequence_gap")
"""The contract's words for a call whose number is not its member's next one."""


OWN_COST = 9
"""Eighths of its length that an own call costs here. The other members count too, from other moments on, and
what some of them do not take into their pools comes late into a block."""


_HARMLESS = (Announce, Tick, Alive)
"""What may be shown again after it was refused: whether a deadline has passed the rules decide, and of those
who tick at once one is first. An announcement is also what closes a gap, and makes no other."""


class Claim(NamedTuple):
    """A signed call and where it stands once a block says so; the height is 0 where another call of this
    member took its number (its keys are used elsewhere too).
    """

    sequence: int
    call: Call
    signed: bytes
    height: asyncio.Future[int]


class Claims:
    """What of this member's calls is undecided. Used from the event loop."""

    def __init__(self, name: str, key: Key) -> None:
        """Nothing is on its way."""
        self._name = name
        self._key = key
        self._pending: dict[int, Claim] = {}  # in the order of their numbers
        self._budgets = Budgets()

    @property
    def waiting(self) -> list[Claim]:
        """The undecided calls in the order of their numbers."""
        return list(self._pending.values())

    def make(self, state: State, call: Call, now_s: int) -> Claim:
        """The claim for a call: one that is on its way already, or a new one, signed under the next number.

        Args:
            state: the contract's state here.
            call: the call.
            now_s: the ledger's time.

        Raises:
            Refused: the rules refuse it after the state here and the calls that are on their way.
            Refused: "too_fast", with the seconds until there is room again.
            LedgerUnreachable: too many are on their way.
            IdentityError: the ledger knows the member by another key.
        """
        for claim in self._pending.values():
            if claim.call == call:
                return claim
        if len(self._pending) >= SEQUENCE_WINDOW:
            raise LedgerUnreachable(
                f"{len(self._pending)} calls of '{self._name}' wait for a block already.",
                safe="This one was not signed.",
                do="Try again once the ledger goes on: `konsil node status`.",
            )
        first = next_sequence(state, self._name, self._key)
        sequence = max([first - 1, *self._pending]) + 1
        apply(self._after(state, first, now_s), self._name, sequence, call, now_s)
        claim = self._sign(state.genesis, sequence, call)
        cost = len(claim.signed) * OWN_COST // 8
        self._budgets.pay(self._name, cost, asyncio.get_running_loop().time())
        self._pending[sequence] = claim
        return claim

    def decided(self, state: State, outcomes: Sequence[Outcome]) -> None:
        """Tell the calls that wait what a block made of them. ``state``: after the block."""
        refused = False
        for outcome in outcomes:
            claim = self._claim_of(outcome)
            if claim is None:
                continue
            if outcome.entry is not None:
                self._settle(claim, outcome.entry.height if outcome.signed == claim.signed else 0)
            elif outcome.signed == claim.signed and _is_final(outcome.error):
                self._settle(claim, outcome.error)
                refused |= not isinstance(claim.call, _HARMLESS)
        member = state.members.get(self._name)
        if member is None or not member.active:
            # No block takes them now, and none may come into one should the member be admitted again.
            self.fail(Refused("not_a_member", f"'{self._name}' is not an active member of this swarm."))
            return
        self._close_gap(state.genesis, member, refused=refused)

    def fail(self, error: KonsilError) -> None:
        """Nothing will be decided any more."""
        for claim in self.waiting:
            self._settle(claim, error)

    # --- inside ------------------------------------------------------------------------------------

    def _after(self, state: State, sequence: int, now_s: int) -> State:
        """The state as it will be with the calls that are on their way, where all goes as expected."""
        for claim in self._pending.values():
            with contextlib.suppress(Refused):  # a block will say so
                state = apply(
                    self._numbered(state, claim.sequence - 1), self._name, claim.sequence, claim.call, now_s
                )
            sequence = claim.sequence + 1
        return self._numbered(state, sequence - 1)

    def _numbered(self, state: State, sequence: int) -> State:
        """The state as if this were the number of the member's last call."""
        numbered = replace(state.members[self._name], sequence=sequence)
        return replace(state, members=state.members | {self._name: numbered})

    def _claim_of(self, outcome: Outcome) -> Claim | None:
        """The claim whose number a block decided about."""
        if not self._pending:
            return None
        try:
            read = decode_signed(outcome.signed)
        except FrameError:  # nobody's
            return None
        return self._pending.get(read.sequence) if read.caller == self._name else None

    def _sign(self, swarm: str, sequence: int, call: Call) -> Claim:
        signed = sign_call(swarm, self._key, self._name, sequence, call)
        return Claim(sequence, call, signed, asyncio.get_running_loop().create_future())

    def _settle(self, claim: Claim, result: int | KonsilError | None) -> None:
        del self._pending[claim.sequence]
        if claim.height.done():
            return
        if isinstance(result, int):
            claim.height.set_result(result)
        elif result is not None:
            claim.height.set_exception(result)
            claim.height.exception()  # seen: nobody may be waiting for it

    def _close_gap(self, swarm: str, member: Member, *, refused: bool) -> None:
        """Give a refused call's number to one that changes nothing: those after it may follow, and what was
        refused cannot be shown again, by whoever lies, once the rules would take it.
        """
        following = member.sequence + 1
        if following not in self._pending and (self._pending or refused):
            filler = self._sign(swarm, following, Announce(member.record.addresses))
            self._pending = {following: filler} | self._pending


def _is_final(error: KonsilError | None) -> bool:
    """A call that came before its predecessor is not refused: it is offered again."""
    return not (isinstance(error, Refused) and error.code in WRONG_SEQUENCE)
