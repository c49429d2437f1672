from __future__ import annotations

import shutil
import sqlite3

import pytest

from konsil.core.rules import entry_digest
from konsil.errors import ConfigError, JournalCorrupt, LedgerError, NodeBusy
from konsil.ledger.journal import Journal


def _filled(path, world, count=5):
    entries = world.entries(count)
    with Journal(path, world.digest) as journal:
        for entry in entries:
            journal.append([entry])
    return entries


def test_what_was_appended_is_read_back_after_a_new_start(tmp_path, world):
    entries = _filled(tmp_path / "j.db", world)
    with Journal(tmp_path / "j.db", world.digest) as journal:
        assert list(journal.read()) == entries
        assert list(journal.read(after=3)) == entries[3:]
        assert (journal.height, journal.head) == (5, entry_digest(entries[-1]))


def test_a_journal_is_private_to_its_owner(tmp_path, world):
    _filled(tmp_path / "j.db", world)
    assert (tmp_path / "j.db").stat().st_mode & 0o077 == 0


def test_a_reader_looks_at_one_moment_of_a_journal_that_is_written_to(tmp_path, world, monkeypatch):
    path = tmp_path / "j.db"
    _filled(path, world, 3)
    more = world.entries(4)[3:]
    read = Journal.read
    with Journal(path, world.digest) as writer:

        def slowly(self, after=0):
            yield from read(self, after)
            writer.append(more)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "read", slowly)
            reader = Journal(path, world.digest, read_only=True)
        with reader:
            assert (reader.height, writer.height) == (3, 4)
            assert [entry.height for entry in reader.read()] == [1, 2, 3, 4]


def test_a_journal_of_another_genesis_is_refused(tmp_path, world, other_world):
    _filled(tmp_path / "j.db", world)
    with pytest.raises(ConfigError, match="another swarm"):
        Journal(tmp_path / "j.db", other_world.digest)


def test_a_journal_that_is_open_cannot_be_opened_again(tmp_path, world):
    with Journal(tmp_path / "j.db", world.digest):
        with pytest.raises(NodeBusy):
            Journal(tmp_path / "j.db", world.digest)
        Journal(tmp_path / "j.db", world.digest, read_only=True).close()
    Journal(tmp_path / "j.db", world.digest).close()


def test_an_entry_that_does_not_follow_is_not_written(tmp_path, world):
    entries = world.entries(3)
    with Journal(tmp_path / "j.db", world.digest) as journal:
        journal.append(entries[:1])
        with pytest.raises(JournalCorrupt) as caught:
            journal.append(entries[2:])
        assert caught.value.fields["height"] == 2
        assert journal.height == 1


def test_a_torn_last_write_loses_only_the_write_that_was_never_acknowledged(tmp_path, world):
    path, wal = tmp_path / "j.db", tmp_path / "j.db-wal"
    entries = world.entries(4)
    with Journal(path, world.digest) as journal:
        for entry in entries[:3]:
            journal.append([entry])
        acknowledged_bytes = wal.stat().st_size
        journal.append(entries[3:])
        whole_bytes = wal.stat().st_size
        assert whole_bytes > acknowledged_bytes
        for number, size in enumerate(range(acknowledged_bytes, whole_bytes, 700)):
            torn = tmp_path / f"torn-{number}.db"
            shutil.copy(path, torn)
            shutil.copy(wal, f"{torn}-wal")
            with (tmp_path / f"torn-{number}.db-wal").open("r+b") as stream:
                stream.truncate(size)
            with Journal(torn, world.digest) as again:
                assert list(again.read()) == entries[:3]
                again.append(entries[3:])
                assert list(again.read()) == entries


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET time_s = time_s + 1 WHERE height = 3",
        "UPDATE entries SET signed = x'00' WHERE height = 3",
        "UPDATE entries SET state = 'x' WHERE height = 3",
        "UPDATE entries SET digest = 'x' WHERE height = 3",
        "DELETE FROM entries WHERE height = 3",
        "DELETE FROM entries WHERE height >= 3",
    ],
)
def test_a_changed_or_missing_entry_is_named_by_its_height(tmp_path, world, change):
    _filled(tmp_path / "j.db", world)
    with sqlite3.connect(tmp_path / "j.db") as database:
        database.execute(change)
    database.close()
    with pytest.raises(JournalCorrupt, match="damaged at entry 3") as caught:
        Journal(tmp_path / "j.db", world.digest)
    assert caught.value.fields["height"] == 3


