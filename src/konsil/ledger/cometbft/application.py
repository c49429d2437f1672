"""The contract as CometBFT's application: block by block, and nothing that another node could do otherwise.

No I/O: what is decided comes out as values. Every node that is given the same blocks makes the same entries
of them, so the application's hash, by which CometBFT compares nodes, is the digest of the last entry: the
whole history and the state. It holds no height, else every empty block would change it and ask for one more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from konsil.core.rules import (
    MAX_CALL_BYTES,
    Entry,
    Genesis,
    SignedCall,
    State,
    decode_signed,
    entry_digest,
    genesis_digest,
    initial_state,
    signing_bytes,
    validators,
)
from konsil.errors import IdentityError, KonsilError, LedgerError, Refused
from konsil.ledger.history import Verify, put_on

RULES_VERSION = 1
"""Of the contract, as the engine's genesis names it: nodes whose rules differ must not keep one ledger."""

SEQUENCE_WINDOW = 64
"""How far ahead of its member's last call a call may wait in the pool: they may arrive in any order."""

MEMBER_BLOCK_BYTES = 256 * 1024
"""What one member may put into one block: whoever proposes it cannot fill it with calls of its own."""

POWER = 1
"""The voting power of every validator: one member, one vote."""

Pay = Callable[[SignedCall, bytes], None]
"""(call, its bytes) -> nothing, or Refused: whether a member may have its call waiting here now."""


class Misbehaviour(NamedTuple):
    """What CometBFT has proof of: ``member`` signed two votes, or helped to forge a header, at ``height``."""

    member: str
    what: str
    height: int


class Outcome(NamedTuple):
    """What became of a call in a block: the entry, or why there is none."""

    signed: bytes
    entry: Entry | None
    error: KonsilError | None


class Decided(NamedTuple):
    """What a block did. ``height``: of the block. ``updates``: validators that changed, ledger key (hex) ->
    power.
    """

    height: int
    outcomes: list[Outcome]
    updates: dict[str, int]
    app_hash: bytes

    @property
    def entries(self) -> list[Entry]:
        """What goes on the history."""
        return [outcome.entry for outcome in self.outcomes if outcome.entry is not None]


