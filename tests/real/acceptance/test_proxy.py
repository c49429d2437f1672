"""Hospitals whose firewalls let nothing out but through their own proxy, each a process of its own.

Cards name hosts that no machine finds but the proxies: whoever reaches a peer came through one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from konsil.evaluation.loopback import free_port
from konsil.node.config import CONFIG_NAME, read_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

THREE = ("berlin", "bonn", "koeln")
PASSWORD = "s3cret-of-bonn"  # noqa: S105 - of a proxy that lives as long as its test
"""It must stand nowhere but in its file."""


class HospitalProxy:
    """A process of `connect_proxy.py`, to be killed and started again at the same port."""

    def __init__(self, port: int, *words: str) -> None:
        self.port = port
        self.asked: list[tuple[str, int]] = []
        self._words = words
        self.start()

    def start(self) -> None:
        path = Path(__file__).with_name("connect_proxy.py")
        self._process = subprocess.Popen(
            [sys.executable, str(path), str(self.port), *self._words], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline()) == {"listening": self.port}
        self._listening = threading.Thread(target=self._hear, args=(self._process.stdout,))
        self._listening.start()

    def _hear(self, said: Any) -> None:
        for line in said:
            word = json.loads(line)
            self.asked.append((word["asked"], word["status"]))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listening.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Town:
    """A swarm whose members reach each other through their hospitals' proxies alone."""

    def __init__(self, lab: Any, *, dial_only: tuple[str, ...]) -> None:
        self.lab = lab
        self.proxies: dict[str, HospitalProxy] = {}
        lab.swarm = lab.site.swarm(
            *THREE, advertise={name: f"{name}.invalid:7400" for name in THREE}, dial_only=dial_only
        )
        for name in THREE:
            self.set(name, "proxy", "", before="none")
        self.listening = {name: read_config(lab.swarm.directory(name)).node.listen for name in THREE}

    def proxy(self, name: str, *words: str) -> HospitalProxy:
        """A member's proxy, which knows the way to everybody who listens."""
        ways = [f"{peer}.invalid:7400={listen}" for peer, listen in self.listening.items() if listen]
        held: list[Any] = []
        port = free_port(held)
        for each in held:
            each.close()
        self.proxies[name] = HospitalProxy(port, *words, *ways)
        return self.proxies[name]

    def set(self, name: str, key: str, value: str, before: str = "") -> None:
        """Edit a line of node.toml, as IT does."""
        file = self.lab.swarm.directory(name) / CONFIG_NAME
        text = file.read_text()
        assert f'\n{key} = "{before}"\n' in text
        file.write_text(text.replace(f'\n{key} = "{before}"\n', f'\n{key} = "{value}"\n'))

    def behind_its_proxy(self, name: str) -> HospitalProxy:
        proxy = self.proxy(name)
        self.set(name, "proxy", f"http://127.0.0.1:{proxy.port}")
        return proxy

    def links(self, name: str) -> dict[str, Any]:
        return {peer.member: peer for peer in self.lab.swarm.control(name).node().peers}

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.kill()


@pytest.fixture
def town(lab) -> Iterator[Any]:
    towns: list[Town] = []

    def make(*, dial_only: tuple[str, ...] = ()) -> Town:
        towns.append(Town(lab, dial_only=dial_only))
        return towns[-1]

    yield make
    for each in towns:
        each.close()


def doctors_line(lab, name: str, check: str) -> dict[str, str]:
    """The one line of `konsil doctor` about this."""
    findings = json.loads(lab.typed(name, "doctor", "--json").stdout)["findings"]
    (line,) = [finding for finding in findings if finding["check"] == check]
    return line


def test_all_but_one_get_out_through_proxies_alone_and_one_that_dies_in_a_round_costs_no_round(lab, town):
    """They dial the operator by a name that only proxies find, and each other's updates come through it."""
    here = town(dial_only=("bonn", "koeln"))
    for name in ("bonn", "koeln"):
        here.behind_its_proxy(name)
    lab.swarm.start()
    lab.study(rounds=6)
    lab.train(pause=0.5, elements=200_000)
    lab.trainers["koeln"].until("merged", 2)
    lab.wait("koeln", lambda study: study.open is not None and study.open.number == 3)
    proxy = here.proxies["koeln"]
    proxy.kill()
    problem = f"The proxy http://127.0.0.1:{proxy.port} cannot be reached: Connection refused"
    lab.until(lambda: problem in here.links("koeln")["berlin"].problem, here.links("koeln"))
    assert problem in lab.konsil("koeln", "node", "status")
    assert doctors_line(lab, "koeln", "proxy")["level"] == "fail"
    for blamed in ("berlin", "ledger"):
        assert doctors_line(lab, "koeln", blamed)["do"] == "See `proxy` above."
    study = lab.on_ledger("berlin")
    assert study.open is not None
    assert study.open.number == 3, "the round waits for it"
    proxy.start()
    lab.ends()
    history = lab.intact()
    assert len(history) == 6
    assert all(set(record.roster) == set(THREE) for record in history)
    assert here.links("koeln")["berlin"].via == "dialled"
    for each in here.proxies.values():
        assert set(each.asked) == {("berlin.invalid:7400", 200)}
    line = doctors_line(lab, "koeln", "proxy")
    assert (line["level"], line["what"].rpartition(") ")[2]) == (
        "ok",
        "opens the way to berlin.invalid:7400",
    )


