"""Blocks become entries: the same at every node, whatever the blocks are made of."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from konsil.core.rules import (
    Announce,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    SwarmSettings,
    Tick,
    Validate,
    Vote,
    initial_state,
    validators,
)
from konsil.errors import FrameError, KonsilError, Refused
from konsil.ledger.cometbft.application import (
    MAX_BLOCK_BYTES,
    MEMBER_BLOCK_BYTES,
    SEQUENCE_WINDOW,
    Application,
    chain_id,
    is_peer,
    key_address,
)
from konsil.ledger.history import replay_fully

START_S = 1_700_000_000
NAMES = ("lille", "lyon", "metz", "nice")
LAW = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def app_of(world) -> Application:
    return Application(world.genesis, world.verify)


def block(app, calls, time_s=START_S + 1):
    decided = app.finalize(app.position + 1, time_s, calls)
    app.commit()
    return decided


def free(_member, _cost):
    """No budget is asked."""


def long_call(world, name, sequence, text_bytes):
    """A call of some length: a vote to remove nobody, with a reason."""
    reason = "x" * text_bytes
    return world.signed(name, sequence, ProposeRemove("ghost", reason))


def record(name, key, **fields):
    return MemberRecord(name, f"spiffe://{name}.example/node", key.public, "a" * 64, "b" * 64, **fields)


# --- what is drawn ---------------------------------------------------------------------------------


@st.composite
def lives(draw):
    """(member, call) in order: numbered as they come, some of which the rules refuse."""
    calls = st.one_of(
        st.integers(0, 3).map(lambda n: Announce((f"h{n}.example:1",))),
        st.sampled_from(NAMES).map(ProposeRemove),
        st.builds(Vote, st.integers(1, 3), st.booleans()),
        st.booleans().map(Validate),
        st.just(Tick("aml")),
    )
    return draw(st.lists(st.tuples(st.sampled_from(NAMES), calls), max_size=14))


def signed_life(world, life):
    """The calls signed in order, each under the number that its member is at then."""
    app, made = app_of(world), []
    for name, call in life:
        signed = world.signed(name, app.state.members[name].sequence + 1, call)
        block(app, [signed])
        made.append(signed)
    return made


# --- the same at every node ------------------------------------------------------------------------


@LAW
@given(life=lives(), cuts=st.lists(st.integers(0, 4), max_size=30))
def test_any_split_into_blocks_gives_the_same_entries_and_app_hash(hospitals, life, cuts):
    calls = signed_life(hospitals, life)
    one, many = app_of(hospitals), app_of(hospitals)
    together = block(one, calls)
    entries, rest = [], list(calls)
    for size in cuts:
        entries += block(many, rest[:size]).entries
        rest = rest[size:]
    entries += block(many, rest).entries
    assert entries == together.entries
    assert (many.head, many.state) == (one.head, one.state)
    assert replay_fully(hospitals.genesis, entries, hospitals.verify) == (one.state, one.head)


def test_blocks_without_an_entry_leave_the_app_hash_as_it_is(hospitals):
    app = app_of(hospitals)
    before = block(app, []).app_hash
    refused = hospitals.signed("lyon", 1, Tick("no-such-study"))
    assert block(app, [refused, b"nonsense"]).app_hash == before
    assert block(app, []).app_hash == before
    assert app.position == 3
    assert block(app, [hospitals.signed("lyon", 1, hospitals.announcement(1))]).app_hash != before


def test_a_block_counts_only_once_it_is_committed(hospitals):
    app = app_of(hospitals)
    before = app.state, app.head, app.position
    calls = [hospitals.signed("lyon", 1, hospitals.announcement(1))]
    first = app.finalize(1, START_S, calls)
    assert (app.state, app.head, app.position) == before
    assert app.finalize(1, START_S, calls) == first, "shown again, as after a crash of the engine"
    app.commit()
    app.commit()
    assert (app.state.height, app.position) == (1, 1)


def test_time_never_runs_back_and_all_calls_of_a_block_have_its_time(hospitals):
    app = app_of(hospitals)
    first = block(app, [hospitals.signed("lyon", 1, hospitals.announcement(1))], START_S + 50)
    second = block(
        app,
        [
            hospitals.signed("lyon", 2, hospitals.announcement(2)),
            hospitals.signed("nice", 1, hospitals.announcement(1)),
        ],
        START_S + 20,
    )
    assert [entry.time_s for entry in first.entries + second.entries] == [START_S + 50] * 3


@LAW
@given(junk=st.lists(st.binary(max_size=300), max_size=5), life=lives(), draw=st.data())
def test_finalize_takes_any_bytes(hospitals, junk, life, draw):
    app = app_of(hospitals)
    calls = draw.draw(st.permutations(signed_life(hospitals, life) * 2 + junk))
    damaged = [bytes(b ^ (n == len(call) // 2) for n, b in enumerate(call)) for call in calls[:3]]
    decided = block(app, [*calls, *damaged])
    assert len(decided.outcomes) == len(calls) + len(damaged)
    for outcome in decided.outcomes:
        assert (outcome.entry is None) == (outcome.error is not None)
    state, head = replay_fully(hospitals.genesis, decided.entries, hospitals.verify)
    assert (state, head) == (app.state, app.head)


@pytest.mark.parametrize(
    "mistake", [KeyError("x"), ZeroDivisionError(), AttributeError("x"), AssertionError("x")]
)
def test_a_mistake_in_the_rules_refuses_the_call_and_stops_nobody(hospitals, monkeypatch, mistake):
    def broken(*_arguments):
        raise mistake

    monkeypatch.setattr("konsil.core.rules.contract.HANDLERS", {Announce: broken})
    app = app_of(hospitals)
    before = app.state
    decided = block(app, [hospitals.signed("lyon", 1, hospitals.announcement(1))])
    assert "rules broke" in str(decided.outcomes[0].error)
    assert app.state == before


def test_what_this_machine_alone_lacks_is_no_refusal(hospitals, monkeypatch):
    """Memory and depth differ from node to node: one that went on would have another state."""

    def broken(*_arguments):
        raise MemoryError

    monkeypatch.setattr("konsil.core.rules.contract.HANDLERS", {Announce: broken})
    with pytest.raises(MemoryError):
        app_of(hospitals).finalize(1, START_S, [hospitals.signed("lyon", 1, hospitals.announcement(1))])


# --- proposals -------------------------------------------------------------------------------------


@LAW
@given(life=lives(), draw=st.data(), room=st.one_of(st.just(MAX_BLOCK_BYTES), st.integers(-1, 3000)))
def test_whatever_prepare_gives_every_node_votes_for(hospitals, life, draw, room):
    app, other = app_of(hospitals), app_of(hospitals)
    calls = signed_life(hospitals, life)
    ahead = [hospitals.signed(name, n, hospitals.announcement(n)) for name in NAMES for n in (1, 2, 3, 5)]
    for node in (app, other):
        block(node, calls[: len(calls) // 2])
    waiting = draw.draw(
        st.permutations(calls + ahead + [b"junk", hospitals.signed("lyon", 900, Tick("aml"))])
    )
    chosen = app.prepare(waiting, room)
    assert other.process(chosen)
    assert sum(len(call) + 8 for call in chosen) <= max(room, 0)
    assert set(chosen) <= set(waiting)


def test_prepare_puts_a_members_calls_in_order_and_stops_at_a_gap(hospitals):
    app = app_of(hospitals)
    calls = {n: hospitals.signed("lyon", n, hospitals.announcement(n)) for n in (1, 2, 3, 5)}
    nice = hospitals.signed("nice", 1, hospitals.announcement(1))
    waiting = [calls[3], calls[5], nice, calls[2], calls[1], calls[2]]
    assert app.prepare(waiting, MAX_BLOCK_BYTES) == [calls[1], calls[2], calls[3], nice]


def test_one_member_cannot_fill_a_block(hospitals):
    app = app_of(hospitals)
    many = [long_call(hospitals, "lyon", n, 60_000) for n in range(1, 8)]
    nice = hospitals.signed("nice", 1, hospitals.announcement(1))
    chosen = app.prepare([*many, nice], MAX_BLOCK_BYTES)
    assert chosen == [*many[:4], nice]
    assert sum(map(len, many[:4])) <= MEMBER_BLOCK_BYTES < sum(map(len, many[:5]))
    assert app.process(chosen)
    assert not app.process(many[:5])


def test_a_call_that_does_not_fit_keeps_no_smaller_one_of_another_member_out(hospitals):
    app = app_of(hospitals)
    large = long_call(hospitals, "lyon", 1, 5000)
    small = hospitals.signed("nice", 1, hospitals.announcement(1))
    assert app.prepare([large, small], 1000) == [small]


def _proposals(world, other):
    announce = world.announcement
    first = world.signed("lyon", 1, announce(1))
    return {
        "a call twice": [first, first],
        "two calls under one number": [first, world.signed("lyon", 1, announce(2))],
        "out of order": [world.signed("lyon", 2, announce(2)), first],
        "a gap": [first, world.signed("lyon", 3, announce(3))],
        "ahead": [world.signed("lyon", 2, announce(2))],
        "far ahead": [world.signed("lyon", SEQUENCE_WINDOW + 1, announce(2))],
        "number 0": [world.signed("lyon", 0, announce(2))],
        "a number below": [world.signed("lyon", -1, announce(2))],
        "a stranger": [world.signed("mallory", 1, announce(1), key=world.keys["lyon"])],
        "another's key": [world.signed("lyon", 1, announce(1), key=world.keys["nice"])],
        "another swarm": [world.signed("lyon", 1, announce(1), swarm=other.digest)],
        "no call": [b"", first],
        "two forms of one call": [first + b" "],
        "a changed call": [first.replace(b"host-1", b"host-2")],
    }


@pytest.mark.parametrize(
    "what",
    [
        "a call twice",
        "two calls under one number",
        "out of order",
        "a gap",
        "ahead",
        "far ahead",
        "number 0",
        "a number below",
        "a stranger",
        "another's key",
        "another swarm",
        "no call",
        "two forms of one call",
        "a changed call",
    ],
)
def test_nobody_votes_for_a_block_with(hospitals, other_world, what):
    app = app_of(hospitals)
    proposals = _proposals(hospitals, other_world)
    assert app.process(proposals["a call twice"][:1])
    assert app.process([])
    assert not app.process(proposals[what])


# --- the pool --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"sequence": 0}, "replayed"),
        ({"sequence": SEQUENCE_WINDOW + 1}, "sequence_gap"),
        ({"name": "mallory", "signer": "lyon"}, "not_a_member"),
        ({"signer": "nice"}, "bad_signature"),
        ({"swarm": "f" * 64}, "other_swarm"),
    ],
)
def test_what_is_no_call_of_a_member_does_not_wait_and_costs_it_nothing(hospitals, change, code):
    paid = []
    name = change.get("name", "lyon")
    signed = hospitals.signed(
        name, change.get("sequence", 1), hospitals.announcement(1),
        key=hospitals.keys[change.get("signer", "lyon")], swarm=change.get("swarm", ""),
    )  # fmt: skip
    with pytest.raises(Refused) as caught:
        app_of(hospitals).check(signed, lambda *call: paid.append(call))
    assert caught.value.code == code
    assert not paid


def test_calls_wait_in_any_order_within_the_window(hospitals):
    app = app_of(hospitals)
    for number in (SEQUENCE_WINDOW, 1, 7):
        app.check(hospitals.signed("lyon", number, hospitals.announcement(number)), free)
    block(app, [hospitals.signed("lyon", 1, hospitals.announcement(1))])
    app.recheck(hospitals.signed("lyon", 7, hospitals.announcement(7)))
    with pytest.raises(Refused) as caught:
        app.recheck(hospitals.signed("lyon", 1, hospitals.announcement(1)))
    assert caught.value.code == "replayed"


def test_junk_does_not_wait(hospitals):
    with pytest.raises(FrameError):
        app_of(hospitals).check(b'{"swarm": "\\ud800"}', free)


@LAW
@given(data=st.binary(max_size=200))
def test_check_and_recheck_raise_nothing_else(hospitals, data):
    app = app_of(hospitals)
    for look in (lambda: app.check(data, free), lambda: app.recheck(data)):
        with pytest.raises(KonsilError):
            look()


# --- who decides -----------------------------------------------------------------------------------


def _pass(world, app, subject, by=("lille", "lyon")):
    """Calls by which a vote is opened and passed, in one block's order."""
    number = len(app.state.proposals) + 1
    at = {name: app.state.members[name].sequence for name in by}
    calls = [world.signed(by[0], at[by[0]] + 1, subject)]
    return calls + [world.signed(name, at[name] + 1, Vote(number, True)) for name in by[1:]]


