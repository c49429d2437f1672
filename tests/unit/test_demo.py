"""The demo without its processes: what it checks at the end, and what it shows meanwhile."""

from __future__ import annotations

import io
import socket

import pytest
from msgspec.structs import replace
from rich.console import Console

from konsil.cli import demo_view
from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import Commitment, OpenRound, Part, Participant, RoundRecord, ScoreRecord, Study
from konsil.evaluation.checks import Verification, check
from konsil.evaluation.processes import Broken, Channel, Ended, Merged, News
from konsil.evaluation.progress import Plan, Progress

NAMES = ("hillview", "lakeside", "northgate", "riverside")
DIGEST = "ab12" * 16
FINE = {name: Verification(40, "5" * 64, "6" * 64) for name in NAMES}


def record(number: int, without: str = "") -> RoundRecord:
    present = [name for name in NAMES if name != without]
    return RoundRecord(
        number=number, attempt=1, base=DIGEST, digest=DIGEST,
        roster={name: Commitment(DIGEST, 20, 1000) for name in present},
        weights=dict.fromkeys(present, 20), parts=(Part(present[0], DIGEST),),
        absent={without: "silent"} if without else {}, opened_s=1000, merging_s=1001, accepted_s=1002,
        scores={name: ScoreRecord(5, 0.5, {"auc": 0.8 + number / 100}) for name in present},
    )  # fmt: skip


def study(*rounds: RoundRecord, current: OpenRound | None = None) -> Study:
    return Study(
        settings=StudySettings(name="breast-cancer", rounds=2, every_epochs=5), settings_digest=DIGEST,
        proposer=NAMES[0], proposed_s=1000, phase="running",
        participants={name: Participant(present=True) for name in NAMES}, history=rounds, open=current,
    )  # fmt: skip


def open_round(**changes: object) -> OpenRound:
    plain = OpenRound(
        number=2, attempt=1, phase="collecting", base=DIGEST, opened_s=1000, phase_since_s=1000,
        deadline_s=1020, expected=dict.fromkeys(NAMES, 1020),
    )  # fmt: skip
    return replace(plain, **changes)


# --- what must hold at the end ---------------------------------------------------------------------


def test_a_study_as_it_must_be_leaves_no_problem():
    whole = study(record(1), record(2))
    assert check(whole, NAMES, 2, dict.fromkeys(NAMES, DIGEST), FINE) == ()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"study": study(record(1), record(2, without="lakeside"))}, "lakeside was not in round 2: silent."),
        ({"study": study(record(1))}, "1 rounds were accepted and not 2"),
        ({"held": {**dict.fromkeys(NAMES, DIGEST), "northgate": "0" * 64}}, "northgate holds another model"),
        ({"held": dict.fromkeys(NAMES[1:], DIGEST)}, "hillview holds another model than the ledger's: none"),
        (
            {"verified": FINE | {"riverside": Verification(problem="JournalCorrupt: entry 7")}},
            "The history at riverside does not hold: JournalCorrupt: entry 7",
        ),
        ({"verified": FINE | {"riverside": Verification(40, "5" * 64, "7" * 64)}}, "histories differ"),
        ({"verified": {name: FINE[name] for name in NAMES[1:]}}, "hillview does not hold: it was not asked"),
    ],
)
def test_whatever_is_not_as_it_must_be_is_a_sentence(changed, sentence):
    facts = {
        "study": study(record(1), record(2)),
        "held": dict.fromkeys(NAMES, DIGEST),
        "verified": FINE,
        **changed,
    }
    problems = check(facts["study"], NAMES, 2, facts["held"], facts["verified"])
    assert any(sentence in problem for problem in problems)


# --- what is shown meanwhile -----------------------------------------------------------------------


def progress(found: Study | None, **facts: object) -> Progress:
    made = Progress(Plan("breast-cancer", None, 2, 0, None, 0.0), study=found, step="train")
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def drawn(shown: Progress, width: int = 120, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(demo_view.Picture(console, shown, quiet=False).draw())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_picture_says_who_has_committed_and_who_is_waited_for_until_when():
    commits = {name: Commitment(DIGEST, 20, 1000) for name in NAMES if name != "lakeside"}
    text = drawn(progress(study(record(1), current=open_round(commits=commits))))
    assert "round 2 of 2" in text
    assert "collecting updates: waits for lakeside, until " in text
    lines = {name: line for line in text.splitlines() for name in NAMES if line.strip().startswith(name)}
    assert "trains" in lines["lakeside"]
    assert all("update committed" in lines[name] for name in commits)
    assert "0.810" in lines["hillview"]


def test_the_picture_says_who_merges_and_who_still_checks_a_merge():
    merging = open_round(phase="merging", roster=NAMES, parts=(Part("northgate"), Part("lakeside", DIGEST)))
    text = drawn(progress(study(record(1), current=merging)))
    assert "merging: waits for northgate" in text
    assert "merges part 0" in text
    assert text.count("its part is merged") == 1
    assert text.count("waits for the merge") == 2
    accepting = replace(merging, parts=(Part("northgate", DIGEST),), digest=DIGEST, accepts=NAMES[:3])
    text = drawn(progress(study(record(1), current=accepting)))
    assert "accepting the merge: waits for riverside" in text
    assert text.count("holds the merge") == 3
    assert text.count("checks the merge") == 1


def test_the_picture_names_an_absent_hospital_with_the_reason():
    away = open_round(expected=dict.fromkeys(NAMES[1:], 1020), absent={"hillview": "silent"})
    assert "not in this round: silent" in drawn(progress(study(record(1), current=away)))


@pytest.mark.parametrize("step", ["start", "nodes", "agree", "train", "compare", "verify", "report"])
def test_every_step_has_a_line_before_there_is_a_study_and_fits_a_small_terminal(step):
    shown = progress(None, step=step, done={"start": 1.0} if step != "start" else {})
    text = drawn(shown, width=80, height=24)
    assert demo_view.NOW[step] in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(text.splitlines()) <= 24


def test_a_merge_and_a_word_count_as_getting_further_and_a_tick_of_the_ledger_does_not():
    shown = progress(study(record(1), current=open_round()))
    steps = shown.steps_taken
    shown.height += 1
    shown.study = study(record(1), current=open_round(attempt=2))
    assert shown.steps_taken == steps
    shown.alone.add("lakeside")
    assert shown.steps_taken == steps + 1
    shown.study = study(record(1), record(2))
    assert shown.steps_taken > steps + 1


# --- words between the demo and its processes ------------------------------------------------------


def test_words_arrive_whole_in_order_and_the_end_is_noticed():
    ours, theirs = socket.socketpair()
    receiver, sender = Channel[News](ours, News), Channel[News](theirs, News)
    words = [Merged(1, 2.5), Ended("All 1 rounds are done.", DIGEST), Broken("StudyError", "line 1\nline 2")]
    try:
        for word in words:
            sender.send(word)
        sender.close()
        received = []
        while not receiver.ended:
            received += receiver.read()
    finally:
        receiver.close()
    assert received == words


def test_a_word_to_a_process_that_is_gone_is_not_an_error():
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel[News](ours, News)
    channel.send(Merged(1, 2.5))
    assert channel.read() == []
    assert channel.ended
    channel.close()
