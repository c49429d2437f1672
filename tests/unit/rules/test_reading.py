"""Who may read which model."""

from __future__ import annotations

from konsil.core.rules import Best, Outer, StudySettings, choosable_starts, readable
from konsil.core.rules.state import Commitment, OpenRound, Part, Participant, RoundRecord, Study

BASE, NEW, UPDATE, PART = "ba" * 32, "ed" * 32, "0d" * 32, "9a" * 32


def study(**changes: object) -> Study:
    known: dict[str, object] = {
        "settings": StudySettings("aml"),
        "settings_digest": "",
        "proposer": "lyon",
        "proposed_s": 0,
        "phase": "running",
        "participants": {"lyon": Participant(), "oslo": Participant()},
        "initial": BASE,
    }
    return Study(**(known | changes))


def opened(phase: str, **changes: object) -> OpenRound:
    known: dict[str, object] = {
        "number": 1,
        "attempt": 1,
        "phase": phase,
        "base": BASE,
        "opened_s": 0,
        "phase_since_s": 0,
        "deadline_s": 1,
        "commits": {"lyon": Commitment(UPDATE, 1, 0)},
    }
    return OpenRound(**(known | changes))


def test_who_takes_no_part_reads_nothing():
    assert readable(study(open=opened("merging", roster=("lyon",))), "mallory") == frozenset()


def test_an_update_cannot_be_read_while_others_may_still_commit():
    assert readable(study(open=opened("collecting")), "oslo") == {BASE}


def test_once_the_roster_is_fixed_its_updates_and_the_parts_can_be_read():
    merging = opened("merging", roster=("lyon",), parts=(Part("lyon", PART),), digest=NEW)
    assert readable(study(open=merging), "oslo") == {BASE, UPDATE, PART, NEW}


def test_a_commit_that_left_the_roster_is_nobodys_to_read():
    commits = {"lyon": Commitment(UPDATE, 1, 0), "oslo": Commitment(NEW, 1, 0)}
    merging = opened("merging", roster=("oslo",), commits=commits)
    assert UPDATE not in readable(study(open=merging), "oslo")


def test_the_accepted_merge_can_be_read_whole_and_by_its_parts():
    record = RoundRecord(
        number=1,
        attempt=1,
        base=BASE,
        digest=NEW,
        roster={"lyon": Commitment(UPDATE, 1, 0)},
        weights={"lyon": 1},
        parts=(Part("lyon", PART),),
        absent={},
        opened_s=0,
        merging_s=0,
        accepted_s=0,
    )
    assert readable(study(history=(record,)), "oslo") == {BASE, NEW, PART}


STATE, NEXT = "5a" * 32, "5b" * 32


def stepped(*starts: str, **changes: object) -> RoundRecord:
    """An accepted round, and the outer states that its roster trained from."""
    known: dict[str, object] = {
        "number": 1,
        "attempt": 1,
        "base": BASE,
        "digest": NEW,
        "roster": {name: Commitment(UPDATE, 1, 0, start) for name, start in zip("abc", starts, strict=False)},
        "weights": {},
        "parts": (),
        "absent": {},
        "opened_s": 0,
        "merging_s": 0,
        "accepted_s": 0,
    }
    return RoundRecord(**(known | changes))


def with_outer(**changes: object) -> Study:
    return study(settings=StudySettings("aml", outer=Outer()), **changes)


def test_the_outer_state_that_most_of_the_last_roster_trained_from_can_be_read():
    assert readable(with_outer(history=(stepped(STATE, STATE, NEXT),)), "oslo") == {BASE, NEW, STATE}
    assert readable(with_outer(history=(stepped(STATE, STATE, NEXT),)), "mallory") == frozenset()
    assert STATE not in readable(with_outer(history=(stepped(STATE, NEXT),)), "oslo")


def test_the_open_rounds_outer_state_can_be_read_once_most_who_are_in_it_say_so():
    commits = {"lyon": Commitment(UPDATE, 1, 0, STATE)}
    waiting = opened("collecting", commits=commits, expected={"oslo": 9, "lyon": 9})
    assert STATE not in readable(with_outer(open=waiting), "oslo")
    alone = opened("collecting", commits=commits, expected={"lyon": 9})
    assert STATE in readable(with_outer(open=alone), "oslo")
    merging = opened("merging", commits=commits | {"oslo": Commitment(NEW, 1, 0, NEXT)}, roster=("lyon",))
    assert readable(with_outer(open=merging), "oslo") == {BASE, UPDATE, STATE}


def test_an_update_does_not_become_readable_by_being_named_as_a_state():
    commits = {"lyon": Commitment(UPDATE, 1, 0, STATE), "oslo": Commitment(NEW, 1, 0, UPDATE)}
    liars = commits | {"bonn": Commitment(PART, 1, 0, UPDATE)}
    collecting = opened("collecting", commits=liars, expected={})
    assert UPDATE not in readable(with_outer(open=collecting), "oslo")


def test_the_states_that_hold_a_model_which_can_still_be_chosen_can_be_read():
    history = tuple(stepped(digest, number=at) for at, digest in enumerate((PART, STATE, NEXT, UPDATE), 1))
    asked = StudySettings("aml", outer=Outer(), best=Best("auc", "max"))
    for old, expected in ((1, {STATE, UPDATE}), (2, {NEXT, UPDATE}), (0, {UPDATE})):
        found = study(settings=asked, history=history, best_of_old=old)
        assert choosable_starts(found) == expected
        assert expected <= readable(found, "oslo")
        assert STATE in expected or STATE not in readable(found, "oslo")
    assert choosable_starts(study(settings=asked)) == frozenset()


def test_without_a_majority_a_members_own_state_is_the_one_that_it_keeps():
    asked = StudySettings("aml", outer=Outer(), best=Best("auc", "max"))
    found = study(settings=asked, history=(stepped(PART, NEXT), stepped(STATE, NEXT, number=2)))
    assert choosable_starts(found) == frozenset()
    assert choosable_starts(found, "b") == {NEXT}
    assert choosable_starts(found, "lyon") == frozenset()
