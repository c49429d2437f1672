"""Sites in trouble, with real processes: nodes that cannot start, torn files, twins, signals, bad disks."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.core.rules import Announce, StudySettings
from konsil.errors import KonsilError
from konsil.evaluation.loopback import free_port
from konsil.node.config import read_config, write_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MEMBERS = ("berlin", "bonn", "koeln")
MOUNT, UMOUNT = shutil.which("mount") or "/bin/mount", shutil.which("umount") or "/bin/umount"


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": 3,
        "quorum": 2,
        "rounds": 4,
        "every_steps": 1,
        "weighting": "equal",
        "silence_s": 4,
        "merge_s": 10,
    }
    return StudySettings(**(known | changes))


def konsil(directory: Path, *words: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """A command as a user types it."""
    command = [sys.executable, "-m", "konsil", *words, "--dir", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def start_fails(directory: Path, kind: str) -> str:
    """Start a node that cannot start; what its user reads."""
    ended = konsil(directory, "node", "start")
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"{kind}: " in ended.stderr
    return re.sub(r"\s+", " ", ended.stderr[ended.stderr.index(f"{kind}: ") :])


def configure(directory: Path, **changes: object) -> None:
    config = read_config(directory)
    write_config(replace(config, **changes))


def ended(trainers) -> list[dict]:
    return [trainer.end()[-1] for trainer in trainers]


# --- nodes that cannot start ---------------------------------------------------------------------


def test_a_node_that_cannot_start_says_why_and_what_to_do(site):
    swarm = site.swarm(*MEMBERS)
    bonn = swarm.directory("bonn")

    text = (bonn / "node.toml").read_text()
    (bonn / "node.toml").write_text(text.replace("listen =", "lisen ="))
    said = start_fails(bonn, "ConfigError")
    assert "unknown key 'node.lisen'. Did you mean 'node.listen'?" in said
    (bonn / "node.toml").write_text(text)

    host, port = read_config(bonn).node.listen.split(":")
    with socket.create_server((host, int(port))):
        said = start_fails(bonn, "ConfigError")
    assert f"Port {port} at {host} is in use" in said
    assert "Nothing was started" in said
    assert "listen on another port" in said

    genesis = bonn / "genesis.json"
    genesis.rename(bonn / "moved")
    assert "Others: get genesis.json from a member" in start_fails(bonn, "ConfigError")
    genesis.write_text((bonn / "moved").read_text()[:-40])
    assert "is not a genesis" in start_fails(bonn, "ConfigError")
    (bonn / "moved").rename(genesis)

    swarm.start(["bonn"])
    said = start_fails(bonn, "NodeBusy")
    assert "A node runs from" in said
    assert "It goes on undisturbed" in said
    assert swarm.control("bonn").node().member == "bonn"


def test_a_history_that_was_torn_or_damaged_is_named_and_fetched_again(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings())
    swarm.wait("bonn", lambda state: "aml" in state.studies)
    height = swarm.control("berlin").state().height
    swarm.wait("bonn", lambda state: state.height >= height)

    # A power cut tore the last write: what was whole before it holds, and the rest comes anew.
    swarm.kill("bonn")
    bonn = swarm.directory("bonn")
    wal = bonn / "ledger.db-wal"
    os.truncate(wal, wal.stat().st_size - 500)
    swarm.start(["bonn"])
    swarm.wait("bonn", lambda state: state.height >= height)

    # A disk that returns other bytes is another matter: the node says so and does not start.
    assert swarm.stop("bonn") == 0
    with sqlite3.connect(bonn / "ledger.db") as history:
        history.execute("UPDATE entries SET time_s = time_s + 1 WHERE height = 2")
    history.close()
    said = start_fails(bonn, "JournalCorrupt")
    assert "entry 2" in said
    assert "The other members have the whole history" in said
    assert "Move the file away" in said
    for file in bonn.glob("ledger.db*"):
        file.rename(file.with_name(f"damaged-{file.name}"))
    swarm.start(["bonn"])
    swarm.wait("bonn", lambda state: state.height >= height)
    assert konsil(bonn, "ledger", "verify").returncode == 0


def test_a_damaged_journal_stops_its_own_study_only_until_it_is_mended(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    for study in ("aml", "heart"):
        swarm.propose(settings(name=study, rounds=1000))
    trainers = {
        (study, name): site.train(swarm, study, name, number, "--pause", "0.3")
        for study in ("aml", "heart")
        for number, name in enumerate(MEMBERS, start=1)
    }
    for trainer in trainers.values():
        trainer.until("merged", 2)

    # koeln's node dies, and its disk returns another byte of one study's notes.
    swarm.kill("koeln")
    koeln = swarm.directory("koeln")
    notes = koeln / "journal" / "aml.notes"
    data = notes.read_bytes()
    notes.write_bytes(data.replace(b"publish", b"rubbish", 1))
    assert notes.read_bytes() != data
    swarm.start(["koeln"])

    # That study goes on without it, the other one with it, and its peers are answered.
    swarm.wait("bonn", lambda state: "koeln" in state.studies["aml"].history[-1].absent)
    since = len(swarm.control("bonn").state().studies["heart"].history)
    swarm.wait("bonn", lambda state: there_since(state, "heart", "koeln", since))
    said = problem_of(swarm, "koeln", "is damaged: line")
    assert "all other studies are untouched" in said
    stages = {study.study: study.stage for study in swarm.control("koeln").node().studies}
    assert stages["aml"] == "stopped"
    assert stages["heart"] != "stopped"
    doctor = konsil(koeln, "doctor")
    assert doctor.returncode == 1
    assert "The journal of study 'aml'" in doctor.stdout
    assert "konsil study mend aml" in doctor.stdout
    newcomer = site.train(swarm, "aml", "koeln", 3)
    assert "konsil study mend aml" in newcomer.end()[-1]["what"]
    assert trainers["heart", "koeln"].process.poll() is None

    # One command, and it takes part again; its training has waited.
    mended = konsil(koeln, "study", "mend", "aml")
    assert mended.returncode == 0, mended.stderr
    assert (koeln / "journal" / "aml.damaged-1").read_bytes() != data
    since = len(swarm.control("bonn").state().studies["aml"].history)
    swarm.wait("bonn", lambda state: there_since(state, "aml", "koeln", since))
    trainers["aml", "koeln"].until("merged", since + 1)
    assert not swarm.control("koeln").node().problems
    assert konsil(koeln, "study", "mend", "aml").returncode == 1
    for trainer in trainers.values():
        trainer.kill()
    assert konsil(koeln, "ledger", "verify").returncode == 0


def there_since(state, study: str, name: str, since: int) -> bool:
    return any(name in record.roster for record in state.studies[study].history[since:])


def test_an_operator_with_another_history_is_named_by_all_and_no_other_node_dies(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings())
    height = swarm.control("berlin").state().height
    for name in ("bonn", "koeln"):
        swarm.wait(name, lambda state: state.height >= height)

    # The operator lost its history, and begins another one.
    swarm.kill("berlin")
    berlin = swarm.directory("berlin")
    (berlin / "kept").mkdir()
    for file in berlin.glob("ledger.db*"):
        file.rename(berlin / "kept" / file.name)
    swarm.start(["berlin"])
    addresses = read_config(berlin).addresses
    for _ in range(height + 1):
        swarm.control("berlin").call(Announce(addresses))
    for name in ("bonn", "koeln"):
        problem = problem_of(swarm, name, "another history")
        assert f"at entry {height + 1}" in problem
        assert "are kept" in problem
        assert "konsil ledger verify" in problem
        assert swarm.control(name).state().height == height
        with pytest.raises(KonsilError, match="another history"):
            swarm.control(name).call(Announce(addresses))

    # With the true history in its place, restarted nodes go on as if nothing had been.
    for name in MEMBERS:
        assert swarm.stop(name) == 0
    for file in berlin.glob("ledger.db*"):
        file.unlink()
    for file in (berlin / "kept").iterdir():
        file.rename(berlin / file.name)
    swarm.start()
    ends = ended(trainers_of(site, swarm, "0"))
    assert [end["event"] for end in ends] == ["ended"] * 3


def problem_of(swarm, name: str, word: str) -> str:
    """The problem of a node that has this word, as soon as there is one."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        for problem in swarm.control(name).node().problems:
            if word in problem:
                return problem
        time.sleep(0.05)
    raise AssertionError(f"{name} has no problem with {word!r}: {swarm.control(name).node().problems}")


