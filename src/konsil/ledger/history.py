"""Calls become entries, and entries become state again: the contract with signatures checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from konsil.core.rules import (
    Call,
    Entry,
    Genesis,
    SignedCall,
    State,
    apply,
    apply_entry,
    decode_signed,
    encode_signed,
    entry_digest,
    genesis_digest,
    initial_state,
    signing_bytes,
    state_digest,
)
from konsil.errors import IdentityError, JournalCorrupt, KonsilError, Refused

Verify = Callable[[str, bytes, bytes], bool]
"""(public key as hex, bytes, signature) -> whether it is that key's signature over these bytes."""


class Step(NamedTuple):
    """An entry of a history, its call, and the state after it."""

    entry: Entry
    signed: SignedCall
    state: State


REMEMBERED = 8192
"""Signatures that were right: of the calls of several full blocks."""


def remembering(verify: Verify) -> Verify:
    """The same answers, but a signature that was right is not computed again. For one thread."""
    right: dict[bytes, None] = {}

    def check(key: str, data: bytes, signature: bytes) -> bool:
        what = hashlib.sha256(b"%s %s %s" % (key.encode(), signature.hex().encode(), data)).digest()
        if what in right:
            return True
        if not verify(key, data, signature):
            return False
        right[what] = None
        if len(right) > REMEMBERED:
            del right[next(iter(right))]
        return True

    return check


class Key(Protocol):
    """What signs a member's calls. ``public``: the Ed25519 public key as hex."""

    @property
    def public(self) -> str:
        """The public key, 64 hex digits."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature over some bytes: 64 bytes."""
        ...


def next_sequence(state: State, name: str, key: Key) -> int:
    """The number of a member's next call.

    Raises:
        Refused: "not_a_member".
        IdentityError: the ledger knows the member by another key.
    """
    member = state.members.get(name)
    if member is None or not member.active:
        raise Refused("not_a_member", f"'{name}' is not an active member of this swarm.")
    if member.record.ledger_key != key.public:
        raise IdentityError(
            f"The ledger knows '{name}' by the key {member.record.ledger_key}, not by {key.public}.",
            safe="Nothing was signed.",
            do="Use the directory whose card the members have, or be admitted anew with this one.",
        )
    return member.sequence + 1


def sign_call(swarm: str, key: Key, name: str, sequence: int, call: Call) -> bytes:
    """A call, signed and encoded; always the same bytes for the same arguments.

    Raises:
        FrameError: the call is over the limit.
        Refused: "bad_call", for numbers that no message can carry.
    """
    signature = key.sign(signing_bytes(swarm, name, sequence, call))
    return encode_signed(SignedCall(swarm, name, sequence, call, signature))


def put_on(state: State, head: str, signed: bytes, now_s: int, verify: Verify) -> tuple[Entry, State]:
    """The entry that puts a signed call on a history, and the state after it.

    Args:
        state: the state before it.
        head: digest of the entry before it; of the genesis for the first.
        signed: the encoded call.
        now_s: the ledger's time.
        verify: checks signatures.

    Raises:
        FrameError: not a signed call, or over the limit.
        Refused: of another swarm, by a stranger, with another's signature, out of sequence, or against
            the contract.
    """
    read = decode_signed(signed)
    if read.swarm != state.genesis:
        raise Refused(
            "other_swarm",
            f"The call was signed for another swarm, whose genesis is {read.swarm[:64]}.",
            do="Compare genesis digests.",
        )
    why = _why_not_signed(state, read, verify)
    if why:
        raise Refused("bad_signature", f"The call was not taken: {why}.")
    after = apply(state, read.caller, read.sequence, read.call, now_s)
    entry = Entry(
        height=after.height, time_s=after.now_s, signed=signed, previous=head, state=state_digest(after)
    )
    return entry, after


def follow_on(state: State, entry: Entry, previous: str, verify: Verify) -> State:
    """The state after an entry whose link, signature, rules and state digest were all checked.

    Raises:
        JournalCorrupt: the entry does not follow; says at which height and why.
    """
    after = apply_entry(state, entry, previous)
    why = _why_not_signed(state, decode_signed(entry.signed), verify)
    if why:
        raise _does_not_hold(entry.height, why)
    return after


def replay(genesis: Genesis, entries: Iterable[Entry], verify: Verify) -> State:
    """The state after a history, checked as far as ``replaying`` does.

    Raises:
        JournalCorrupt: the history does not replay; names the height.
    """
    state = initial_state(genesis)
    for step in replaying(genesis, entries, verify):
        state = step.state
    return state


def replaying(genesis: Genesis, entries: Iterable[Entry], verify: Verify) -> Iterator[Step]:
    """A history from this member's own journal, whose links the journal has checked, call by call.

    Every signature and every rule is checked; the state's digest, which costs as much as the state is
    large, only at the end: each entry is covered by the next one's link, and was checked when it was written.

    Raises:
        JournalCorrupt: the history does not replay; names the height.
    """
    state = initial_state(genesis)
    last: Entry | None = None
    for entry in entries:
        try:
            read = decode_signed(entry.signed)
            why = _why_not_signed(state, read, verify)
            state = apply(state, read.caller, read.sequence, read.call, entry.time_s)
        except KonsilError as error:
            raise _does_not_hold(entry.height, error.what.rstrip(".")) from error
        if why or read.swarm != state.genesis or state.now_s != entry.time_s:
            raise _does_not_hold(entry.height, why or "it is of another swarm, or its time runs backwards")
        last = entry
        yield Step(entry, read, state)
    if last is not None and state_digest(state) != last.state:
        raise _does_not_hold(last.height, "the state is not what the calls up to here give")


def replay_fully(genesis: Genesis, entries: Iterable[Entry], verify: Verify) -> tuple[State, str]:
    """The state after a history and its last entry's digest, with everything recomputed for every entry.

    Raises:
        JournalCorrupt: the history does not replay; names the height.
    """
    state, previous = initial_state(genesis), genesis_digest(genesis)
    for entry in entries:
        state = follow_on(state, entry, previous, verify)
        previous = entry_digest(entry)
    return state, previous


def _why_not_signed(state: State, read: SignedCall, verify: Verify) -> str:
    """Why a call's signature does not count in this state; "" when it does."""
    member = state.members.get(read.caller)
    if member is None or not member.active:
        return f"'{read.caller[:64]}' is not an active member"
    statement = signing_bytes(read.swarm, read.caller, read.sequence, read.call)
    if not verify(member.record.ledger_key, statement, read.signature):
        return f"its signature is not that of '{read.caller}'"
    return ""


def _does_not_hold(height: int, why: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"The ledger's entry at height {height} does not hold: {why}.",
        safe="The history up to the height before it holds.",
        do="Compare with another member's history: `konsil ledger verify`.",
        height=height,
    )
