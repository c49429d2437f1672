"""What a node promised stays promised: across restarts, full disks and damaged files."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from konsil.core.round import Farewell, UpdateReady, promise_of
from konsil.core.rules import Accept, Commit, Publish, Tick
from konsil.errors import LedgerError, NodeError
from konsil.node.journal import Journal


@dataclass
class Digests:
    one: str = "1" * 64
    other: str = "2" * 64


D = Digests()


def publish(digest=D.one, attempt=1, part=0, number=3):
    return promise_of(Publish("aml", number, attempt, part, digest))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


def test_the_same_promise_may_be_repeated_and_another_may_not(path):
    with Journal(path) as journal:
        journal.promise(publish())
        journal.promise(publish())
        with pytest.raises(NodeError, match="would now promise 2222"):
            journal.promise(publish(D.other))
        assert journal.promised("aml", 3, "publish 1 0") == D.one


def test_a_promise_survives_the_node(path):
    with Journal(path) as journal:
        journal.promise(publish())
    with Journal(path) as journal, pytest.raises(NodeError, match="The second promise was not made"):
        journal.promise(publish(D.other))


def test_other_rounds_parts_and_attempts_are_other_promises(path):
    with Journal(path) as journal:
        journal.promise(publish())
        for promise in (publish(D.other, attempt=2), publish(D.other, part=1), publish(D.other, number=4)):
            journal.promise(promise)


def test_calls_that_bind_nobody_are_no_promises():
    assert promise_of(Tick("aml")) is None
    assert promise_of(Commit("aml", 3, D.other, D.one, 10)) is None  # the ledger decides which one stands
    assert promise_of(Accept("aml", 3, 1, D.one)) is None


def test_promises_of_accepted_rounds_go_with_the_next_ones(path):
    with Journal(path) as journal:
        for number in (2, 3):
            journal.promise(publish(number=number))
        assert journal.promised("aml", 2, "publish 1 0") == ""
        with pytest.raises(NodeError):
            journal.promise(publish(D.other, number=3))


def fill(journal):
    """Promise parts until the disk refuses: the part that was not promised, and why."""
    for part in range(1000):
        try:
            journal.promise(publish(part=part))
        except LedgerError as error:
            return part, error
    raise AssertionError("the disk never was full")


def test_on_a_full_disk_nothing_is_promised_and_what_was_promised_before_is_kept(path):
    with Journal(path) as journal:
        (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
        journal._db.execute(f"PRAGMA max_page_count={pages}")
        part, error = fill(journal)
        assert error.safe.startswith("Nothing was promised")
        assert error.do.startswith("Free disk space")
        assert journal.promised("aml", 3, f"publish 1 {part}") == ""
        journal._db.execute("PRAGMA max_page_count=100000")
        journal.promise(publish(part=part))
    with Journal(path) as journal, pytest.raises(NodeError):
        journal.promise(publish(D.other, part=0))


def test_a_torn_last_write_costs_only_that_write(path):
    journal = Journal(path)
    journal.promise(publish())
    journal.promise(publish(part=1))
    wal = path.with_name("journal.db-wal")
    data, whole = path.read_bytes(), wal.read_bytes()
    journal.close()
    path.write_bytes(data)
    wal.write_bytes(whole[:-100])
    with Journal(path) as journal:
        assert journal.promised("aml", 3, "publish 1 0") == D.one
        assert journal.promised("aml", 3, "publish 1 1") == ""


@pytest.mark.parametrize(
    "damage", ["no database", "a folder", "tables that are no text", "a record longer than memory"]
)
def test_a_journal_that_cannot_be_opened_says_so(path, damage):
    if damage == "a folder":
        path.mkdir()
    elif damage == "tables that are no text":
        Journal(path).close()
        path.write_bytes(path.read_bytes().replace(b"TABLE promises", b"T\xfbBLE promises"))
    elif damage == "a record longer than memory":
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA page_size=512")
        database.execute("CREATE TABLE promises (study)")
        database.close()
        data = path.read_bytes()
        at = int.from_bytes(data[108:110], "big")  # of the first record among the tables' descriptions
        path.write_bytes(data[:at] + b"\xff\xff\xff\xff\xff\xff\xff\x62\x00\x62" + data[at + 10 :])
    else:
        path.write_bytes(b"\0not a database" * 1000)
    with pytest.raises(NodeError, match=r"journal\.db cannot be opened.*untouched.*move it away"):
        Journal(path)


def test_a_journal_that_closes_under_a_writing_thread_lets_it_finish_and_promises_nothing_more(path):
    journal = Journal(path)
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(journal.promise, publish(part=part)) for part in range(200)]
        journal.close()
    refused = [work for work in writing if work.exception() is not None]
    assert all("The node is stopping" in str(work.exception()) for work in refused)
    with Journal(path) as again:
        kept = [again.promised("aml", 3, f"publish 1 {part}") for part in range(200)]
    assert kept.count(D.one) == 200 - len(refused)
    journal.close()


LEFT = Farewell("snapshot", UpdateReady(3, D.other, D.one, 10))


def test_what_training_said_last_survives_the_node_until_it_comes_back(path):
    with Journal(path) as journal:
        assert journal.farewell("aml") is None
        journal.note_farewell("aml", Farewell("active"))
        journal.note_farewell("aml", LEFT)
        journal.note_farewell("heart", Farewell("inactive"))
    with Journal(path) as journal:
        assert journal.farewell("aml") == LEFT
        journal.note_farewell("aml", None)
        journal.note_farewell("aml", None)
        assert journal.farewell("aml") is None
        assert journal.farewell("heart") == Farewell("inactive")


def test_a_farewell_that_no_version_knows_counts_for_nothing(path):
    with Journal(path) as journal:
        journal.note_farewell("aml", LEFT)
        journal._db.execute("UPDATE farewells SET words = x'ff7b'")
        assert journal.farewell("aml") is None


def test_a_journal_that_takes_nothing_says_so_of_a_farewell(path):
    with Journal(path) as journal:
        journal._db.execute("DROP TABLE farewells")
        with pytest.raises(LedgerError, match="finished study 'aml' could not be written"):
            journal.note_farewell("aml", LEFT)
        with pytest.raises(NodeError, match="cannot be opened: no such table"):
            journal.farewell("aml")
