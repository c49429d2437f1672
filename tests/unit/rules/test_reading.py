"""Who may read which model."""

from __future__ import annotations

from konsil.core.rules import StudySettings, readable
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
