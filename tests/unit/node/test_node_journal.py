"""What a node promised stays promised, and what it was told stays known: across restarts, full disks, damage."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.core.round import Farewell, UpdateReady, may_have_promised, promise_of
from konsil.core.rules import Accept, Commit, OpenRound, Publish, Score, Study, StudySettings, Tick
from konsil.core.rules.state import Part
from konsil.errors import LedgerError, NodeError
from konsil.files import write_whole
from konsil.node.journal import Journal, damage_in
from konsil.node.notes import Notes, decode_notes, encode_notes


@dataclass
class Digests:
    one: str = "1" * 64
    other: str = "2" * 64


D = Digests()
LEFT = Farewell("snapshot", UpdateReady(3, D.other, D.one, 10))
SCORE = Score("aml", 3, 20, loss=0.25, metrics={"auc": 0.1 + 0.2})


def publish(digest=D.one, attempt=1, part=0, number=3):
    return promise_of(Publish("aml", number, attempt, part, digest))


def study(me="lyon", *, published=""):
    parts = (Part(me), Part("nice"), Part(me, published))
    current = OpenRound(3, 2, "merging", D.one, 0, 0, 9, parts=parts)
    return Study(StudySettings(name="aml", every_steps=1), D.one, "nice", 0, phase="running", open=current)


@pytest.fixture
def opened(tmp_path):
    """A function that opens the journal of 'aml' as a node's new life does, whatever was there before."""
    made = []

    def make(unknown=()):
        for each in made:
            each.close()
        made.append(Journal(tmp_path))
        journal = made[-1].of("aml")
        journal.open(unknown)
        return journal

    yield make
    for each in made:
        each.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "aml.notes"


def promised(journal, number, kind):
    return journal._notes.promises.get((number, kind), "")


def damage(path, what):
    """Change one letter of the first line with this word."""
    data = path.read_bytes()
    at = data.index(what.encode())
    path.write_bytes(data[:at] + b"?" + data[at + 1 :])


# --- promises ------------------------------------------------------------------------------------


def test_the_same_promise_may_be_repeated_and_another_may_not(opened):
    journal = opened()
    journal.promise(publish())
    journal.promise(publish())
    with pytest.raises(NodeError, match="would now promise 2222"):
        journal.promise(publish(D.other))
    assert promised(journal, 3, "publish 1 0") == D.one


def test_a_promise_survives_the_node(opened):
    opened().promise(publish())
    with pytest.raises(NodeError, match="The second promise was not made"):
        opened().promise(publish(D.other))


def test_other_rounds_parts_and_attempts_are_other_promises(opened):
    journal = opened()
    journal.promise(publish())
    for promise in (publish(D.other, attempt=2), publish(D.other, part=1), publish(D.other, number=4)):
        journal.promise(promise)


def test_calls_that_bind_nobody_are_no_promises():
    assert promise_of(Tick("aml")) is None
    assert promise_of(Commit("aml", 3, D.other, D.one, 10)) is None  # the ledger decides which one stands
    assert promise_of(Accept("aml", 3, 1, D.one)) is None


def test_promises_of_accepted_rounds_go_with_the_next_ones(opened):
    journal = opened()
    for number in (2, 3):
        journal.promise(publish(number=number))
    assert promised(journal, 2, "publish 1 0") == ""
    with pytest.raises(NodeError):
        journal.promise(publish(D.other, number=3))


def test_nothing_is_noted_before_the_file_was_read(tmp_path):
    with Journal(tmp_path) as journal:
        with pytest.raises(LedgerError):
            journal.of("aml").promise(publish())
        with pytest.raises(LedgerError):
            journal.of("aml").note_score(SCORE)
    assert not list(tmp_path.iterdir())


# --- a node that forgot its promises -------------------------------------------------------------


def test_a_node_that_leads_parts_and_has_no_journal_promises_nothing_for_them_and_may_later(opened, path):
    opened().promise(publish(attempt=2))
    path.unlink()
    journal = opened(may_have_promised("lyon", study()))
    for part in (0, 2):
        with pytest.raises(NodeError, match=r"does not know any more .* from the next attempt on"):
            journal.promise(publish(D.other, attempt=2, part=part))
    journal.promise(publish(D.other, attempt=3))
    journal.promise(publish(D.other, number=4, attempt=2))


def test_it_still_knows_that_after_another_restart(opened):
    opened(may_have_promised("lyon", study()))
    with pytest.raises(NodeError, match="does not know any more"):
        opened(()).promise(publish(attempt=2))