# --- twins, signals ------------------------------------------------------------------------------


def test_a_copied_directory_is_refused_by_all_and_the_first_node_goes_on(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rounds=3))
    twin = site.root / "twin"
    shutil.copytree(swarm.directory("koeln"), twin, ignore=shutil.ignore_patterns("*.sock", "*.lock"))
    configure(twin, node=replace(read_config(twin).node, listen=f"127.0.0.1:{free_port()}"))
    swarm.start(["twin"])
    trainers = [site.train(swarm, "aml", name, number) for number, name in enumerate(MEMBERS, start=1)]
    ends = ended(trainers)

    assert [end["event"] for end in ends] == ["ended"] * 3
    history = swarm.control("bonn").state().studies["aml"].history
    assert all(set(record.roster) == set(MEMBERS) for record in history)
    told = swarm.control("twin").node()
    assert not any(peer.connected for peer in told.peers)
    assert any("Two nodes with one identity" in problem for problem in told.problems)
    assert any(
        "Two nodes with one identity" in problem for problem in swarm.control("berlin").node().problems
    )


def committed(state) -> set[str]:
    current = state.studies["aml"].open
    return set(current.commits) if current is not None else set()


def test_nodes_stop_in_order_on_sigterm_while_training_waits(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(silence_s=60))
    trainers = [site.train(swarm, "aml", name, 1) for name in MEMBERS[:2]]
    slow = site.train(swarm, "aml", "koeln", 1, "--pause", "30")
    for trainer in (*trainers, slow):
        trainer.until("joined")
    swarm.wait("berlin", lambda state: committed(state) == {"berlin", "bonn"})
    for name in MEMBERS:
        assert swarm.stop(name) == 0
        assert not list(swarm.directory(name).glob("*.sock"))
        log = (swarm.directory(name) / "node.log").read_text()
        assert "stopped" in log.splitlines()[-1]
        assert "Traceback" not in log
    swarm.start()
    slow.kill()
    again = site.train(swarm, "aml", "koeln", 1)
    ends = ended((*trainers, again))
    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1


