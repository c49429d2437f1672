"""The contract as a whole: the state at the beginning, and what each call makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.rules.agreement import check_swarm_settings
from konsil.core.rules.calls import (
    Accept,
    Agree,
    Alive,
    Announce,
    Call,
    Commit,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Renew,
    Report,
    Score,
    Tick,
    Validate,
    Verdict,
    Vote,
)
from konsil.core.rules.collecting import alive, commit, tick_collecting
from konsil.core.rules.disputes import decide, dispute, verdict
from konsil.core.rules.members import (
    VALIDATED,
    announce,
    close_votes,
    propose,
    validate,
    vote,
    why_not_a_record,
)
from konsil.core.rules.merging import accept, publish, report, tick_merging
from konsil.core.rules.record_digests import record_digest
from konsil.core.rules.refusing import SLUG, require, running, study_named
from konsil.core.rules.renewal import renew
from konsil.core.rules.scores import score
from konsil.core.rules.signing import Entry, canonical, decode_signed
from konsil.core.rules.state import Genesis, Member, State
from konsil.core.rules.studies import agree, enter, finish, initialise, leave, propose_study, put
from konsil.errors import ConfigError, JournalCorrupt, KonsilError, Refused

Handler = Callable[[State, str, Any, int], State]

_json = msgspec.json.Encoder(order="deterministic")
_states = msgspec.json.Decoder(State)


def check_genesis(genesis: Genesis) -> None:
    """See that founding members can start a swarm from this.

    Raises:
        ConfigError: says what is wrong with it.
    """
    _found(genesis.version == 1, f"it is of version {genesis.version}; this program knows version 1")
    _found(
        SLUG.fullmatch(genesis.swarm) is not None, "`swarm` must be lower-case letters, digits and hyphens"
    )
    _found(genesis.created_s >= 0, "`created_s` is before 1970")
    _found(bool(genesis.members), "it has no members")
    for record in genesis.members:
        why = why_not_a_record(record)
        _found(not why, f"member '{record.name[:64]}' cannot found it: {why}")
    for field in ("name", "spiffe_id", "ledger_key"):
        values = [getattr(record, field) for record in genesis.members]
        twice = sorted({value for value in values if values.count(value) > 1})
        _found(not twice, f"two members have the same {field}: {', '.join(twice)[:200]}")
    names = [record.name for record in genesis.members]
    _found(names == sorted(names), "its members are not sorted by name")
    _found(not all(record.witness for record in genesis.members), "all of its members are witnesses")
    if genesis.engine == "local":
        _found(genesis.operator in names, f"its operator '{genesis.operator[:64]}' is not a member")
    else:
        _found(not genesis.operator, f"a ledger kept by {genesis.engine} has no operator")
    check_swarm_settings(genesis.settings)


def _found(held: bool, what: str) -> None:
    if not held:
        raise ConfigError(
            f"This genesis cannot found a swarm: {what}.",
            safe="Nothing was founded.",
            do="Assemble it again from the members' cards: `konsil swarm found`.",
        )


def genesis_digest(genesis: Genesis) -> str:
    """The digest that founding members compare, and that every signed call names."""
    return bytes_digest(_json.encode(genesis), "genesis")


def initial_state(genesis: Genesis) -> State:
    """The state before the first call.

    Raises:
        ConfigError: the genesis cannot found a swarm.
    """
    check_genesis(genesis)
    return State(
        genesis=genesis_digest(genesis),
        engine=genesis.engine,
        operator=genesis.operator,
        settings=genesis.settings,
        members={
            record.name: Member(record=record, validates=genesis.engine in VALIDATED)
            for record in genesis.members
        },
        now_s=genesis.created_s,
    )


def encode_state(state: State) -> bytes:
    """The state as canonical JSON."""
    return _json.encode(state)


def decode_state(data: bytes) -> State:
    """A state from canonical JSON, from a source that is trusted (the member's own node).

    Raises:
        JournalCorrupt: it cannot be read.
    """
    try:
        return _states.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JournalCorrupt(f"The ledger's state cannot be read: {error}.") from error


def state_digest(state: State) -> str:
    """The digest that every entry of the history carries.

    Each accepted round goes in by a digest of its own: what can no longer change is not read again for
    every call, so a call in a study's thousandth round costs what it cost in the first.
    """
    studies = {
        name: [replace(study, history=()), [record_digest(record) for record in study.history]]
        for name, study in state.studies.items()
    }
    return bytes_digest(_json.encode([replace(state, studies={}), studies]), "state")


def tick(state: State, _caller: str, call: Tick, now_s: int) -> State:
    """Draw the consequences of a deadline that has passed."""
    state = close_votes(state, now_s)
    study, current = running(study_named(state, call.study))
    wait_s = current.deadline_s - now_s
    if wait_s > 0:
        raise Refused(
            "too_early",
            f"The next deadline of study '{call.study}' is in {wait_s} s.",
            do="Tick again then, if nothing happens before.",
            wait_s=wait_s,
        )
    if current.phase == "collecting":
        return put(state, tick_collecting(study, current, now_s))
    if current.dispute is not None:
        return put(state, decide(study, now_s))
    return put(state, tick_merging(study, current, now_s))


HANDLERS: Final[dict[type, Handler]] = {
    ProposeAdmit: propose,
    ProposeRemove: propose,
    ProposeSwarmSettings: propose,
    ProposeStudySettings: propose,
    Vote: vote,
    Announce: announce,
    Validate: validate,
    Renew: renew,
    ProposeStudy: propose_study,
    Agree: agree,
    Initialise: initialise,
    Enter: enter,
    Leave: leave,
    Commit: commit,
    Alive: alive,
    Publish: publish,
    Accept: accept,
    Report: report,
    Tick: tick,
    Dispute: dispute,
    Verdict: verdict,
    Score: score,
    Finish: finish,
}


def apply(state: State, caller: str, sequence: int, call: Call, now_s: int) -> State:
    """What a call makes of the state.

    Args:
        state: the state before it.
        caller: the member whose key signed it; the signature was checked.
        sequence: the caller's number for this call: its last one plus 1.
        call: the call.
        now_s: the ledger's time, in unix seconds; never before the state's.

    Raises:
        Refused: with a code for each reason; the state, the sequence included, stays as it was.
    """
    _in_turn(state, caller, sequence)
    now_s = max(now_s, state.now_s)
    after = HANDLERS[type(call)](state, caller, canonical(call), now_s)
    numbered = replace(after.members[caller], sequence=sequence)
    return replace(after, members=after.members | {caller: numbered}, height=state.height + 1, now_s=now_s)


def _in_turn(state: State, caller: str, sequence: int) -> None:
    """See that a call is the next one of an active member."""
    member = state.members.get(caller)
    if member is None or not member.active:
        raise Refused("not_a_member", f"'{caller[:64]}' is not an active member.", safe="")
    last = member.sequence
    if sequence == last + 1:
        return
    require(
        sequence > last,
        "replayed",
        f"Call {sequence} of '{caller}' was taken before; its last one is {last}.",
        sequence=last,
    )
    raise Refused(
        "sequence_gap",
        f"Call {sequence} of '{caller}' comes before call {last + 1} has.",
        safe="",
        do="Send the calls in order.",
        sequence=last,
    )


def apply_entry(state: State, entry: Entry, previous: str) -> State:
    """Replay one entry; the call's signature is to be checked besides.

    Args:
        state: the state before it.
        entry: the entry.
        previous: digest of the entry before it; of the genesis for the first.

    Raises:
        JournalCorrupt: the entry does not follow; says at which height and why.
    """
    _follows(entry.height == state.height + 1, entry, f"it comes after height {state.height}")
    _follows(entry.previous == previous, entry, "it names another entry as the one before it")
    _follows(entry.time_s >= state.now_s, entry, "its time is before the one of the entry before it")
    try:
        signed = decode_signed(entry.signed)
        _follows(signed.swarm == state.genesis, entry, "its call was signed for another swarm")
        state = apply(state, signed.caller, signed.sequence, signed.call, entry.time_s)
    except JournalCorrupt:
        raise
    except KonsilError as error:
        raise _corrupt(entry, f"its call does not hold: {error.what}") from error
    _follows(state_digest(state) == entry.state, entry, "its state is not what its calls give")
    return state


def _follows(held: bool, entry: Entry, why: str) -> None:
    if not held:
        raise _corrupt(entry, why)


def _corrupt(entry: Entry, why: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"The ledger's entry at height {entry.height} does not follow: {why}.",
        safe="The history up to the height before it holds.",
        do="Compare with another member's history: `konsil ledger verify`.",
        height=entry.height,
    )