def test_removal_takes_a_validator_off_and_admission_adds_none_until_it_says_so(hospitals):
    app = app_of(hospitals)
    before = hospitals.keys["nice"].public
    decided = block(app, _pass(hospitals, app, ProposeRemove("nice")))
    assert decided.updates == {before: 0}
    new = type(hospitals)(names=("x",), engine="cometbft").keys["x"]
    again = ProposeAdmit(record("nice", new))
    decided = block(app, _pass(hospitals, app, again))
    assert decided.updates == {}
    decided = block(
        app, [hospitals.signed("nice", app.state.members["nice"].sequence + 1, Validate(True), key=new)]
    )
    assert decided.updates == {new.public: 1}
    assert is_peer(app.state, key_address(new.public).hex())
    assert not is_peer(app.state, key_address(before).hex())


def test_a_key_changed_in_one_block_is_two_updates(hospitals):
    app = app_of(hospitals)
    new = type(hospitals)(names=("x",), engine="cometbft").keys["x"]
    out = _pass(hospitals, app, ProposeRemove("nice"))
    number, at = 2, {name: app.state.members[name].sequence + 1 for name in ("lille", "lyon")}
    back = [
        hospitals.signed("lille", at["lille"] + 1, ProposeAdmit(record("nice", new))),
        hospitals.signed("lyon", at["lyon"] + 1, Vote(number, True)),
        hospitals.signed("nice", app.state.members["nice"].sequence + 1, Validate(True), key=new),
    ]
    decided = block(app, out + back)
    assert all(outcome.error is None for outcome in decided.outcomes)
    assert decided.updates == {hospitals.keys["nice"].public: 0, new.public: 1}
    assert list(decided.updates.values()) == [0, 1]


