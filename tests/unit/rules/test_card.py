"""A model's card against a ledger: whatever it says otherwise is found."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.card_check import compare_card
from konsil.core.model_card import card_of, decode_card, encode_card
from konsil.core.rules import (
    Best,
    FinalModel,
    Outer,
    ProposeStudySettings,
    Score,
    ScoreRecord,
    Vote,
    final_round,
    settings_digest,
)
from konsil.core.rules.final import asked_for
from konsil.errors import DigestMismatch

OTHER = "0f" * 32


def scored(world, number, value, names="abcd"):
    for name in names:
        world.do(name, Score("aml", number, 10, loss=value))


def ended(swarm, **settings):
    """A study of three rounds, all scored."""
    world = swarm(best=Best("loss", "min"), **settings).start()
    for number, value in enumerate((0.5, 0.2, 0.4), start=1):
        world.round()
        scored(world, number, value)
    assert world.study.phase == "finished"
    return world


def card(world, chosen=None, digest=None):
    chosen = chosen or final_round(world.study, world.now_s)
    made = card_of(world.state, world.study, chosen, digest or chosen.digest, [1] * 25, software="1")
    return decode_card(encode_card(made))


def forged(true, **changes):
    """A card that agrees with itself."""
    changed = replace(true, **changes)
    return decode_card(encode_card(replace(changed, settings_digest=settings_digest(changed.settings))))


def compared(world, found):
    return compare_card(world.state, found, world.now_s)


def refused(world, found, why):
    with pytest.raises(DigestMismatch, match=why):
        compared(world, found)


def test_a_true_card_is_whole_on_the_ledger(swarm):
    world = ended(swarm)
    true = card(world)
    assert (true.round, true.final) == (2, True)
    found = compared(world, true)
    assert (found.model, found.settings) == (True, True)
    assert compared(world, true).model


def test_a_card_stays_true_when_the_ledger_has_gone_on(swarm):
    world = swarm(best=Best("loss", "min"), rounds=4).start()
    world.round()
    scored(world, 1, 0.5, "ab")
    early = card(world)
    last = card(world, asked_for(world.study, 1, final_round(world.study, world.now_s)))
    scored(world, 1, 0.1, "cd")
    world.round()
    scored(world, 2, 0.05)
    world.round().round()
    assert not early.final
    assert compared(world, early).model
    assert compared(world, last).model


def test_arrays_of_anyone_are_not_the_model_of_a_study_that_never_had_an_outer_optimiser(swarm):
    world = ended(swarm)
    true = card(world)
    evil = forged(true, settings=replace(true.settings, outer=Outer()), digest=OTHER)
    refused(world, evil, "another `outer`")


FORGERIES = {
    "another merge": lambda true: {"merge": OTHER, "digest": OTHER, "rounds": with_digest(true, 2, OTHER)},
    "another round's digest": lambda true: {"rounds": with_digest(true, 1, OTHER)},
    "a weight": lambda true: {
        "rounds": with_round(
            true, 2, roster=true.rounds[1].roster | {"b": replace(true.rounds[1].roster["b"], weight=99)}
        )
    },
    "a member that was not there": lambda true: {"rounds": with_round(true, 3, absent={"mallory": "silent"})},
    "a score": lambda true: {"rounds": with_score(true, 2, "a", 0.01)},
    "a score too many": lambda true: {"rounds": with_score(true, 2, "mallory", 0.2)},
    "a score too few": lambda true: {
        "rounds": with_round(true, 1, scores={n: s for n, s in true.rounds[0].scores.items() if n != "a"})
    },
    "its reason": lambda _true: {"why": "It has the best AUC, 0.99."},
    "its choice": lambda true: {"round": 1, "merge": true.rounds[0].digest, "digest": true.rounds[0].digest},
    "its end": lambda _true: {"ended": "All were cured."},
    "its phase": lambda _true: {"phase": "running"},
    "fewer rounds": lambda true: {"rounds": true.rounds[:2]},
    "its proposer": lambda _true: {"proposer": "mallory"},
    "its schema": lambda _true: {"schema": OTHER},
    "its swarm": lambda _true: {"swarm": OTHER},
    "its state": lambda _true: {"state": OTHER},
    "the time": lambda _true: {"started_s": 1},
    "a fixed setting": lambda true: {"settings": replace(true.settings, prox=0.5)},
    "a setting": lambda true: {"settings": replace(true.settings, rule="median")},
    "the future": lambda true: {"height": true.height + 1},
}


def with_round(true, number, **changes):
    return tuple(replace(each, **changes) if each.number == number else each for each in true.rounds)


def with_digest(true, number, digest):
    return with_round(true, number, digest=digest)


def with_score(true, number, name, loss):
    return with_round(true, number, scores=true.rounds[number - 1].scores | {name: ScoreRecord(10, loss)})


WHYS = {
    "another merge": "its round 2 is another",
    "another round's digest": "its round 1 is another",
    "a weight": "its round 2 is another",
    "a member that was not there": "its round 3 is another",
    "a score": "its scores of round 2",
    "a score too many": "its scores of round 2",
    "a score too few": "leaves out scores",
    "its reason": "not for that reason",
    "its choice": "not the final model",
    "its end": "another end",
    "its phase": "another end",
    "fewer rounds": "another end",
    "its proposer": "another `proposer`",
    "its schema": "another `schema`",
    "its swarm": "another swarm",
    "its state": "the ledger's state at its height",
    "the time": "another `started_s`",
    "a fixed setting": "another `prox`",
    "a setting": "other settings than the study",
    "the future": "written at height",
}


@pytest.mark.parametrize("what", FORGERIES)
def test_whatever_a_card_says_otherwise_than_the_ledger_is_found(swarm, what):
    world = ended(swarm)
    true = card(world)
    compared(world, true)
    refused(world, forged(true, **FORGERIES[what](true)), WHYS[what])


def test_a_card_stays_true_when_scores_come_that_decide_nothing(swarm):
    """Without `best` the final model is the last merge, whatever its scores are and whenever they come."""
    world = swarm(rounds=1).start().round()
    early = card(world)
    assert early.final
    scored(world, 1, 0.5)
    found = compared(world, early)
    assert (found.model, found.settings) == (True, True)


def test_what_can_still_change_is_not_final(swarm):
    world = swarm(best=Best("loss", "min"), rounds=2).start().round()
    scored(world, 1, 0.5)
    early = card(world)
    refused(world, forged(early, final=True), "final")
    world.round()
    waiting = card(world)
    assert not waiting.final
    refused(world, forged(waiting, final=True), "final")
    assert compared(world, waiting).model


def test_with_an_outer_optimiser_only_the_merge_is_compared(swarm):
    world = swarm(outer=Outer(), rounds=1, min_members=4, quorum=3).start()
    for name in "abcd":
        world.do(name, world.update(name, start=world.digest("state")))
    world.publish().accept()
    found = compared(world, card(world, digest=OTHER))
    assert not found.model
    initial = FinalModel(0, world.study.initial, settled=False, why=why_asked(world, 0))
    assert compared(world, card(world, initial)).model
    lie = card(world, initial, OTHER)
    refused(world, lie, "another digest")


def why_asked(world, number):
    return asked_for(world.study, number, final_round(world.study, world.now_s)).why


def test_settings_changed_by_vote_are_told_from_forged_ones(swarm):
    world = swarm(rounds=5).start().round()
    before = card(world)
    world.do("a", ProposeStudySettings(replace(world.settings, merge_s=60)))
    world.do("b", Vote(1, yes=True))
    world.do("c", Vote(1, yes=True))
    assert compared(world, before).settings  # they hold until the round is over
    world.round()
    after = card(world)
    assert compared(world, after).settings
    assert not compared(world, before).settings  # no longer on the ledger: the fixed ones are
    refused(world, forged(before, settings=replace(before.settings, outer=Outer())), "another `outer`")