# --- full and failing disks ----------------------------------------------------------------------


def fails(swarm, name: str) -> None:
    """Let a running node's disk fail: from here on no file of it can be written beyond a few bytes."""
    resource.prlimit(swarm.pid(name), resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


@pytest.fixture
def small_disk(site):
    """A function that puts a member's directory on a disk of its own of a few MiB, and gives its path."""
    mounted: list[Path] = []

    def make(directory: Path, mib: int = 8) -> Path:
        kept = directory.with_name(directory.name + "-kept")
        directory.rename(kept)
        directory.mkdir()
        command = [MOUNT, "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(directory)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        mounted.append(directory)
        shutil.copytree(kept, directory, dirs_exist_ok=True)
        return directory

    yield make
    for swarm in site.swarms:
        swarm.close()
    for directory in mounted:
        subprocess.run([UMOUNT, str(directory)], check=True)


def trainers_of(site, swarm, pause: str = "0.3"):
    numbered = enumerate(MEMBERS, start=1)
    return [site.train(swarm, "aml", name, number, "--pause", pause) for number, name in numbered]


def absent_at_last(state, name: str) -> bool:
    history = state.studies["aml"].history
    return bool(history) and name in history[-1].absent


def there_at_last(state, name: str) -> bool:
    history = state.studies["aml"].history
    return bool(history) and name in history[-1].roster


def test_a_member_with_a_full_disk_is_left_out_and_takes_part_again_when_there_is_room(site, small_disk):
    swarm = site.swarm(*MEMBERS)
    disk = small_disk(swarm.directory("koeln"))
    swarm.start()
    swarm.propose(settings(rounds=1000, silence_s=2))
    trainers = trainers_of(site, swarm)
    trainers[2].until("merged", 2)
    fill = disk / "fill"
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    swarm.wait("bonn", lambda state: absent_at_last(state, "koeln"))
    assert "Free disk space" in " ".join(swarm.control("koeln").node().problems)
    fill.unlink()
    swarm.wait("bonn", lambda state: there_at_last(state, "koeln"))
    assert not swarm.control("koeln").node().problems
    for trainer in trainers:
        trainer.kill()
    assert konsil(swarm.directory("koeln"), "ledger", "verify").returncode == 0


def test_a_member_whose_disk_fails_is_left_out_and_comes_back_with_a_restart(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rounds=1000, silence_s=2))
    trainers = trainers_of(site, swarm)
    trainers[2].until("merged", 2)
    fails(swarm, "koeln")
    swarm.wait("bonn", lambda state: absent_at_last(state, "koeln"))
    problems = " ".join(swarm.control("koeln").node().problems)
    assert "restart the node" in problems
    swarm.kill("koeln")
    swarm.start(["koeln"])
    swarm.wait("bonn", lambda state: there_at_last(state, "koeln"))
    for trainer in trainers:
        trainer.kill()
    swarm.close()
    for name in MEMBERS:
        assert konsil(swarm.directory(name), "ledger", "verify").returncode == 0


def test_while_the_operators_disk_fails_nothing_is_promised_and_a_restart_loses_nothing(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(settings(rounds=6, silence_s=60))
    trainers = trainers_of(site, swarm)
    trainers[0].until("merged", 2)
    fails(swarm, "berlin")
    height = swarm.control("bonn").state(after=10**9, wait_s=1.0).height
    assert swarm.control("bonn").state(after=height, wait_s=1.0).height == height
    for name in ("berlin", "bonn"):
        assert "restart the node" in " ".join(swarm.control(name).node().problems)
    swarm.kill("berlin")
    swarm.start(["berlin"])
    ends = ended(trainers)
    assert [end["event"] for end in ends] == ["ended"] * 3
    history = swarm.control("koeln").state().studies["aml"].history
    assert all(set(record.roster) == set(MEMBERS) for record in history)
