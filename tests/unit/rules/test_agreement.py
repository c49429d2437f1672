"""Settings and genesis: what contradicts itself is found before anybody agrees to it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core import merge
from konsil.core.rules import (
    Outer,
    Plateau,
    StudySettings,
    check_against_rule,
    check_genesis,
    check_study_settings,
    effective_quorum,
    genesis_digest,
    initial_state,
    settings_digest,
)
from konsil.errors import ConfigError

GOOD = StudySettings(name="aml", every_steps=10, min_members=3, quorum=2, rounds=20)
MEMBERS = ("a", "b", "c", "d")

BAD = {
    "name": {"name": "AML!"},
    "description": {"description": "x" * 2001},
    "members": {"members": ("a", "b", "b")},
    "not an active member": {"members": ("a", "b", "mallory")},
    "min_members": {"min_members": 5},
    "quorum": {"quorum": 4},
    "every_steps` and `every_epochs": {"every_epochs": 1},
    "none is given": {"every_steps": 0},
    "every_minutes": {"every_steps": 0, "every_minutes": float("nan")},
    "every_steps` must be above 0": {"every_steps": -1},
    "rounds` must be from 1": {"rounds": 0},
    "to 1000000": {"rounds": 1_000_001},
    "audit_fraction": {"audit_fraction": 1.01},
    "audit_fraction` must": {"audit_fraction": float("nan")},
    "patience_s` (30) is below `silence_s": {"patience_s": 30},
    "merge_s": {"merge_s": 0},
    "give_up_s": {"give_up_s": -1},
    "stop_minutes": {"stop_minutes": float("inf")},
    "no merge rule": {"rule": "votes"},
    "rule_options": {"rule_options": {"f": float("nan")}},
    "no option 'g'": {"rule": "trimmed_mean", "rule_options": {"g": 1.0}},
    "needs 3 members": {"rule": "trimmed_mean", "rule_options": {"f": 1.0}},
    "needs 5 members": {"rule": "multi_krum", "rule_options": {"f": 1.0}},
    "or no `outer`": {"rule": "norm_clipping", "outer": Outer(), "quorum": 3},
    "`outer` needs a quorum of 3, and it is 2": {"outer": Outer()},
    "name exactly two in `members`": {"outer": Outer(), "quorum": 0},
    "it is in no file": {"rule_digest": "ab" * 32},
    "64 hexadecimal digits": {"rule": "our-own", "rule_digest": "AB" * 32},
    "small letters, digits": {"rule": "../our-own", "rule_digest": "ab" * 32},
    "given` has weights, but": {"given": {"a": 1}},
    "members` must name": {"weighting": "given", "given": {"a": 1}},
    "no weight for c": {"weighting": "given", "given": {"a": 1, "b": 2}, "members": ("a", "b", "c")},
    "not in `members`": {"weighting": "given", "given": dict.fromkeys("abcd", 1), "members": ("a", "b", "c")},
    "Weights in `given`": {
        "weighting": "given",
        "given": dict.fromkeys("abc", 0),
        "members": ("a", "b", "c"),
    },
    "plateau.rounds": {"plateau": Plateau(rounds=20)},
    "plateau.metric": {"plateau": Plateau(metric="")},
    "plateau.min_delta": {"plateau": Plateau(min_delta=float("nan"))},
    "local": {"local": ("",)},
    "plain mean: take one": {"outer": Outer(), "scaffold": True, "weighting": "equal"},
    "outer.tau": {"outer": Outer(tau=0.0)},
    "outer.beta1` and `beta2": {"outer": Outer(beta2=1.0)},
    "outer.learning_rate": {"outer": Outer(learning_rate=float("nan"))},
}


@pytest.mark.parametrize(("named", "changes"), BAD.items(), ids=list(BAD))
def test_settings_that_make_no_sense_are_named(named, changes):
    check_study_settings(GOOD, MEMBERS)
    with pytest.raises(ConfigError) as caught:
        check_study_settings(replace(GOOD, **changes), MEMBERS)
    assert named in caught.value.what


def test_the_contract_asks_nothing_of_a_rule_in_a_file_but_its_digest():
    own = replace(GOOD, rule="a-rule-of_our-own", rule_digest="ab" * 32, rule_options={"anything": 1.0})
    check_study_settings(own, MEMBERS)
    with pytest.raises(ConfigError, match=r"no merge rule.*multi_krum.*rule_digest"):
        check_study_settings(replace(own, rule_digest=""), MEMBERS)


def test_a_rule_is_held_against_the_quorum_once_it_is_there():
    nine = merge.Rule("nine", {}, merge.median, members=9)
    with pytest.raises(ConfigError, match="needs 9 members, but the quorum is 2"):
        check_against_rule(GOOD, nine)
    check_against_rule(GOOD, merge.Rule("two", {}, merge.median, members=2))
    around = merge.Rule("around", {}, merge.median, around_base=True)
    with pytest.raises(ConfigError, match="take another rule, or no `outer`"):
        check_against_rule(replace(GOOD, outer=Outer(), quorum=3), around)


@pytest.mark.parametrize(
    ("min_members", "quorum", "expected"), [(1, 0, 1), (2, 0, 2), (4, 0, 3), (5, 0, 3), (4, 2, 2)]
)
def test_without_a_quorum_a_majority_is_one(min_members, quorum, expected):
    assert effective_quorum(replace(GOOD, min_members=min_members, quorum=quorum)) == expected


def test_settings_that_read_alike_have_one_digest():
    whole = replace(GOOD, rule="trimmed_mean", rule_options={"f": 1})
    assert settings_digest(whole) == settings_digest(replace(whole, rule_options={"f": 1.0}))
    assert settings_digest(whole) != settings_digest(replace(whole, rule_options={"f": 2.0}))


def test_settings_with_a_nan_have_no_digest():
    with pytest.raises(ConfigError, match="cannot be written down"):
        settings_digest(replace(GOOD, audit_fraction=float("nan")))


def test_a_good_genesis_founds_a_swarm(swarm):
    state = initial_state(swarm.genesis())
    assert state.genesis == genesis_digest(swarm.genesis())
    assert sorted(state.members) == ["a", "b", "c", "d"]


GENESES = {
    "no members": lambda g, _r: replace(g, members=()),
    "not sorted": lambda g, _r: replace(g, members=g.members[::-1]),
    "same name": lambda g, r: replace(g, members=(r("a"), replace(r("b"), name="a"))),
    "same ledger_key": lambda g, r: replace(g, members=(r("a"), replace(r("b"), ledger_key=r("a").ledger_key))),
    "same spiffe_id": lambda g, r: replace(g, members=(r("a"), replace(r("b"), spiffe_id=r("a").spiffe_id))),
    "SPIFFE ID": lambda g, r: replace(g, members=(replace(r("a"), spiffe_id="a.example"),)),
    "name must be": lambda g, r: replace(g, members=(replace(r("a"), name="-a"),)),
    "host:port": lambda g, r: replace(g, members=(replace(r("a"), addresses=("a.example:99999",)),)),
    "ledger_key must be": lambda g, r: replace(g, members=(replace(r("a"), ledger_key="E" * 64),)),
    "operator 'z'": lambda g, _r: replace(g, operator="z"),
    "no operator": lambda g, _r: replace(g, engine="cometbft"),
    "version 2": lambda g, _r: replace(g, version=2),
    "`swarm`": lambda g, _r: replace(g, swarm="Lungs"),
    "1970": lambda g, _r: replace(g, created_s=-1),
    "proposal_s": lambda g, _r: replace(g, settings=replace(g.settings, proposal_s=0)),
}  # fmt: skip


@pytest.mark.parametrize("named", GENESES)
def test_a_genesis_that_cannot_found_a_swarm_says_why(named, swarm):
    with pytest.raises(ConfigError, match=named):
        check_genesis(GENESES[named](swarm.genesis(), swarm.record))


@pytest.mark.parametrize(
    "changes",
    [{"quorum": 3}, {"min_members": 4, "quorum": 0}, {"members": ("a", "b"), "min_members": 2, "quorum": 0}],
)
def test_an_outer_optimiser_needs_three_or_exactly_two(changes):
    check_study_settings(replace(GOOD, outer=Outer(), **changes), MEMBERS)