def test_a_part_that_stands_on_the_ledger_and_parts_of_others_are_not_in_doubt():
    assert [each.kind for each in may_have_promised("lyon", study())] == ["publish 2 0", "publish 2 2"]
    assert [each.kind for each in may_have_promised("lyon", study(published=D.one))] == ["publish 2 0"]
    assert not may_have_promised("bonn", study())
    assert not may_have_promised("lyon", replace(study(), open=None))


def test_a_journal_that_was_there_is_believed(opened):
    opened()
    opened(may_have_promised("lyon", study())).promise(publish(attempt=2))


# --- disks ---------------------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_noted_and_what_was_noted_before_is_kept(opened, monkeypatch):
    journal = opened()
    journal.promise(publish())

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match="No space left") as caught:
            journal.promise(publish(part=1))
        assert caught.value.safe.startswith("Nothing was promised")
        assert caught.value.do.startswith("Free disk space")
        with pytest.raises(LedgerError, match="finished study 'aml' could not be written"):
            journal.note_farewell(LEFT)
        with pytest.raises(LedgerError, match="scores of round 3"):
            journal.note_score(SCORE)
        assert promised(journal, 3, "publish 1 1") == ""
        assert (journal.farewell, journal.scores) == (None, ())
    journal.promise(publish(part=1))
    again = opened()
    assert [promised(again, 3, f"publish 1 {part}") for part in (0, 1)] == [D.one, D.one]
    assert again.damage is None


def test_a_journal_that_cannot_be_begun_is_begun_with_the_first_note(opened, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "konsil.node.journal.write_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        journal = opened(may_have_promised("lyon", study()))
    assert not path.exists()
    journal.note_score(SCORE)
    again = opened()
    assert again.scores == (SCORE,)
    with pytest.raises(NodeError, match="does not know any more"):
        again.promise(publish(attempt=2))


def test_what_a_killed_node_left_half_written_goes(opened, path):
    (path.parent / ".aml.notes.0123456789abcdef.new").write_bytes(b"half")
    opened()
    assert [each.name for each in path.parent.iterdir()] == ["aml.notes"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_that_closes_under_a_writing_thread_lets_it_finish_and_promises_nothing_more(opened):
    journal = opened()
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(journal.promise, publish(part=part)) for part in range(100)]
        journal.close()
    refused = [work for work in writing if work.exception() is not None]
    assert all("The node is stopping" in str(work.exception()) for work in refused)
    again = opened()
    kept = [promised(again, 3, f"publish 1 {part}") for part in range(100)]
    assert kept.count(D.one) == 100 - len(refused)


# --- what training said --------------------------------------------------------------------------


def test_what_training_said_last_survives_the_node_until_it_comes_back(opened):
    journal = opened()
    assert journal.farewell is None
    journal.note_farewell(Farewell("active"))
    journal.note_farewell(LEFT)
    journal = opened()
    assert journal.farewell == LEFT
    journal.note_farewell(None)
    journal.note_farewell(None)
    assert opened().farewell is None


def test_scores_survive_the_node_until_the_ledger_has_them(opened):
    journal, later = opened(), replace(SCORE, round=4)
    journal.note_score(SCORE)
    journal.note_score(later)
    journal.note_score(replace(SCORE, loss=9.0))  # one a round: the ledger takes the first
    journal = opened()
    assert journal.scores == (SCORE, later)
    journal.forget_score(SCORE)
    journal.forget_score(SCORE)
    assert journal.scores == (later,)
    journal.promise(publish())
    assert opened().scores == (later,)


# --- damage --------------------------------------------------------------------------------------


def full_of_notes(opened):
    journal = opened()
    journal.promise(publish())
    journal.promise(publish(part=1))
    journal.note_farewell(LEFT)
    journal.note_score(SCORE)
    return journal


@pytest.mark.parametrize("word", ['"head"', "publish 1 0", "snapshot", "auc"])
def test_a_damaged_line_stops_the_study_and_the_other_lines_still_count(opened, path, word):
    full_of_notes(opened)
    damage(path, word)
    journal = opened(may_have_promised("lyon", study()))
    said = str(journal.damage)
    assert f"{path}, is damaged: line" in said
    assert "does not hold" in said
    assert "all other studies are untouched" in said
    assert "`konsil study mend aml`" in said
    for refused in (
        lambda: journal.promise(publish(part=5)),
        lambda: journal.note_farewell(Farewell("active")),
        lambda: journal.note_score(replace(SCORE, round=7)),
    ):
        with pytest.raises(NodeError, match="is damaged"):
            refused()

    broken = path.read_bytes()
    mended = journal.mend()
    assert journal.damage is None
    assert mended.aside.read_bytes() == broken
    kept = [
        promised(journal, 3, "publish 1 0") == D.one,
        promised(journal, 3, "publish 1 1") == D.one,
        journal.farewell == LEFT,
        journal.scores == (SCORE,),
    ]
    assert kept.count(False) == (word != '"head"')
    assert (mended.kept, mended.unknown) == (kept.count(True), 2)
    with pytest.raises(NodeError, match="does not know any more"):
        journal.promise(publish(attempt=2))
    assert opened().damage is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: b"", "its first line is missing"),
        (lambda data: data[:-1] + data[-1:] * 3, "line 6 does not hold"),
        (
            lambda data: b"\n".join(data.split(b"\n")[:-2]) + b"\n",
            "it has not the lines that its first one names",
        ),
        (lambda data: data[: len(data) // 2], "does not hold"),
        (lambda _: b"\0" * 5000, "line 1 does not hold"),
        (lambda data: data + data, "it has not the lines that its first one names"),
        (lambda _: b"x" * (16 * 1024 * 1024 + 1), "more than 16777216 bytes"),
    ],
)
def test_any_other_damage_is_seen_too_and_can_be_mended(opened, path, change, said):
    full_of_notes(opened)
    path.write_bytes(change(path.read_bytes()))
    journal = opened()
    assert said in str(journal.damage)
    assert list(damage_in(path.parent)) == ["aml"]
    journal.mend()
    assert journal.damage is None
    assert not damage_in(path.parent)
    assert opened().damage is None


