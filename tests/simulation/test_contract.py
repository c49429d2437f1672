"""The contract keeps the rules: machines drive both, stories reach what machines come to too rarely."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from blake3 import blake3
from contract_machine import GENESIS as WITH_A_WITNESS
from contract_machine import START_S, STUDIES, WITNESS, digest, drive, record
from contract_planted import BUGS, IN_CONTRACT, IN_RULES
from contract_twin import CODE_BYTES, FOLDER, GAS, Chain, Twin, account, compiled, sources
from msgspec.structs import replace

from konsil.core.digest import root_from
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Announce,
    Commit,
    Dispute,
    Enter,
    Finish,
    Genesis,
    Initialise,
    Leave,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Report,
    Score,
    StudySettings,
    SwarmSettings,
    Tick,
    Validate,
    Verdict,
    Vote,
    settings_digest,
)
from konsil.errors import Refused
from konsil.ledger.ethereum.calldata import SIGNATURES, decode_call, encode_call
from konsil.ledger.ethereum.founding import BEHIND
from konsil.ledger.ethereum.words import NO_DIGEST, Words, encode, selector, word

AML, ALONE, MIXED, OWN, OUTER = STUDIES
GENESIS = replace(WITH_A_WITNESS, members=WITH_A_WITNESS.members[:5])
FIVE = ("aachen", "bonn", "celle", "dresden", "erlangen")


def begun(settings: StudySettings = AML, members: tuple[str, ...] = FIVE, genesis: Genesis = GENESIS) -> Twin:
    """Both, with a study whose round 1 is open."""
    twin = Twin(genesis)
    assert twin.do(members[0], ProposeStudy(settings)) == ""
    for name in members[1:]:
        assert twin.do(name, Agree(settings.name, settings_digest(settings))) == ""
    assert twin.do(members[0], Initialise(settings.name, digest("schema"), digest("initial"), 80 << 20)) == ""
    for name in members:
        assert twin.do(name, Enter(settings.name)) == ""
    return twin


def merging(
    settings: StudySettings = AML, members: tuple[str, ...] = FIVE, genesis: Genesis = GENESIS
) -> Twin:
    """As ``begun``, and all have committed."""
    twin = begun(settings, members, genesis)
    commit(twin, settings.name, members)
    return twin


def commit(twin: Twin, name: str, members: tuple[str, ...]) -> None:
    study = twin.state.studies[name]
    start = digest("start") if study.settings.outer is not None else ""
    for member in members:
        if twin.state.studies[name].open.phase == "collecting":
            call = Commit(
                name, study.open.number, study.accepted, digest((member, study.open.number)), 5, start
            )
            assert twin.do(member, call) == ""


def publish(twin: Twin, name: str, gram: str = "") -> None:
    current = twin.state.studies[name].open
    for index, part in enumerate(current.parts):
        call = Publish(name, current.number, current.attempt, index, digest(("part", index)), gram)
        assert twin.do(part.leader, call) == ""


def accept(twin: Twin, name: str) -> None:
    current = twin.state.studies[name].open
    for member in current.roster:
        assert twin.do(member, Accept(name, current.number, current.attempt, current.digest)) == ""


# --- machines and planted bugs ---------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_rules_and_contract_say_the_same_whatever_members_do():
    drive(150, 50)


def test_there_are_ten_planted_bugs_on_either_side():
    assert len(IN_CONTRACT) >= 10
    assert len(IN_RULES) >= 10


@pytest.mark.parametrize("name", BUGS)
@pytest.mark.timeout(600)
def test_a_planted_bug_is_found(name):
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("contract_planted.py"), name],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout, f"not found: {name}"


# --- the contract as it stands on a chain ----------------------------------------------------------


def test_each_contract_fits_and_all_have_one_layout():
    from vyper.compiler import compile_from_file_input  # noqa: PLC0415 - slow to load
    from vyper.compiler.input_bundle import FilesystemInputBundle  # noqa: PLC0415 - slow to load

    assert all(0 < size <= CODE_BYTES for size in Chain(GENESIS).sizes.values())
    bundle = FilesystemInputBundle([FOLDER])
    layouts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("swarm", *BEHIND):
            file = bundle.load_file(Path(f"{name}.vy"))
            made = compile_from_file_input(file, input_bundle=bundle, output_formats=("layout",))
            layouts.append(made["layout"]["storage_layout"])
    assert "studies" in layouts[0]["state"]
    assert all(layout == layouts[0] for layout in layouts)


def test_the_compiler_is_the_one_that_the_files_name():
    assert all(f"# pragma version {version('vyper')}\n" in text for _, text in sources())
    assert all("# pragma evm-version paris\n" in text for _, text in sources())


def test_every_call_has_a_function_of_its_own():
    assert len({selector(signature) for signature in SIGNATURES.values()}) == len(SIGNATURES)
    assert {kind for kinds in BEHIND.values() for kind in kinds} == set(SIGNATURES)


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 64, 65, 97, 129, 225, 255, 256])
def test_a_merges_digest_is_blake3(n):
    ask = _blake3()
    digests = [blake3(bytes([i % 256, i // 256])).digest() for i in range(n)]
    said = ask(selector("root(bytes32[])") + encode([digests]))
    assert said.hex() == root_from(digests[0].hex(), [each.hex() for each in digests[1:]])


@pytest.mark.parametrize(
    ("n", "number", "attempt"), [(2, 1, 1), (8, 999_999, 10), (9, 10, 99), (255, 7, 123_456)]
)
def test_draws_are_blake3s_stream(n, number, attempt):
    base = blake3(bytes([n])).digest()
    said = _blake3()(selector("draws(bytes32,uint256,uint256,uint256)") + encode([base, number, attempt, n]))
    seed = f"{base.hex()}/{number}/{attempt}".encode()
    stream = blake3(seed, derive_key_context="konsil 2026 deal of parts").digest(length=8 * n)
    drawn = Words(said).numbers(0)
    assert [int.from_bytes(stream[8 * i : 8 * i + 8], "big") for i in range(n)] == list(drawn[:n])


def _blake3():
    import pyrevm  # noqa: PLC0415 - slow to load

    asked = """
