"""What studies and rounds come to in the contract, where a machine comes too rarely."""

from __future__ import annotations

import pytest
from contract_cast import digest
from contract_story import (
    AML,
    FIVE,
    GENESIS,
    MIXED,
    OUTER,
    OWN,
    accept,
    begun,
    commit,
    merging,
    publish,
)
from contract_twin import GAS, Twin, account
from msgspec.structs import replace

from konsil.core.rules import (
    Alive,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    MemberRecord,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    Publish,
    Report,
    Score,
    Tick,
    Verdict,
    Vote,
)
from konsil.errors import Refused
from konsil.ledger.ethereum.calldata import decode_call, encode_call
from konsil.ledger.ethereum.words import NO_DIGEST, Words, encode

# --- studies ---------------------------------------------------------------------------------------


def test_nobody_proposes_more_studies_than_there_are_places():
    twin = Twin(GENESIS)
    for i in range(64):
        assert twin.do("aachen", ProposeStudy(replace(AML, name=f"s{i}"))) == ""
    assert twin.do("aachen", ProposeStudy(replace(AML, name="more"))) == "too_many_studies"
    twin.now_s += 30 * 86_400
    assert twin.do("aachen", ProposeStudy(replace(AML, name="more"))) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"min_members": 6},
        {"min_members": 0, "quorum": 0},
        {"quorum": 4},
        {"rounds": 0},
        {"rounds": 1_000_001},
        {"silence_s": 0},
        {"silence_s": 301},
        {"merge_s": 0},
        {"give_up_s": 316_224_001},
        {"patience_s": 316_224_001},
        {"stop_minutes": 5_270_401.0},
        {"rule": "multi_krum"},
        {"rule": "trimmed_mean", "rule_options": {"f": 2.0}},
        {"members": ("aachen", "nobody")},
        {"name": "A"},
        {"outer": OUTER.outer, "quorum": 2},
    ],
)
def test_settings_that_contradict_themselves_are_refused_by_both(change):
    assert Twin(GENESIS).do("aachen", ProposeStudy(replace(AML, **change))) == "bad_settings"


@pytest.mark.parametrize("change", [{"stop_minutes": 0.001}, {"stop_minutes": 1e-320}])
def test_a_study_that_the_contract_cannot_keep_is_refused_before_it_is_sent(change):
    with pytest.raises(Refused, match="cannot keep such a study"):
        encode_call(ProposeStudy(replace(AML, **change)), 1, Twin(GENESIS).directory)


@pytest.mark.parametrize("index", range(3))
def test_texts_that_are_no_settings_are_a_dead_call_which_no_reader_takes(index):
    twin = Twin(GENESIS)
    texts = ["", "{}", '{"local":[],"members":["aachen"],"outer":null}']
    data = encode_call(ProposeStudy(AML), 1, twin.directory)
    numbers = [Words(data[4:]).number(at) for at in range(17)]
    dead = data[:4] + encode([*numbers, texts[index], Words(data[4:]).text(18)])
    assert twin.chain.send(account("aachen"), dead) == ""
    with pytest.raises(Refused, match=r"bad_settings|cannot"):
        decode_call(dead, twin.directory, twin.settings_digest)


def test_a_size_and_digests_are_bounded():
    twin = Twin(GENESIS)
    twin.do("aachen", ProposeStudy(AML))
    for size in (0, (1 << 50) + 1):
        assert twin.do("aachen", Initialise("aml", digest(1), digest(2), size)) == "bad_size"
    assert twin.do("aachen", Initialise("aml", "", digest(2), 1)) == "bad_digest"
    assert twin.do("aachen", Initialise("aml", digest(1), digest(2), 1 << 50)) == ""


def test_a_study_ends_when_all_who_take_part_have_finished():
    twin = begun()
    for name in FIVE[:4]:
        assert twin.do(name, Finish("aml", "snapshot")) == ""
    assert twin.do("erlangen", Leave("aml")) == ""
    assert twin.do("aachen", Finish("aml", "active")) == ""
    assert twin.state.studies["aml"].ended.startswith("All who took part")


