"""One story for each reason to refuse; in each the state stays as it was (`Swarm.refused` sees to that)."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.core.rules import (
    Agree,
    Alive,
    Announce,
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
    SwarmSettings,
    Tick,
    Validate,
    Verdict,
    Vote,
    apply,
    initial_state,
    settings_digest,
    state_digest,
)
from konsil.errors import Refused

X = "e" * 64


def merging(s):
    return s().start().commit()


def published(s):
    return merging(s).publish()


def disputed(s):
    world = published(s)
    part = world.part_of("b")
    world.do("a", Dispute("aml", 1, 1, part, at(world, part)))
    return world


def struck(s):
    world = disputed(s)
    part = world.part_of("b")
    for name in "cd":
        world.do(name, Verdict("aml", 1, 1, part, at(world, part), wrong=True))
    return world


def at(world, part):
    return part * 25 // len(world.open.parts)


def accepted(s):
    return s().start().round()


def kept_by_one(s):
    world = kept_together(s)
    for name in "bcd":
        world.do(name, Validate(on=False))
    return world


def kept_together(s):
    world = s()
    world.state = initial_state(replace(s.genesis(), engine="cometbft", operator=""))
    return world


def with_witness(s):
    world = s()
    founders = s.genesis().members
    members = (*founders[:3], replace(founders[3], witness=True))
    world.state = initial_state(replace(s.genesis(), members=members))
    world.do("a", ProposeStudy(world.settings))
    return world


def ended(s):
    return s(rounds=1).start().round()


def proposed(s):
    world = s()
    world.propose()
    return world


def flooded_with_votes(s):
    world = s()
    for number in range(16):
        world.do("a", ProposeAdmit(s.record(f"m{number}")))
    return world


def flooded_with_studies(s):
    world = s()
    for number in range(64):
        world.do("a", ProposeStudy(replace(world.settings, name=f"study-{number}")))
    return world


def renewed(s, times=1):
    world = s()
    for number in range(times):
        world.do("b", Renew(s.digest(f"bundle {number}"), s.digest(f"card {number}")))
    return world


def score(**changes):
    return replace(Score("aml", 1, 5, 0.5), **changes)


# code -> (where the story starts, who calls, what)
STORIES = {
    "not_a_member": lambda s: (s(), "mallory", Tick("aml")),
    "bad_call": lambda s: (accepted(s), "a", score(loss=float("nan"))),
    "no_validators": lambda s: (s(), "a", Validate(on=True)),
    "last_validator": lambda s: (kept_by_one(s), "a", Validate(on=False)),
    "witness": lambda s: (with_witness(s), "d", Agree("aml", settings_digest(s().settings))),
    "bad_addresses": lambda s: (s(), "a", Announce(("no port",))),
    "same_card": lambda s: ((w := renewed(s)), "b", Renew(X, w.state.members["b"].record.card)),
    "card_taken": lambda s: (s(), "b", Renew(X, s.record("c").card)),
    "too_many_renewals": lambda s: (renewed(s, 16), "b", Renew(X, X)),
    "bad_member": lambda s: (s(), "a", ProposeAdmit(replace(s.record("e"), spiffe_id="https://e"))),
    "identity_taken": lambda s: (s(), "a", ProposeAdmit(replace(s.record("e"), ledger_key=s.record("b").ledger_key))),
    "name_taken": lambda s: (s(), "a", ProposeAdmit(s.record("b"))),
    "unknown_member": lambda s: (s(), "a", ProposeRemove("mallory")),
    "bad_reason": lambda s: (s(), "a", ProposeRemove("b", "x" * 2001)),
    "operator_stays": lambda s: (s(), "b", ProposeRemove("a")),
    "bad_settings": lambda s: (s(), "a", ProposeSwarmSettings(SwarmSettings(proposal_s=1))),
    "fixed_setting": lambda s: ((w := proposed(s)), "a", ProposeStudySettings(replace(w.settings, min_members=4))),
    "too_many_proposals": lambda s: (flooded_with_votes(s), "a", ProposeRemove("b")),
    "too_many_studies": lambda s: ((w := flooded_with_studies(s)), "a", ProposeStudy(w.settings)),
    "unknown_proposal": lambda s: (s(), "a", Vote(1, yes=True)),
    "unknown_study": lambda s: (s(), "a", Enter("aml")),
    "not_invited": lambda s: ((w := s(members=("a", "b", "c"))), "d", ProposeStudy(w.settings)),
    "other_settings": lambda s: (proposed(s), "a", Agree("aml", X)),
    "not_proposer": lambda s: (proposed(s), "b", Initialise("aml", X, X, 1)),
    "bad_size": lambda s: (proposed(s), "a", Initialise("aml", X, X, 0)),
    "bad_digest": lambda s: (proposed(s), "a", Initialise("aml", X, "not hex", 1)),
    "already_initialised": lambda s: (s().start(), "a", Initialise("aml", X, X, 1)),
    "not_initialised": lambda s: (proposed(s), "a", Enter("aml")),
    "not_running": lambda s: (proposed(s), "a", Tick("aml")),
    "study_over": lambda s: (ended(s), "a", Tick("aml")),
    "round_over": lambda s: ((w := accepted(s)), "a", w.update("a", round=1)),
    "round_not_open": lambda s: ((w := accepted(s)), "a", w.update("a", round=3)),
    "attempt_over": lambda s: ((w := merging(s).tick()), w.open.parts[0].leader, w.part(0, attempt=1)),
    "second_commit": lambda s: ((w := merging(s)), "a", w.update("a", digest=X)),
    "other_base": lambda s: ((w := s().start()), "a", w.update("a", base=X)),
    "bad_examples": lambda s: ((w := s().start()), "a", w.update("a", examples=0)),
    "no_outer": lambda s: ((w := s().start()), "a", w.update("a", start=X)),
    "under_dispute": lambda s: (
        (w := disputed(s)),
        w.open.dispute.leader,
        Report("aml", 1, 1, (w.open.dispute.leader,)),
    ),
    "not_collecting": lambda s: (merging(s), "a", Alive("aml", 1)),
    "bad_progress": lambda s: (s().start(), "a", Alive("aml", 1, 1.5)),
    "too_early": lambda s: (s().start(), "a", Tick("aml")),
    "not_merging": lambda s: (s().start(), "a", Publish("aml", 1, 1, 0, X)),
    "unknown_part": lambda s: ((w := merging(s)), "a", w.part(0, part=4)),
    "not_leader": lambda s: ((w := merging(s)), w.open.parts[1].leader, w.part(0)),
    "second_publish": lambda s: ((w := published(s)), w.open.parts[0].leader, w.part(0, digest=X)),
    "no_gram": lambda s: ((w := merging(s)), w.open.parts[0].leader, w.part(0, gram=X)),
    "not_on_roster": lambda s: (s().start("abc").commit("abc"), "d", Report("aml", 1, 1, ("a",))),
    "other_digest": lambda s: ((w := published(s)), "a", replace(w.held(), digest=X)),
    "not_published": lambda s: ((w := merging(s)), "a", w.held()),
    "own_part": lambda s: ((w := published(s)), "b", Dispute("aml", 1, 1, (p := w.part_of("b")), at(w, p))),
    "unknown_chunk": lambda s: ((w := published(s)), "a", Dispute("aml", 1, 1, (p := w.part_of("b")), at(w, p) - 1)),
    "dispute_open": lambda s: ((w := disputed(s)), "c", Dispute("aml", 1, 1, (p := w.part_of("b")), at(w, p))),
    "no_dispute": lambda s: (published(s), "a", Verdict("aml", 1, 1, 0, 0, wrong=True)),
    "second_verdict": lambda s: ((w := disputed(s)), "a", Verdict("aml", 1, 1, (p := w.part_of("b")), at(w, p), wrong=False)),
    "struck": lambda s: (struck(s), "b", Enter("aml")),
    "round_not_accepted": lambda s: (s().start(), "a", score()),
    "empty_score": lambda s: (accepted(s), "a", score(loss=None)),
    "bad_score": lambda s: (accepted(s), "a", score(loss=1e31)),
    "bad_metric": lambda s: (accepted(s), "a", score(metrics={"no spaces": 1.0})),
    "not_participant": lambda s: (with_stranger(s), "d", Leave("aml")),
    "last_member": lambda s: (alone(s), "a", ProposeRemove("a")),
    "no_vote": lambda s: (with_removal(s), "b", Vote(1, yes=False)),
    "second_vote": lambda s: (with_removal(s), "a", Vote(1, yes=True)),
    "proposal_closed": lambda s: (decided(s), "d", Vote(1, yes=True)),
    "finished": lambda s: ((w := one_finished(s)), "a", w.update("a")),
    "second_score": lambda s: (scored(s), "a", score(loss=0.4)),
    "second_dispute": lambda s: ((w := closed_dispute(s)), "a", Dispute("aml", 1, 1, (p := w.part_of("b")), at(w, p))),
}  # fmt: skip


def with_stranger(s):
    world = s("abcd")
    world.do("a", ProposeStudy(world.settings))
    return world


def alone(s):
    world = s("a")
    # Another engine has no operator that has to stay.
    world.state = replace(world.state, operator="")
    return world


def with_removal(s):
    world = s()
    world.do("a", ProposeRemove("b"))
    return world


def decided(s):
    world = with_removal(s)
    world.do("c", Vote(1, yes=True))
    return world


def one_finished(s):
    world = s().start()
    world.do("a", Finish("aml"))
    return world


def scored(s):
    world = accepted(s)
    world.do("a", score())
    return world


def closed_dispute(s):
    world = disputed(s)
    part = world.part_of("b")
    for name in "bcd":
        world.do(name, Verdict("aml", 1, 1, part, at(world, part), wrong=False))
    return world


@pytest.mark.parametrize("code", STORIES)
def test_a_call_is_refused_with_its_code_and_changes_nothing(code, swarm):
    world, caller, call = STORIES[code](swarm)
    refusal = world.refused(caller, call)
    assert refusal.code == code
    assert refusal.what.endswith(".")
    assert refusal.safe


def test_every_code_of_the_contract_has_its_story():
    folder = Path(import_module("konsil.core.rules").__file__).parent
    codes = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                at_argument = {"require": 1, "Refused": 0}.get(node.func.id)
                if at_argument is not None and isinstance(node.args[at_argument], ast.Constant):
                    codes.add(node.args[at_argument].value)
    assert codes == set(STORIES) | {"replayed", "sequence_gap"}


def test_a_call_cannot_be_replayed(swarm):
    world = swarm().start()
    update = world.update("a")
    world.do("a", update)
    before = state_digest(world.state)
    for sequence in (1, world.state.members["a"].sequence):
        with pytest.raises(Refused) as caught:
            apply(world.state, "a", sequence, update, world.now_s)
        assert caught.value.code == "replayed"
    assert state_digest(world.state) == before


def test_a_call_cannot_come_before_the_one_before_it(swarm):
    world = swarm().start()
    sequence = world.state.members["b"].sequence
    with pytest.raises(Refused) as caught:
        apply(world.state, "b", sequence + 2, world.update("b"), world.now_s)
    assert caught.value.code == "sequence_gap"
    assert caught.value.fields["sequence"] == sequence


def test_a_refused_call_does_not_use_up_its_number(swarm):
    world = swarm().start()
    world.refused("a", Commit("aml", 1, X, X, 1))
    sequence = world.state.members["a"].sequence
    world.do("a", world.update("a"))
    assert world.state.members["a"].sequence == sequence + 1


def test_a_tick_that_is_too_early_says_how_long_to_wait(swarm):
    world = swarm().start()
    assert world.refused("a", Tick("aml"), after_s=12).fields["wait_s"] == 48


def test_settings_of_other_contents_are_not_agreed_to(swarm):
    world = swarm()
    world.do("a", ProposeStudy(world.settings))
    other = settings_digest(replace(world.settings, rounds=4))
    assert world.refused("b", Agree("aml", other)).fields["settings"] == settings_digest(world.settings)
