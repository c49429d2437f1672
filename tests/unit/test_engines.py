"""Engines for tests are built once, from what is pinned with checksums, also by two at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

ENGINES = Path(__file__).parents[2] / "scripts" / "engines"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KONSIL_ENGINES", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def building(engines, monkeypatch):
    """Builds that write a file instead, one line each in the list; all tools are there."""
    built = []

    def build(name, into, _scratch):
        built.append(name)
        (into / "anvil").write_text("a program")

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(engines.shutil, "which", lambda tool: f"/bin/{tool}")
    return built


def test_what_was_built_is_there_the_next_time(engines, cache, building):
    folder, new = engines.bring("anvil")
    assert new
    assert (folder / "anvil").read_text() == "a program"
    assert engines.bring("anvil") == (folder, False)
    assert building == ["anvil"]
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, "anvil.lock"])


def test_of_two_at_once_one_waits_for_the_other(engines, cache, building, monkeypatch):
    began, may_end = Event(), Event()
    quick = engines.build

    def slow(name, into, scratch):
        began.set()
        assert may_end.wait(10)
        quick(name, into, scratch)

    monkeypatch.setattr(engines, "build", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(engines.bring, "anvil")
        assert began.wait(10)
        second = pool.submit(engines.bring, "anvil")
        may_end.set()
        assert (first.result(10)[0], building) == (second.result(10)[0], ["anvil"])
    assert not list(cache.glob(".*"))


def test_a_build_that_fails_or_was_killed_leaves_nothing_that_is_taken_for_a_whole(
    engines, cache, building, monkeypatch
):
    quick = engines.build
    monkeypatch.setattr(engines, "build", lambda *_arguments: (_ for _ in ()).throw(engines.Failed("no")))
    with pytest.raises(engines.Failed):
        engines.bring("anvil")
    assert engines.built("anvil") is None
    (cache / ".anvil-killed").mkdir()
    monkeypatch.setattr(engines, "build", quick)
    folder, _ = engines.bring("anvil")
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, "anvil.lock"])


def test_other_pins_are_built_anew(engines, cache, building, monkeypatch, tmp_path):
    folder, _ = engines.bring("anvil")
    shutil.copytree(engines.PINS / "anvil", tmp_path / "pins" / "anvil")
    monkeypatch.setattr(engines, "PINS", tmp_path / "pins")
    assert engines.built("anvil") == folder, "where the files lie does not matter"
    with (tmp_path / "pins" / "anvil" / "package-lock.json").open("a") as lock:
        lock.write("\n")
    other, new = engines.bring("anvil")
    assert new
    assert other != folder


def test_what_is_built_already_is_found_without_a_compiler(engines, cache, monkeypatch):
    folder = cache / f"cometbft-{engines.pins_digest('cometbft')}-go1.26.8-linux-amd64"
    folder.mkdir(parents=True)
    monkeypatch.setattr(engines.shutil, "which", lambda _tool: None)
    assert engines.built("cometbft") is None, "an incomplete folder is none"
    (folder / "cometbft").write_text("a program")
    assert engines.built("cometbft") == folder


def test_without_go_it_says_what_is_skipped_and_how_to_get_it(cache, tmp_path):
    (tmp_path / "bin").mkdir()
    environment = os.environ | {"PATH": str(tmp_path / "bin"), "KONSIL_ENGINES": str(cache)}
    command = [sys.executable, ENGINES.with_suffix(".py")]
    done = subprocess.run(
        [*command, "cometbft"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "cometbft 0.38.25 is skipped" in done.stderr
    assert "https://go.dev/dl" in done.stderr
    asked = [*command, "--where", "cometbft"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "scripts/engines cometbft" in done.stderr


def test_nothing_in_the_environment_keeps_go_from_checking(engines, monkeypatch):
    for name in engines.UNCHECKED:
        monkeypatch.setenv(name, "*")
    monkeypatch.setenv("GOSUMDB", "off")
    environment = engines.environment()
    assert not set(environment) & (set(engines.UNCHECKED) - {"GOFLAGS"} | {"GOSUMDB"})
    assert environment["GOFLAGS"].startswith("-mod=readonly")


def test_every_package_has_its_checksum_and_no_address_of_a_registry(engines):
    lock = json.loads((engines.PINS / "anvil" / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    assert not [package for package in packages if "resolved" in package]
    assert all(engines.version(name) for name in engines.ENGINES)


def test_what_go_has_fetched_must_be_what_is_pinned(engines, cache, monkeypatch, tmp_path):
    if shutil.which("go") is None:
        pytest.skip("NOT TESTED: there is no Go here")
    modules = subprocess.run(
        [shutil.which("go"), "env", "GOMODCACHE"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not list(Path(modules).glob("github.com/cometbft/cometbft@*")):
        pytest.skip("NOT TESTED: Go has not fetched CometBFT here; scripts/engines cometbft does")
    shutil.copytree(engines.PINS / "cometbft", tmp_path / "pins" / "cometbft")
    monkeypatch.setattr(engines, "PINS", tmp_path / "pins")
    sums = tmp_path / "pins" / "cometbft" / "go.sum"
    line = next(
        each for each in sums.read_text().splitlines() if each.startswith("github.com/cometbft/cometbft v")
    )
    sums.write_text(sums.read_text().replace(line, f"{line[:-5]}AAAA="))
    with pytest.raises(engines.Failed, match="checksum mismatch"):
        engines.bring("cometbft")
    assert engines.built("cometbft") is None