def test_where_all_listen_behind_proxies_connections_come_back_from_the_other_side(lab, town):
    """berlin dialled everybody; without its proxy the others dial it."""
    here = town()
    for name in THREE:
        here.behind_its_proxy(name)
    lab.swarm.start()
    lab.study(rounds=6)
    lab.train(pause=0.3, elements=200_000)
    lab.trainers["berlin"].until("merged", 2)
    here.proxies["berlin"].kill()
    lab.until(lambda: all(peer.via == "accepted" for peer in here.links("berlin").values()))
    here.proxies["berlin"].start()
    lab.ends()
    history = lab.intact()
    assert len(history) == 6
    assert all(set(record.roster) == set(THREE) for record in history)
    assert ("berlin.invalid:7400", 200) in here.proxies["koeln"].asked + here.proxies["bonn"].asked


def test_a_hospital_behind_a_proxy_with_a_password_finds_its_way_out_by_what_doctor_says(lab, town):
    """From a node that reaches nobody to a round: each line tells the next step."""
    here = town(dial_only=("bonn", "koeln"))
    here.behind_its_proxy("koeln")
    proxy = here.proxy("bonn", "--user", f"konsil:{PASSWORD}")
    bonn = lab.swarm.directory("bonn")
    line = doctors_line(lab, "bonn", "proxy")
    assert (line["level"], line["what"]) == ("ok", "peers are dialled directly")

    here.set("bonn", "proxy", f"http://127.0.0.1:{proxy.port}")
    line = doctors_line(lab, "bonn", "proxy")
    assert line["level"] == "fail"
    assert "wants a user and a password (407 No)" in line["what"]
    assert "`proxy_password_file`" in line["do"]

    toml = bonn / CONFIG_NAME
    toml.write_text(toml.read_text().replace("http://127", "http://konsil@127"))
    (bonn / "password").write_text("another")
    (bonn / "password").chmod(0o600)
    here.set("bonn", "proxy_password_file", "password")
    line = doctors_line(lab, "bonn", "proxy")
    assert "does not take the user 'konsil' with its password" in line["what"]
    assert line["do"].endswith("they come from `proxy` and `proxy_password_file` in node.toml.")

    (bonn / "password").write_text(f"{PASSWORD}\n")
    line = doctors_line(lab, "bonn", "proxy")
    assert (line["level"], "could not reach berlin.invalid:7400" in line["what"]) == ("warn", True), line
    lab.swarm.start()
    line = doctors_line(lab, "bonn", "proxy")
    way = f"http://konsil@127.0.0.1:{proxy.port} (`proxy` in node.toml)"
    assert (line["level"], line["what"]) == ("ok", f"{way} opens the way to berlin.invalid:7400")
    assert f"way out: {way}" in lab.konsil("bonn", "node", "status")

    lab.study(rounds=2)
    lab.train()
    lab.ends()
    history = lab.intact()
    assert all(set(record.roster) == set(THREE) and record.attempt == 1 for record in history)
    written = [path for path in lab.site.root.rglob("*") if path.is_file() and path != bonn / "password"]
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []


def test_a_proxy_of_the_environment_is_used_and_told_and_none_turns_it_off(lab, town, environment):
    here = town(dial_only=("bonn", "koeln"))
    here.behind_its_proxy("bonn")
    proxy = here.proxy("koeln")
    with environment(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}", NO_PROXY="elsewhere.invalid"):
        lab.swarm.start()
    lab.study(rounds=1)
    lab.train()
    lab.ends()
    (record,) = lab.intact()
    assert set(record.roster) == set(THREE)
    way = f"http://127.0.0.1:{proxy.port} (HTTPS_PROXY in the environment)"
    assert f"way out: {way}" in lab.konsil("koeln", "node", "status")
    assert way in lab.log("koeln")
    line = doctors_line(lab, "koeln", "proxy")  # in a shell without the variable
    assert line["level"] == "warn"
    assert f"The running node's way out: {way}." in line["what"]

    lab.swarm.stop("koeln")
    here.set("koeln", "proxy", "none")
    with environment(HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}"):
        lab.swarm.start(["koeln"])
    lab.until(lambda: here.links("koeln")["berlin"].problem, "it cannot find berlin by itself")
    assert not here.links("koeln")["berlin"].connected
    line = doctors_line(lab, "koeln", "proxy")
    assert (line["level"], line["what"]) == (
        "ok",
        "peers are dialled directly: no proxy (`proxy` in node.toml)",
    )