def test_every_changed_byte_is_seen(opened, path):
    full_of_notes(opened)
    data = path.read_bytes()
    for at in range(len(data)):
        _, wrong = decode_notes("aml", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert wrong, f"byte {at}"


def test_another_studys_file_is_not_believed(opened, path):
    full_of_notes(opened)
    path.rename(path.with_name("heart.notes"))
    with Journal(path.parent) as journal:
        heart = journal.of("heart")
        heart.open()
        assert heart.damage is not None
        assert promised(heart, 3, "publish 1 0") == ""


def unreadable(_path, _study):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_whole_file_that_could_not_be_read_is_taken_as_it_is_once_it_can_be(opened, path, monkeypatch):
    full_of_notes(opened)
    data = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("konsil.node.journal._read", unreadable)
        journal = opened(may_have_promised("lyon", study()))
        assert "cannot be read: Input/output error" in str(damage_in(path.parent)["aml"])
        assert "cannot be read: Input/output error" in str(journal.damage)
        with pytest.raises(NodeError, match=r"cannot be read: Input/output error.*try again"):
            journal.mend()
        assert path.read_bytes() == data
    assert journal.mend() == (4, None, 0)
    assert (journal.farewell, journal.scores) == (LEFT, (SCORE,))
    with pytest.raises(NodeError, match="would now promise 2222"):
        journal.promise(publish(D.other))
    assert [each.name for each in path.parent.iterdir()] == ["aml.notes"]


def test_another_file_in_the_place_of_a_damaged_one_is_taken_and_what_was_read_still_counts(opened, path):
    journal = opened()
    journal.promise(publish())
    older = path.read_bytes()
    journal.promise(publish(part=1))
    damage(path, "publish 1 0")
    journal = opened(may_have_promised("lyon", study()))
    path.write_bytes(older)
    assert journal.mend() == (2, None, 2)
    for part in (0, 1):
        with pytest.raises(NodeError, match="would now promise"):
            journal.promise(publish(D.other, part=part))


def test_a_damaged_file_that_was_moved_away_is_not_missed(opened, path):
    full_of_notes(opened)
    damage(path, "publish 1 0")
    journal = opened(may_have_promised("lyon", study()))
    path.unlink()
    assert journal.mend() == (3, None, 2)
    assert promised(opened(), 3, "publish 1 1") == D.one


def test_what_may_have_been_promised_since_the_file_was_read_is_in_doubt_too(opened, path):
    opened().promise(publish(attempt=2))
    damage(path, "publish")
    journal = opened()  # with a copy of the ledger that stood at an earlier height
    assert journal.mend(may_have_promised("lyon", study())).unknown == 2
    with pytest.raises(NodeError, match="does not know any more"):
        journal.promise(publish(D.other, attempt=2))


def test_what_is_raised_keeps_nothing_alive_that_an_earlier_one_passed(opened, path):
    full_of_notes(opened)
    damage(path, "auc")
    journal = opened()
    raised = []
    for _ in range(3):
        with pytest.raises(NodeError) as caught:
            journal.promise(publish(part=5))
        raised.append(caught.value)
    assert len({id(each) for each in raised}) == 3
    assert journal.damage.__traceback__ is None


def test_a_score_is_forgotten_while_the_disk_is_at_work_and_does_not_come_back(opened, monkeypatch):
    journal = opened()
    journal.note_score(SCORE)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        assert go_on.wait(10)
        return write_whole(*args)

    monkeypatch.setattr("konsil.node.journal.write_whole", slow)
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(journal.promise, publish())
        assert begun.wait(10)
        forgetting = threads.submit(journal.forget_score, SCORE)
        try:
            forgetting.result(timeout=5)
            assert not journal.scores
        finally:
            go_on.set()
        writing.result()
    assert not journal.scores
    assert promised(journal, 3, "publish 1 0") == D.one


def test_scores_leave_room_for_promises(opened, path, monkeypatch):
    monkeypatch.setattr("konsil.node.journal.MAX_BYTES", 2000)
    journal = opened()
    refused = []
    for number in range(1, 20):
        try:
            journal.note_score(replace(SCORE, round=number))
        except LedgerError as error:
            refused.append(str(error))
    assert 700 < path.stat().st_size <= 1000
    assert len(refused) + len(journal.scores) == 19
    assert "The scores of round 19 of study 'aml' could not be written: File too large." in refused[-1]
    journal.promise(publish())
    assert opened().damage is None
    assert promised(opened(), 3, "publish 1 0") == D.one


def test_a_journal_that_is_closed_is_neither_mended_nor_opened(opened, path):
    full_of_notes(opened)
    damage(path, "auc")
    journal, broken = opened(), path.read_bytes()
    journal.close()
    with pytest.raises(LedgerError, match="is stopping"):
        journal.mend()
    with pytest.raises(LedgerError, match="is stopping"):
        journal.open()
    journals = Journal(path.parent)
    journals.close()
    with pytest.raises(LedgerError, match="is stopping"):
        journals.of("heart").open()
    assert path.read_bytes() == broken
    assert [each.name for each in path.parent.iterdir()] == ["aml.notes"]


def test_a_folder_that_cannot_be_read_is_not_one_without_damage(tmp_path, monkeypatch):
    assert damage_in(tmp_path / "not here yet") == {}

    def closed(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError):
        damage_in(tmp_path)


def test_a_disk_without_hard_links_can_keep_what_was_damaged(opened, path, monkeypatch):
    full_of_notes(opened)
    damage(path, "auc")
    broken, journal = path.read_bytes(), opened()

    def no_links(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    assert journal.mend().aside.read_bytes() == broken


def test_tries_that_fail_leave_nothing_behind(opened, path, monkeypatch):
    full_of_notes(opened)
    damage(path, "auc")
    journal = opened()
    for failing_at in (1, 2):
        writes = []

        def fails(*args, at=failing_at, writes=writes):
            writes.append(args)
            return full() if len(writes) == at else write_whole(*args)

        with monkeypatch.context() as patch:
            patch.setattr("konsil.node.journal.write_whole", fails)
            with pytest.raises(LedgerError, match=r"could not be mended: No space left.*still stopped"):
                journal.mend()
        assert len(writes) == failing_at
    assert [each.name for each in path.parent.iterdir()] == ["aml.notes"]
    assert journal.mend().aside.name == "aml.damaged-1"


def test_what_cannot_be_mended_stays_as_it_is(opened, path, monkeypatch):
    full_of_notes(opened)
    damage(path, "auc")
    journal, broken = opened(), path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match="No space left"):
            journal.mend()
    assert journal.damage is not None
    assert path.read_bytes() == broken
    assert journal.mend().kept == 3
    with pytest.raises(NodeError, match="as it must be"):
        journal.mend()


def test_notes_come_back_as_they_were():
    notes = Notes(
        {(3, "publish 1 0"): D.one, (3, "publish 1 1"): ""}, LEFT, {3: SCORE, 4: replace(SCORE, round=4)}
    )
    assert decode_notes("aml", encode_notes("aml", notes)) == (notes, ())
    assert decode_notes("aml", encode_notes("aml", Notes())) == (Notes(), ())


def test_what_was_promised_in_rounds_that_are_over_is_no_less_in_doubt_now(opened, path):
    opened().promise(publish(number=2))
    damage(path, "head")
    mended = opened(may_have_promised("lyon", study())).mend()
    assert mended.unknown == 2
