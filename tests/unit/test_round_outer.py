"""A node's part in a study with an outer optimiser: when it steps, and what it does if others step otherwise."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.round import (
    Advance,
    Advanced,
    Attached,
    Cancel,
    Deliver,
    Done,
    Failed,
    Held,
    Looked,
    NodeRound,
    Submit,
    UpdateReady,
    step,
)
from konsil.core.rules import (
    Agree,
    Commit,
    Enter,
    Finish,
    Genesis,
    Initialise,
    Leave,
    MemberRecord,
    Outer,
    ProposeStudy,
    StudySettings,
    apply,
    initial_state,
    settings_digest,
)

BEGIN_S = 1_000_000
SETTINGS = StudySettings("aml", min_members=4, quorum=3, rounds=3, every_steps=1, outer=Outer())


def digest(text: object) -> str:
    return bytes_digest(str(text).encode(), "test")


MODEL, OURS, THEIRS = digest("model 0"), digest("ours"), digest("theirs")


class Ledger:
    def __init__(self, names="abcd") -> None:
        self.state = initial_state(Genesis("lungs", "local", "a", BEGIN_S, tuple(map(self._record, names))))
        self.say("a", ProposeStudy(replace(SETTINGS, min_members=len(names))))
        for name in names[1:]:
            self.say(name, Agree("aml", settings_digest(self.study.settings)))
        self.say("a", Initialise("aml", digest("schema"), MODEL, 1000))
        for name in names:
            self.say(name, Enter("aml"))

    def _record(self, name):
        return MemberRecord(name, f"spiffe://{name}.example/node", digest(name), digest("b"), digest("c"))

    @property
    def study(self):
        return self.state.studies["aml"]

    def say(self, name, call) -> None:
        self.state = apply(self.state, name, self.state.members[name].sequence + 1, call, BEGIN_S)

    def commit(self, names, start) -> None:
        for name in names:
            self.say(name, Commit("aml", 1, MODEL, digest(f"{name} 1"), 10, start))


class Node:
    """The machine of member 'b' before this ledger. What it cancels is left out."""

    def __init__(self, ledger, **knows) -> None:
        self.ledger = ledger
        self.state = replace(NodeRound(me="b", study="aml"), **knows)

    def sees(self, event=None):
        self.state, effects, _ = step(self.state, event or Looked(), self.ledger.study, BEGIN_S)
        return tuple(effect for effect in effects if not isinstance(effect, Cancel))


def trains(ledger, start=OURS):
    """A node whose training process trains from the model of an outer state."""
    return Node(
        ledger,
        attached=True,
        greeted=True,
        delivered=MODEL,
        trains_from=start,
        held=frozenset({MODEL}),
        outer=Advanced(MODEL, start, digest(f"model of {start}")),
    )


UPDATE = UpdateReady(1, MODEL, digest("b 1"), 10)
OTHERWISE = Advance(0, MODEL, THEIRS)


@pytest.fixture
def ledger():
    return Ledger()


def test_the_model_is_delivered_once_the_outer_state_is_there_and_committed_with_it(ledger):
    node = Node(ledger)
    node.sees(Attached())
    assert node.sees(Held(MODEL)) == (Advance(0, MODEL),)
    assert node.sees() == ()
    deliver = Deliver(0, MODEL, OURS)
    assert node.sees(Advanced(MODEL, OURS, MODEL)) == (deliver,)
    node.sees(Done(Advance(0, MODEL)))
    node.sees(Done(deliver))
    assert node.sees(UPDATE) == (Submit(Commit("aml", 1, MODEL, UPDATE.digest, 10, OURS)),)


def test_a_step_that_fails_is_tried_again_and_nothing_is_delivered(ledger):
    node = Node(ledger)
    node.sees(Attached())
    node.sees(Held(MODEL))
    assert node.sees(Failed(Advance(0, MODEL), wait_s=0.0)) == (Advance(0, MODEL),)


def test_who_computed_the_state_of_the_others_goes_its_way_undisturbed(ledger):
    node = trains(ledger)
    ledger.commit("acd", OURS)
    assert node.sees() == ()
    assert node.sees(UPDATE) == (Submit(Commit("aml", 1, MODEL, UPDATE.digest, 10, OURS)),)


def test_a_few_that_say_otherwise_are_no_majority(ledger):
    node = trains(ledger)
    ledger.commit("ac", THEIRS)
    assert node.sees() == ()
    assert node.sees(UPDATE) == (Submit(Commit("aml", 1, MODEL, UPDATE.digest, 10, OURS)),)


def test_who_trained_from_another_state_than_most_sits_the_round_out_and_takes_theirs(ledger):
    node = trains(ledger)
    ledger.commit("acd", THEIRS)
    assert node.sees(UPDATE) == (OTHERWISE, Submit(Leave("aml")))
    # Even once it has their state: this update was not trained from it.
    assert node.sees(Advanced(MODEL, THEIRS, digest("model"))) == ()
    node.sees(Done(OTHERWISE))
    assert node.sees() == ()


def test_a_state_that_was_contradicted_before_it_was_delivered_is_replaced_first(ledger):
    node = Node(ledger, attached=True, waiting=True, held=frozenset({MODEL}))
    ledger.commit("acd", THEIRS)
    assert node.sees() == (Advance(0, MODEL),)
    assert node.sees(Advanced(MODEL, OURS, MODEL)) == (OTHERWISE,)
    assert node.sees(Advanced(MODEL, THEIRS, MODEL)) == (Deliver(0, MODEL, THEIRS),)


def test_an_update_whose_state_is_not_known_is_committed_with_the_nodes_own(ledger):
    # The training process outlived the node, and holds the model of this merge.
    node = Node(ledger, held=frozenset({MODEL}), outer=Advanced(MODEL, OURS, MODEL))
    node.sees(Attached(MODEL))
    assert Submit(Commit("aml", 1, MODEL, UPDATE.digest, 10, OURS)) in node.sees(UPDATE)


def test_a_member_that_stays_active_commits_the_model_that_training_goes_on_from(ledger):
    ledger.say("b", Finish("aml", "active"))
    node = Node(ledger, held=frozenset({MODEL}), update=replace(UPDATE, round=0))
    assert node.sees() == (Advance(0, MODEL),)
    effects = node.sees(Advanced(MODEL, OURS, digest("x")))
    assert Submit(Commit("aml", 1, MODEL, digest("x"), 10, OURS)) in effects
