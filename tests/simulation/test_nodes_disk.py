"""The simulated disk itself: what it keeps and loses is what a disk would."""

from __future__ import annotations

import os
import random
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from konsil.files import make_private_folder, write_whole
from konsil.node.config import Config, read_config
from konsil.node.setup import make_directory
from konsil.node.tables import MemberTable, NodeTable
from konsil.simulation.nodes.disk import FULL, Disk
from konsil.simulation.nodes.system import watched

LOTS = partial(random.Random, 0)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path, "ada", lambda: 10**18)
    with watched([disk]):
        yield disk


def lose_power(disk):
    lots = LOTS()
    lots.choice = lambda _: "least"
    return disk.crash("power", lots)


def content(disk, name):
    path = disk.folder / name
    return path.read_bytes() if path.exists() else None


def test_what_was_written_whole_is_there_after_any_crash(disk):
    make_private_folder(disk.folder / "merges")
    write_whole(disk.folder / "merges" / "a", [b"first"])
    assert disk.surely("merges/a") == b"first"
    write_whole(disk.folder / "merges" / "a", [b"second"])
    lose_power(disk)
    assert content(disk, "merges/a") == b"second"


def test_a_file_that_was_only_written_is_lost(disk):
    (disk.folder / "a").write_bytes(b"lost")
    assert disk.surely("a") is None
    lose_power(disk)
    assert content(disk, "a") is None


def test_a_rename_without_the_folders_fsync_is_undone(disk):
    write_whole(disk.folder / "a", [b"old"])
    with (disk.folder / "b").open("wb") as file:
        file.write(b"new")
        file.flush()
        os.fsync(file.fileno())
    (disk.folder / "b").replace(disk.folder / "a")
    assert disk.surely("a") == b"old"
    lose_power(disk)
    assert content(disk, "a") == b"old"


def test_a_name_without_its_bytes_is_an_empty_file(disk):
    (disk.folder / "a").write_bytes(b"not on the disk")
    folder = os.open(disk.folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    lose_power(disk)
    assert content(disk, "a") == b""


def test_who_is_only_killed_loses_nothing(disk):
    (disk.folder / "a").write_bytes(b"kept by the system")
    assert disk.crash("killed", LOTS()) == ()
    assert content(disk, "a") == b"kept by the system"


@pytest.mark.parametrize(("synchronous", "kept"), [("FULL", 1), ("NORMAL", 0), ("OFF", 0)])
def test_a_commit_counts_if_it_waits_for_the_disk(disk, synchronous, kept):
    database = sqlite3.connect(disk.folder / "j.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (x)")
    database.execute(f"PRAGMA synchronous={synchronous}")
    with database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO t VALUES (1)")
    lose_power(disk)
    database.close()
    again = sqlite3.connect(disk.folder / "j.db")
    assert again.execute("SELECT count(*) FROM t").fetchone() == (kept,)
    again.close()


def test_what_was_begun_and_not_committed_is_lost(disk):
    database = sqlite3.connect(disk.folder / "j.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (x)")
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO t VALUES (1)")
    disk.crash("killed", LOTS())
    database.close()
    again = sqlite3.connect(disk.folder / "j.db")
    assert again.execute("SELECT count(*) FROM t").fetchone() == (0,)
    again.close()


def test_a_full_disk_takes_nothing_and_what_was_there_stays(disk):
    write_whole(disk.folder / "a", [b"old"])
    database = sqlite3.connect(disk.folder / "j.db", isolation_level=None)
    database.execute("CREATE TABLE t (x)")
    disk.refuses = FULL
    with pytest.raises(OSError, match="No space"):
        write_whole(disk.folder / "a", [b"new"])
    with pytest.raises(OSError, match="No space"):
        make_private_folder(disk.folder / "merges")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        database.execute("INSERT INTO t VALUES (1)")
    database.close()
    assert content(disk, "a") == b"old"


def test_files_elsewhere_are_none_of_its_business(disk, tmp_path):
    disk.refuses = FULL
    write_whole(tmp_path / "elsewhere", [b"x"])
    assert Path(tmp_path / "elsewhere").read_bytes() == b"x"


def test_a_members_directory_is_there_whole_once_it_was_made(disk):
    table = NodeTable(advertise=("ada.example:7000",))
    make_directory(Config(disk.folder / "site", MemberTable(name="ada"), node=table))
    lose_power(disk)
    site = disk.folder / "site"
    assert read_config(site).name == "ada"
    assert all((site / folder).is_dir() for folder in ("keys", "cards", "merges"))
    assert list((site / "keys").iterdir())
