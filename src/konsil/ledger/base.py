"""What every ledger engine gives a node: the state, a way to call, and to be told of news."""

from __future__ import annotations

from typing import Protocol

from konsil.core.rules.calls import Call
from konsil.core.rules.state import State


class Ledger(Protocol):
    """A member's view of the shared history, replayed and checked on this machine."""

    @property
    def state(self) -> State:
        """The contract's state at ``state.height``."""
        ...

    @property
    def description(self) -> str:
        """What keeps this ledger, in a plain sentence for people (who operates it, what may fail)."""
        ...

    async def submit(self, call: Call) -> int:
        """Sign a call with the member's key and put it on the ledger.

        Returns once the call is in ``state`` here; the height at which it stands.

        Raises:
            Refused: the contract refused it; the state is unchanged.
            LedgerUnreachable: no answer in time; it may or may not have been taken, and submitting
                the same call again is safe.
        """
        ...

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the height is above ``after`` or the time is up; the height then."""
        ...

    async def close(self) -> None:
        """Stop following; nothing accepted is lost."""
        ...