def test_a_study_changes_its_settings_from_the_next_round_on():
    twin = merging()
    twin.do("aachen", ProposeStudySettings(replace(AML, rounds=2, merge_s=90)))
    for name in ("bonn", "celle"):
        assert twin.do(name, Vote(1, yes=True)) == ""
    publish(twin, "aml")
    accept(twin, "aml")
    assert twin.state.studies["aml"].settings.merge_s == 90
    commit(twin, "aml", FIVE)
    publish(twin, "aml")
    accept(twin, "aml")
    assert twin.state.studies["aml"].phase == "finished"


# --- rounds ----------------------------------------------------------------------------------------


def test_a_rule_that_mixes_needs_a_matrix_and_another_has_none():
    twin = merging()
    part = twin.state.studies["aml"].open.parts[0]
    said = Publish("aml", 1, 1, 0, digest("part"), digest("gram"))
    assert twin.do(part.leader, said) == "no_gram"
    assert twin.do(part.leader, replace(said, digest="", gram="")) == "bad_digest"
    twin = merging(MIXED, FIVE[:4])
    part = twin.state.studies["mixed"].open.parts[0]
    said = Publish("mixed", 1, 1, 0, digest("part"))
    assert twin.do(part.leader, said) == "bad_digest"
    assert twin.do(part.leader, replace(said, gram=digest("gram"))) == ""


@pytest.mark.parametrize("odd", [(), (0,), (0, 1), (0, 1, 2), (1, 3)])
def test_parts_mixed_by_different_matrices_are_dealt_to_others(odd):
    twin = merging(OWN)
    for index, part in enumerate(twin.state.studies["own"].open.parts):
        gram = digest("odd") if index in odd else ""
        assert twin.do(part.leader, Publish("own", 1, 1, index, digest(index), gram)) == ""
    assert (twin.state.studies["own"].open.attempt == 1) == (not odd)


def test_a_dispute_strikes_a_leader_and_a_second_one_is_refused():
    twin = merging()
    publish(twin, "aml")
    parts = twin.state.studies["aml"].open.parts
    cheat = parts[0].leader
    one, *others = [name for name in FIVE if name != cheat]
    assert twin.do(cheat, Dispute("aml", 1, 1, 0, 0)) == "own_part"
    mine = next(index for index, part in enumerate(parts) if part.leader == others[0])
    assert twin.do(one, Dispute("aml", 1, 1, mine, 4 * mine)) == ""
    assert twin.do(others[1], Dispute("aml", 1, 1, 0, 0)) == "dispute_open"
    assert twin.do(others[0], Report("aml", 1, 1, (others[0],))) == "under_dispute"
    for name in (cheat, *others[:2]):
        assert twin.do(name, Verdict("aml", 1, 1, mine, 4 * mine, wrong=False)) == ""
    assert twin.do(one, Dispute("aml", 1, 1, 0, 0)) == "second_dispute"
    assert twin.do(others[0], Dispute("aml", 1, 1, 0, 0)) == ""
    assert twin.do(others[0], Verdict("aml", 1, 1, 0, 0, wrong=False)) == "second_verdict"
    for name in (one, others[1]):
        assert twin.do(name, Verdict("aml", 1, 1, 0, 0, wrong=True)) == ""
    assert twin.state.studies["aml"].participants[cheat].struck
    assert twin.do(cheat, Enter("aml")) == "struck"