def test_removed_and_admitted_with_the_same_key_in_one_block_is_no_update_until_it_does_not_validate(
    hospitals,
):
    app = app_of(hospitals)
    key = hospitals.keys["nice"]
    out = _pass(hospitals, app, ProposeRemove("nice"))
    at = {name: app.state.members[name].sequence + 1 for name in ("lille", "lyon")}
    back = [
        hospitals.signed("lille", at["lille"] + 1, ProposeAdmit(record("nice", key))),
        hospitals.signed("lyon", at["lyon"] + 1, Vote(2, True)),
    ]
    yes = hospitals.signed("nice", app.state.members["nice"].sequence + 1, Validate(True))
    assert block(app_of(hospitals), [*out, *back, yes]).updates == {}
    assert block(app, out + back).updates == {key.public: 0}


@LAW
@given(life=lives(), cuts=st.lists(st.integers(1, 4), max_size=14))
def test_the_engines_set_of_validators_is_the_rules_and_never_empty(hospitals, life, cuts):
    app = app_of(hospitals)
    engine = {hospitals.keys[name].public for name in validators(app.state)}
    rest = signed_life(hospitals, life)
    for size in [*cuts, len(rest)]:
        updates = block(app, rest[:size]).updates
        rest = rest[size:]
        gone = {key for key, power in updates.items() if not power}
        assert gone <= engine, "CometBFT stops at the removal of a validator that is none"
        assert not (set(updates) - gone) & engine
        engine = (engine - gone) | (set(updates) - gone)
        assert engine == {app.state.members[name].record.ledger_key for name in validators(app.state)}
        assert engine


def test_proof_names_the_member_that_has_the_key_now(hospitals):
    """A key may have been another member's before it was removed."""
    app = app_of(hospitals)
    key = hospitals.keys["lille"].public
    members = app.state.members
    gone = replace(members["lille"], active=False, validates=False)
    heir = replace(members["nice"], record=replace(members["nice"].record, ledger_key=key))
    app.go_to(replace(app.state, members=members | {"lille": gone, "nice": heir}), app.head, 1)
    assert app.member_at(key_address(key)) == "nice"
    app.go_to(replace(app.state, members=members | {"lille": gone}), app.head, 1)
    assert app.member_at(key_address(key)) == "lille"
    assert app.member_at(bytes(20)) == ""


def test_the_chains_name_is_the_genesis_own_and_fits(hospitals, other_world):
    assert chain_id(hospitals.genesis) != chain_id(other_world.genesis)
    assert len(chain_id(hospitals.genesis)) <= 50
    changed = replace(hospitals.genesis, settings=SwarmSettings(proposal_s=61))
    assert chain_id(changed) != chain_id(hospitals.genesis)
    assert initial_state(hospitals.genesis).genesis.startswith(
        chain_id(hospitals.genesis).removeprefix("konsil-")
    )
