"""What is signed, and the chain: one encoding, and a change anywhere is found at its height."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from konsil.core.rules import (
    MAX_CALL_BYTES,
    Agree,
    Entry,
    ProposeRemove,
    ProposeStudy,
    SignedCall,
    Tick,
    Vote,
    apply,
    apply_entry,
    canonical,
    decode_entry,
    decode_signed,
    decode_state,
    encode_entry,
    encode_signed,
    encode_state,
    entry_digest,
    genesis_digest,
    initial_state,
    settings_digest,
    signing_bytes,
    state_digest,
)
from konsil.errors import FrameError, JournalCorrupt, Refused

SIGNATURE = bytes(64)
SWARM = "0" * 64


def signed(call=None, **changes):
    return replace(SignedCall(SWARM, "a", 1, call or Tick("aml"), SIGNATURE), **changes)


def history(swarm):
    """A short history: its genesis, its entries, and the state after them."""
    world = swarm()
    study = world.settings
    calls = [
        ("a", 1, ProposeStudy(study)),
        ("b", 1, Agree("aml", settings_digest(study))),
        ("a", 2, ProposeRemove("d")),
    ]
    genesis = swarm.genesis()
    state = initial_state(genesis)
    previous, entries = genesis_digest(genesis), []
    for height, (caller, sequence, call) in enumerate(calls, 1):
        state = apply(state, caller, sequence, call, world.now_s + height)
        data = encode_signed(SignedCall(genesis_digest(genesis), caller, sequence, call, SIGNATURE))
        entries.append(Entry(height, world.now_s + height, data, previous, state_digest(state)))
        previous = entry_digest(entries[-1])
    return genesis, entries, state


def replay(genesis, entries):
    state, previous = initial_state(genesis), genesis_digest(genesis)
    for entry in entries:
        state = apply_entry(state, entry, previous)
        previous = entry_digest(entry)
    return state


def test_a_history_replays_to_the_same_state(swarm):
    genesis, entries, state = history(swarm)
    again = replay(genesis, [decode_entry(encode_entry(entry)) for entry in entries])
    assert state_digest(again) == state_digest(state)
    assert again == state


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"height": 5}, "it comes after height 1"),
        ({"previous": "f" * 64}, "another entry as the one before"),
        ({"time_s": 5}, "its time is before"),
        ({"time_s": 2_000_000}, "its state is not"),
        ({"state": "f" * 64}, "its state is not"),
        ({"signed": b"{}"}, "cannot be read"),
        ({"signed": encode_signed(signed())}, "another swarm"),
    ],
)
def test_a_changed_entry_is_found_at_its_height(swarm, changes, why):
    genesis, entries, _ = history(swarm)
    entries[1] = replace(entries[1], **changes)
    with pytest.raises(JournalCorrupt, match=why) as caught:
        replay(genesis, entries)
    assert caught.value.fields["height"] == entries[1].height


def test_an_entry_with_a_call_that_the_contract_refuses_is_corrupt(swarm):
    genesis, entries, _ = history(swarm)
    data = encode_signed(SignedCall(genesis_digest(genesis), "b", 1, Vote(9, yes=True), SIGNATURE))
    with pytest.raises(
        JournalCorrupt, match=r"height 2 does not follow: its call does not hold: There is no proposal 9\."
    ):
        replay(genesis, [entries[0], replace(entries[1], signed=data)])


def test_a_change_in_the_past_changes_every_later_digest(swarm):
    _, entries, _ = history(swarm)
    assert entry_digest(entries[0]) != entry_digest(replace(entries[0], time_s=entries[0].time_s + 1))


def test_a_signature_covers_swarm_caller_sequence_and_call():
    base = ("0" * 64, "a", 1, Tick("aml"))
    others = [
        ("1" * 64, *base[1:]),
        (base[0], "b", *base[2:]),
        (*base[:2], 2, base[3]),
        (*base[:3], Tick("amlx")),
    ]
    assert len({signing_bytes(*case) for case in [base, *others]}) == 5


def test_a_call_is_signed_as_everyone_reads_it(swarm):
    settings = replace(swarm().settings, rule_options={"f": 1})
    read = replace(settings, rule_options={"f": 1.0})
    assert signing_bytes(SWARM, "a", 1, ProposeStudy(settings)) == signing_bytes(
        SWARM, "a", 1, ProposeStudy(read)
    )
    assert decode_signed(encode_signed(signed(ProposeStudy(settings)))).call == ProposeStudy(read)


def test_a_call_that_cannot_be_written_down_is_refused():
    with pytest.raises(Refused, match="cannot be written down") as caught:
        canonical(ProposeRemove("d", "\ud800"))
    assert caught.value.code == "bad_call"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 60_000,
        encode_signed(signed())[:-1],
        encode_signed(signed()) + b" ",
        encode_signed(signed()).replace(b'"sequence":1', b'"sequence":1.0'),
        encode_signed(signed()).replace(b"}", b',"extra":1}', 1),
        encode_signed(signed()).replace(b'"tick"', b'"tock"'),
        msgspec.json.encode(signed(signature=bytes(63)), order="deterministic"),
        msgspec.json.encode(signed(), order="sorted")[::-1],
    ],
)
def test_bytes_that_are_not_a_canonical_signed_call_are_not_taken(data):
    with pytest.raises(FrameError, match="cannot be read"):
        decode_signed(data)


def test_a_call_over_the_limit_is_neither_written_nor_read():
    with pytest.raises(FrameError, match="over the limit"):
        encode_signed(signed(ProposeRemove("d", "x" * MAX_CALL_BYTES)))
    with pytest.raises(FrameError, match="over the limit"):
        decode_signed(b" " * (MAX_CALL_BYTES + 1))


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_an_entry_that_is_cut_short_is_not_taken(swarm, cut):
    data = encode_entry(history(swarm)[1][0])
    with pytest.raises(FrameError, match="cannot be read"):
        decode_entry(data[:cut])


def test_a_state_is_read_back_as_it_was(swarm):
    world = swarm().start().round().commit("a")
    assert decode_state(encode_state(world.state)) == world.state
    with pytest.raises(JournalCorrupt):
        decode_state(b"{}")