import blake3

@external
@pure
def root(digests: DynArray[bytes32, 256]) -> bytes32:
    return blake3.root(digests)

@external
@pure
def draws(base: bytes32, number: uint256, attempt: uint256, n: uint256) -> DynArray[uint256, 256]:
    return blake3.draws(base, number, attempt, n)
"""
    texts = tuple((name, text) for name, text in sources() if name == "blake3")
    code = compiled((*texts, ("asked", asked)), ("asked",))["asked"]
    evm = pyrevm.EVM(gas_limit=2**63, spec_id="MERGE")
    me = "0x" + "11" * 20
    at = evm.deploy(me, code)
    return lambda data: bytes(evm.message_call(me, at, calldata=data))


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


# --- who may call ----------------------------------------------------------------------------------


def test_a_call_comes_from_a_member_itself():
    twin = begun()
    chain = twin.chain
    data = encode_call(Enter("aml"), 4, twin.directory)
    assert chain.send(account("stranger"), data) == "not_a_member"
    # A contract that passes on what it gets: the member signs, but the call is not the transaction's.
    passing_on = bytes.fromhex("36600060003760006000366000600073") + bytes.fromhex(chain.swarm[2:])
    passing_on += bytes.fromhex("5af13d600060003e3d6000fd")  # CALL, and whatever comes back as a refusal
    code = (
        bytes.fromhex("60")
        + bytes([len(passing_on)])
        + bytes.fromhex("600c60003960")
        + bytes([len(passing_on)])
    )
    at = bytes.fromhex(chain.evm.deploy(chain.founder, code + bytes.fromhex("6000f3") + passing_on)[2:])
    assert chain.send(account("aachen"), data, to=at) == "not_direct"


def test_what_no_call_is_and_what_is_not_for_outsiders_is_refused():
    chain = Chain(GENESIS)
    assert chain.send(account("aachen"), bytes(4)) == "bad_call"
    assert chain.send(account("aachen"), selector("close_votes(uint256)") + word(START_S)) == "bad_call"


def test_an_account_is_one_names_for_ever():
    twin = Twin(GENESIS)
    twin.accounts |= {"f": account("f"), "g": account("f"), "h": account("aachen"), "i": bytes(20)}
    assert twin.do("aachen", ProposeAdmit(record("f"))) == ""
    for name, code in (("g", "account_taken"), ("h", "account_taken"), ("i", "bad_account")):
        data = encode_call(ProposeAdmit(record(name)), 2, twin.directory)
        assert twin.chain.send(account("aachen"), data) == code


@pytest.mark.parametrize(
    "change",
    [
        {"name": "-a"},
        {"name": ""},
        {"name": "a" * 64},
        {"name": "Bonn"},
        {"spiffe_id": "spiffe://a"},
        {"spiffe_id": "spiffe://a/"},
        {"spiffe_id": "spiffe:///b"},
        {"spiffe_id": "spiffe://A/b"},
        {"spiffe_id": "spiffe://a//b"},
        {"spiffe_id": "spiffe://a/b c"},
        {"spiffe_id": "http://a/b/c/d"},
        {"spiffe_id": "spiffe://a" + "/b" * 9},
        {"spiffe_id": "spiffe://" + "a" * 256 + "/b"},
        {"spiffe_id": "spiffe://a/" + "b" * 256},
        {"addresses": ("a:1",) * 9},
        {"addresses": ("a:0",)},
        {"addresses": ("a:65536",)},
        {"addresses": ("a:000001",)},
        {"addresses": ("a",)},
        {"addresses": (":1",)},
        {"addresses": ("[1]:1",)},
        {"addresses": ("[::1]",)},
        {"addresses": ("[::1]x:1",)},
        {"addresses": ("[" + "1" * 46 + "]:1",)},
        {"addresses": ("a" * 254 + ":1",)},
        {"addresses": ("a:1:2",)},
        {"addresses": ("",)},
    ],
)
def test_a_malformed_record_is_refused_by_both(change):
    twin = Twin(GENESIS)
    twin.accounts |= {name: account("f") for name in ("f", *change.values()) if isinstance(name, str)}
    assert twin.do("aachen", ProposeAdmit(replace(record("f"), **change))) == "bad_member"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a" * 63},
        {"name": "0-9"},
        {"spiffe_id": "spiffe://a_b.c-9" + "/B.c_D-9" * 8},
        {"spiffe_id": "spiffe://" + "a" * 255 + ("/" + "b" * 255) * 8},
        {"addresses": ()},
        {"addresses": ("A-b_c.9:1", "a:65535", "[::ffff:127.0.0.1]:00001", "a" * 253 + ":5")},
        {"addresses": tuple("a" * 253 + f":5999{i}" for i in range(8))},
    ],
)
def test_a_record_at_the_limits_is_taken_by_both(change):
    twin = Twin(GENESIS)
    twin.accounts |= {name: account("f") for name in ("f", *change.values()) if isinstance(name, str)}
    assert twin.do("aachen", ProposeAdmit(replace(record("f"), **change))) == ""


# --- votes -----------------------------------------------------------------------------------------


def test_a_member_is_admitted_removed_and_admitted_again_and_goes_on_where_it_was():
    twin = begun(MIXED, FIVE[:4])
    twin.accounts["z"] = account("z")
    twin.do("aachen", ProposeAdmit(record("z")))
    for name in ("bonn", "celle"):
        twin.do(name, Vote(1, yes=True))
    assert twin.do("z", Announce(("z:1",))) == ""
    assert twin.do("z", Agree("mixed", digest("x"))) == "not_invited"
    for number, gone in ((2, "z"), (3, "bonn")):
        twin.do("aachen", ProposeRemove(gone, "left the consortium"))
        for name in ("celle", "dresden"):
            twin.do(name, Vote(number, yes=True))
    assert not twin.state.members["bonn"].active
    assert twin.do("z", Announce(())) == "not_a_member"
    twin.accounts["z"] = account("z2")
    twin.do("aachen", ProposeAdmit(record("z")))
    for name in ("celle", "dresden"):
        twin.do(name, Vote(4, yes=True))
    assert twin.do("z", Announce(()), 1) == "replayed"
    assert twin.do("z", Announce(()), 2) == ""


def test_nobody_floods_the_others_with_votes():
    twin = Twin(replace(GENESIS, settings=SwarmSettings(3_000)))
    for _ in range(16):
        assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == ""
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == "too_many_proposals"
    for number in range(1, 17):
        for name in ("bonn", "celle", "dresden"):
            twin.do(name, Vote(number, yes=False))
    for _ in range(3):
        for _ in range(16):
            assert twin.do("aachen", ProposeRemove("erlangen")) == ""
            for name in ("bonn", "celle"):
                twin.do(name, Vote(len(twin.state.proposals), yes=False))
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == "too_many_proposals"
    twin.now_s += 3_000
    assert twin.do("aachen", ProposeSwarmSettings(SwarmSettings(60))) == ""


def test_the_last_member_stays():
    alone = replace(GENESIS, members=GENESIS.members[:1])
    assert Twin(alone).do("aachen", ProposeRemove("aachen")) == "last_member"


def test_a_witness_votes_and_takes_part_in_no_study():
    twin = Twin(WITH_A_WITNESS)
    assert twin.do(WITNESS, ProposeStudy(AML)) == "witness"
    assert twin.do("aachen", ProposeStudy(replace(AML, min_members=6))) == "bad_settings"
    assert (
        twin.do("aachen", ProposeStudy(replace(AML, members=("aachen", "bonn", WITNESS)))) == "bad_settings"
    )
    assert twin.do("aachen", ProposeStudy(AML)) == ""
    assert twin.do(WITNESS, Agree("aml", settings_digest(AML))) == "witness"
    assert twin.do(WITNESS, Validate(on=True)) == "no_validators"
    assert twin.do(WITNESS, ProposeRemove("bonn")) == ""
    assert twin.state.proposals[0].votes == {WITNESS: True}


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