class Application:
    """The state after the last block, and what the next one makes of it.

    Attributes:
        state: after the last committed block.
        head: digest of the last entry; of the genesis when there is none.
        position: the height of the last block that is known to be in ``state``.
    """

    def __init__(self, genesis: Genesis, verify: Verify) -> None:
        """At the beginning of a history."""
        self.genesis = genesis
        self.state = initial_state(genesis)
        self.head = genesis_digest(genesis)
        self.position = 0
        self._verify = verify
        self._staged: tuple[State, str, int] | None = None

    def go_to(self, state: State, head: str, position: int) -> None:
        """Take up a history from this member's own journal."""
        self.state, self.head, self.position = state, head, position
        self._staged = None

    # --- what waits in the pool --------------------------------------------------------------------

    def check(self, signed: bytes, pay: Pay) -> None:
        """See that a call may wait in the pool. The rules are asked when it stands in a block: another node,
        a block further, may see it otherwise, and what only one pool holds comes late into a block.

        Raises:
            KonsilError: it is no call of a member of this swarm, or it was taken before.
        """
        read = self._of_member(signed)
        pay(read, signed)

    def recheck(self, signed: bytes) -> None:
        """See, after a block, that a call may still wait.

        Raises:
            KonsilError: as ``check``.
        """
        self._in_window(decode_signed(signed))

    def _of_member(self, signed: bytes) -> SignedCall:
        read = decode_signed(signed)
        if read.swarm != self.state.genesis:
            raise Refused("other_swarm", "The call was signed for another swarm.")
        self._in_window(read)
        key = self.state.members[read.caller].record.ledger_key
        statement = signing_bytes(read.swarm, read.caller, read.sequence, read.call)
        if not self._verify(key, statement, read.signature):
            raise Refused("bad_signature", f"The call's signature is not that of '{read.caller}'.")
        return read

    def _in_window(self, read: SignedCall) -> None:
        member = self.state.members.get(read.caller)
        if member is None or not member.active:
            raise Refused("not_a_member", f"'{read.caller[:64]}' is not an active member.")
        if not member.sequence < read.sequence <= member.sequence + SEQUENCE_WINDOW:
            raise Refused(
                "replayed" if read.sequence <= member.sequence else "sequence_gap",
                f"Call {read.sequence} of '{read.caller}' does not follow its last one, {member.sequence}.",
                sequence=member.sequence,
            )

    # --- proposals ---------------------------------------------------------------------------------

    def prepare(self, waiting: Sequence[bytes], max_bytes: int) -> list[bytes]:
        """The calls for a block: each member's in the order of their numbers, without gaps."""
        queues: dict[str, dict[int, bytes]] = {}
        for signed in waiting:
            try:
                read = self._of_member(signed)
            except KonsilError:
                continue  # left in the pool, where the next look after a block finds it
            queues.setdefault(read.caller, {}).setdefault(read.sequence, signed)
        chosen: list[bytes] = []
        for caller, queue in queues.items():
            sequence, own_bytes = self.state.members[caller].sequence + 1, 0
            while signed := queue.get(sequence, b""):
                own_bytes += len(signed)
                cost = len(signed) + _FRAMING_BYTES
                if own_bytes > MEMBER_BLOCK_BYTES or cost > max_bytes:
                    break  # of this member; another's may be shorter
                max_bytes -= cost
                chosen.append(signed)
                sequence += 1
        return chosen

    def process(self, calls: Sequence[bytes]) -> bool:
        """Whether a proposed block may be voted for: signed calls of members, in order, and not too many.

        It depends on the last block and this one only: whatever honest nodes judge differently halts them.
        """
        last: dict[str, int] = {}
        total: dict[str, int] = {}
        for signed in calls:
            try:
                read = self._of_member(signed)
            except KonsilError:
                return False
            caller = read.caller
            if read.sequence != last.get(caller, self.state.members[caller].sequence) + 1:
                return False
            last[caller] = read.sequence
            total[caller] = total.get(caller, 0) + len(signed)
            if total[caller] > MEMBER_BLOCK_BYTES:
                return False
        return True

    # --- blocks ------------------------------------------------------------------------------------

    def finalize(self, height: int, time_s: int, calls: Sequence[bytes]) -> Decided:
        """Apply a decided block; it counts once ``commit`` is called."""
        state, head = self.state, self.head
        outcomes: list[Outcome] = []
        for signed in calls:
            try:
                entry, state = put_on(state, head, signed, time_s, self._verify)
            except KonsilError as error:
                outcomes.append(Outcome(signed, None, error))
                continue
            except _MISTAKES as error:
                # The same at every node, and no reason for all of them to stop.
                mistake = LedgerError(
                    f"The rules broke on this call: {error!r}.",
                    safe="It changed nothing.",
                    do="Tell the developers: it is the same at every node.",
                )
                outcomes.append(Outcome(signed, None, mistake))
                continue
            head = entry_digest(entry)
            outcomes.append(Outcome(signed, entry, None))
        self._staged = state, head, height
        return Decided(height, outcomes, _changed(self.state, state), bytes.fromhex(head))

    def commit(self) -> None:
        """Go over to the state after the block that was finalized last."""
        if self._staged is not None:
            self.state, self.head, self.position = self._staged
            self._staged = None

    # --- who is who --------------------------------------------------------------------------------

    def member_at(self, address: bytes) -> str:
        """The member whose ledger key has this address in CometBFT; "" for nobody's.

        A key may have been that of a member that was removed since, which proof may be about as well.
        """
        found = ""
        for name, member in self.state.members.items():
            if key_address(member.record.ledger_key) == address:
                if member.active:
                    return name
                found = name
        return found


_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a mistake in the rules raises. Not what one machine alone may lack, as memory: whoever took that for a
refusal would have another state than the others."""

_FRAMING_BYTES = 8
"""What a call costs in a block beside its own bytes: tag and length."""

MAX_BLOCK_BYTES = 1024 * 1024
"""Of a block: a dozen of the longest calls, thousands of common ones."""

if MAX_CALL_BYTES > MEMBER_BLOCK_BYTES or MEMBER_BLOCK_BYTES > MAX_BLOCK_BYTES:
    raise AssertionError("a call must fit into its member's share of a block")


def chain_id(genesis: Genesis) -> str:
    """The chain's name in CometBFT, which has 50 characters at most."""
    return f"konsil-{genesis_digest(genesis)[:32]}"


def is_peer(state: State, node_id: str) -> bool:
    """Whether a node of CometBFT is an active member's."""
    return any(
        member.active and key_address(member.record.ledger_key).hex() == node_id.lower()
        for member in state.members.values()
    )


def key_address(ledger_key: str) -> bytes:
    """By which 20 bytes CometBFT knows an Ed25519 key, as validator and as node."""
    try:
        return hashlib.sha256(bytes.fromhex(ledger_key)).digest()[:20]
    except ValueError as error:
        raise IdentityError(
            f"{ledger_key[:80]!r} is not a ledger key.",
            safe="Nothing was taken from it.",
            do="A ledger key is an Ed25519 public key in hex.",
        ) from error


def _changed(before: State, after: State) -> dict[str, int]:
    if before.members is after.members:
        return {}
    was = {before.members[name].record.ledger_key for name in validators(before)}
    now = {after.members[name].record.ledger_key for name in validators(after)}
    return dict.fromkeys(sorted(was - now), 0) | dict.fromkeys(sorted(now - was), POWER)