def test_a_flipped_byte_in_an_entry_is_found(tmp_path, world):
    path = tmp_path / "j.db"
    entries = _filled(path, world)
    data = bytearray(path.read_bytes())
    data[data.index(entries[2].signed) + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalCorrupt, match="damaged at entry 3"):
        Journal(path, world.digest)


def _tables_are_no_text(path):
    """They stand in SQLite's message."""
    path.write_bytes(path.read_bytes().replace(b"TABLE entries", b"T\xfbBLE entries"))


def _a_record_longer_than_memory(path):
    database = sqlite3.connect(path, isolation_level=None)
    for order in ("PRAGMA journal_mode=DELETE", "PRAGMA page_size=512", "VACUUM", "PRAGMA journal_mode=WAL"):
        database.execute(order)
    database.close()
    data = path.read_bytes()
    at = int.from_bytes(data[108:110], "big")  # of the first record among the tables' descriptions
    path.write_bytes(data[:at] + b"\xff\xff\xff\xff\xff\xff\xff\x62\x00\x62" + data[at + 10 :])


@pytest.mark.parametrize("damage", [_tables_are_no_text, _a_record_longer_than_memory])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_file_is_refused_whatever_sqlite_makes_of_it(tmp_path, world, read_only, damage):
    path = tmp_path / "j.db"
    _filled(path, world)
    damage(path)
    with pytest.raises(LedgerError, match=r"j\.db is damaged at entry 1"):
        Journal(path, world.digest, read_only=read_only)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut_off_is_not_taken_for_a_shorter_history(tmp_path, world, keep):
    path = tmp_path / "j.db"
    _filled(path, world, 20)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(JournalCorrupt):
        Journal(path, world.digest)


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, world):
    path = tmp_path / "j.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalCorrupt):
        Journal(path, world.digest)
    assert path.read_bytes() == b"not a database at all" * 100


def test_a_full_disk_promises_nothing_and_is_overcome(tmp_path, world):
    entries = world.entries(40)
    with Journal(tmp_path / "j.db", world.digest) as journal:
        journal.append(entries[:1])
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerError, match="Nothing was promised"):
            journal.append(entries[1:])
        assert list(journal.read()) == entries[:1]
        journal._db.execute("PRAGMA max_page_count = 100000")
        journal.append(entries[1:])
        assert list(journal.read()) == entries


class _FailingDisk:
    """A connection whose commits fail as they do on a broken disk."""

    def __init__(self, connection):
        self.connection = connection

    def __getattr__(self, name):
        return getattr(self.connection, name)

    def commit(self):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


def test_after_a_failed_fsync_nothing_more_is_promised_until_a_new_start(tmp_path, world):
    entries = world.entries(2)
    with Journal(tmp_path / "j.db", world.digest) as journal:
        journal.append(entries[:1])
        healthy = journal._db
        journal._db = _FailingDisk(healthy)
        with pytest.raises(LedgerError, match="disk I/O error"):
            journal.append(entries[1:])
        journal._db = healthy
        with pytest.raises(LedgerError, match="restart the node"):
            journal.append(entries[1:])
    with Journal(tmp_path / "j.db", world.digest) as again:
        again.append(entries[1:])
        assert again.height == 2


def test_reading_only_changes_no_byte(tmp_path, world):
    entries = _filled(tmp_path / "j.db", world)
    before = (tmp_path / "j.db").read_bytes()
    with Journal(tmp_path / "j.db", world.digest, read_only=True) as journal:
        assert list(journal.read()) == entries
        with pytest.raises(LedgerError):
            journal.append(world.entries(6)[5:])
    assert (tmp_path / "j.db").read_bytes() == before


def test_a_journal_that_must_exist_is_not_made(tmp_path, world):
    with pytest.raises(ConfigError, match="no journal"):
        Journal(tmp_path / "j.db", world.digest, read_only=True)
    assert not (tmp_path / "j.db").exists()