def test_who_is_let_in_by_a_later_attempt_has_the_patience_that_the_others_had():
    twin = merging(AML, FIVE[:3])
    twin.now_s += 250
    assert twin.do("aachen", Report("aml", 1, 1, ("aachen",))) == ""
    opened_s = twin.state.studies["aml"].open.opened_s
    assert twin.do("aachen", Enter("aml")) == ""
    for later_s in (290, 340, 390, 440, 490):
        twin.now_s = opened_s + later_s
        assert twin.do("aachen", Alive("aml", 1, 0.5)) == ""
    assert twin.state.studies["aml"].open.expected["aachen"] == opened_s + 300 + 250
    twin.now_s = opened_s + 600
    assert twin.do("bonn", Tick("aml")) == ""
    assert twin.state.studies["aml"].open.absent["aachen"] == "too slow"


def test_a_round_without_its_quorum_is_given_up_in_the_end():
    twin = begun()
    commit(twin, "aml", FIVE[:2])
    for _ in range(100):
        if twin.state.studies["aml"].phase != "running":
            break
        twin.now_s = twin.state.studies["aml"].open.deadline_s
        assert twin.do("aachen", Tick("aml")) == ""
    assert "given up" in twin.state.studies["aml"].ended


def test_a_round_whose_parts_nobody_publishes_is_given_up_in_the_end():
    twin = merging()
    for _ in range(100):
        if twin.state.studies["aml"].phase != "running":
            break
        twin.now_s = twin.state.studies["aml"].open.deadline_s
        assert twin.do("aachen", Tick("aml")) == ""
        for name in FIVE:
            twin.do(name, Enter("aml"))
    assert "given up" in twin.state.studies["aml"].ended


def test_a_score_is_taken_once_and_as_late_after_two_rounds():
    twin = merging()
    said = Score("aml", 1, 10, 0.5, {"auc": 0.75, "f1": -0.0})
    for number in range(1, 4):
        publish(twin, "aml")
        accept(twin, "aml")
        commit(twin, "aml", FIVE)
        if number == 1:
            assert twin.do("aachen", said) == ""
            assert twin.do("aachen", said) == "second_score"
            assert twin.do("bonn", replace(said, examples=0)) == "bad_examples"
            assert twin.do("bonn", replace(said, examples=10**12 + 1)) == "bad_examples"
    assert twin.do("bonn", said) == ""
    assert twin.state.studies["aml"].history[0].scores["bonn"].late


def test_a_removal_reaches_a_study_at_its_own_time_though_it_is_touched_much_later():
    twin = merging()
    twin.do("aachen", ProposeRemove("celle"))
    for name in ("bonn", "dresden"):
        twin.do(name, Vote(1, yes=True))
    removed_s = twin.now_s
    twin.now_s += 25
    assert twin.do("aachen", Tick("aml")) == "too_early"
    assert twin.state.studies["aml"].open.phase_since_s == removed_s
    publish(twin, "aml")
    accept(twin, "aml")
    assert twin.state.studies["aml"].history[0].absent["celle"] == "removed"


def test_sixty_four_members_make_a_round():
    names = tuple(f"m{i:02}" for i in range(64))
    records = tuple(
        MemberRecord(name, f"spiffe://{name}.example/node", *(digest(f"{name} {kind}") for kind in "kbc"))
        for name in names
    )
    twin = merging(replace(AML, quorum=3), names, replace(GENESIS, members=records))
    publish(twin, "aml")
    accept(twin, "aml")
    assert len(twin.state.studies["aml"].history[0].roster) == 64
    most = {name: max(gas) for name, gas in twin.chain.gas.items() if not name.startswith("put")}
    assert max(most.values()) < GAS // 4, most
    assert NO_DIGEST.hex() != twin.state.studies["aml"].accepted


def test_calls_of_a_round_stay_far_below_a_blocks_gas():
    twin = merging()
    for number in range(1, 4):
        publish(twin, "aml")
        accept(twin, "aml")
        if number < 3:
            commit(twin, "aml", FIVE)
    calls = {name: most for name, most in twin.chain.gas.items() if not name.startswith("put")}
    assert {"Commit", "Publish", "Accept", "Enter"} <= set(calls)
    assert all(max(most) < GAS // 20 for most in calls.values()), calls
