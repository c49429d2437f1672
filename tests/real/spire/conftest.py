"""Real SPIRE for tests: a server and an agent for each member, all ended when the test ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from msgspec.structs import replace

from konsil.core.rules import ProposeStudySettings, StudySettings, Vote
from konsil.evaluation.loopback import LoopbackSwarm
from konsil.identity.source import SvidSource
from konsil.node.config import read_config

READY_S = 30.0
MEMBERS = ("bonn", "lyon")
SETTINGS = StudySettings(
    name="aml",
    min_members=2,
    quorum=2,
    rounds=100_000,
    every_steps=1,
    weighting="equal",
    silence_s=10,
    merge_s=10,
    audit_fraction=0.5,
)

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{at}/server.sock"
  trust_domain = "{domain}"
  data_dir = "{at}/server"
  log_level = "INFO"
  ca_ttl = "24h"
  experimental {{ cache_reload_interval = "1s" }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{at}/server.db" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{at}/server/keys.json" }} }}
}}
"""

AGENT = """
agent {{
  data_dir = "{at}/agent"
  socket_path = "{at}/agent.sock"
  server_address = "127.0.0.1"
  server_port = "{port}"
  trust_domain = "{domain}"
  insecure_bootstrap = true
  log_level = "INFO"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class Spire:
    """One member's SPIRE: its trust domain, its server, its agent."""

    def __init__(self, at: Path, domain: str, engine_binary: Callable[[str], Path]) -> None:
        self.at = at
        self.domain = domain
        self.programs = {name: engine_binary(f"spire-{name}") for name in ("server", "agent")}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for name, text in (("server", SERVER), ("agent", AGENT)):
            (at / name).mkdir(parents=True)
            (at / f"{name}.conf").write_text(text.format(at=at, port=port, domain=domain))

    @property
    def host(self) -> str:
        return f"spiffe://{self.domain}/host"

    @property
    def node(self) -> str:
        return f"spiffe://{self.domain}/node"

    @property
    def workload_api(self) -> str:
        return f"unix://{self.at}/agent.sock"

    def ask(self, *words: object) -> str:
        command = [self.programs["server"], *map(str, words), "-socketPath", self.at / "server.sock"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise RuntimeError(f"{words} failed: {done.stdout} {done.stderr}")
        return done.stdout

    def begin(self) -> None:
        """Start both; the agent joins by a token, which is good for once."""
        self.start("server")
        token = self.ask("token", "generate", "-spiffeID", self.host).split()[1]
        self.start("agent", "-joinToken", token)

    def start(self, name: str, *words: str) -> None:
        with (self.at / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [self.programs[name], "run", "-config", self.at / f"{name}.conf", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if name == "server":
            self._wait_for_the_server()

    def _wait_for_the_server(self) -> None:
        until_s = time.monotonic() + READY_S
        while True:
            try:
                self.ask("healthcheck")
            except RuntimeError:
                assert self.running["server"].poll() is None, self.log("server")
                assert time.monotonic() < until_s, self.log("server")
                time.sleep(0.1)
            else:
                return

    def log(self, name: str) -> str:
        return (self.at / f"{name}.log").read_text()[-4000:]

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait(10)

    def register(self, ttl_s: int) -> None:
        """Let this user's processes have the node's identity, and wait until the agent gives it out."""
        selector = f"unix:uid:{os.getuid()}"
        self.ask(
            *("entry", "create", "-parentID", self.host, "-spiffeID", self.node),
            *("-selector", selector, "-x509SVIDTTL", ttl_s),
        )
        asyncio.run(self._wait_for_the_agent())

    async def _wait_for_the_agent(self) -> None:
        async with SvidSource.open(self.workload_api) as source:
            await source.wait_ready(READY_S)

    def authority(self, *words: str) -> dict[str, str]:
        """What a command on the server's own X.509 authorities says: field -> authority's ID."""
        said = json.loads(self.ask("localauthority", "x509", *words, "-output", "json"))
        return {role: each["authority_id"] for role, each in said.items() if each}

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)


@pytest.fixture
def make_spire(engine_binary: Callable[[str], Path]) -> Iterator[Callable[[str], Spire]]:
    """A function from a trust domain's name to its running SPIRE. Sockets need a short path."""
    root = Path(tempfile.mkdtemp(prefix="spire-"))
    made: list[Spire] = []

    def make(domain: str) -> Spire:
        spire = Spire(root / domain, domain, engine_binary)
        made.append(spire)
        spire.begin()
        return spire

    try:
        yield make
    finally:
        for spire in made:
            spire.close()
        shutil.rmtree(root)


class SpireSwarm(LoopbackSwarm):
    """Members on this machine whose nodes get their identities from these Workload APIs."""

    def __init__(self, root, workload_apis):
        self.workload_apis = workload_apis
        super().__init__(root, tuple(workload_apis))


class Hospitals:
    """The swarm, the study that runs in it, and each member's SPIRE."""

    def __init__(self, site, make_spire, ttl_s):
        self.spires = {name: make_spire(f"{name}.example") for name in MEMBERS}
        for spire in self.spires.values():
            spire.register(ttl_s)
        addresses = {name: spire.workload_api for name, spire in self.spires.items()}
        self.swarm = SpireSwarm(site.root, addresses)
        site.swarms.append(self.swarm)
        self.swarm.start()
        self.swarm.propose(SETTINGS)
        self.trainers = [
            site.train(self.swarm, "aml", name, number, "--pause", "0.2")
            for number, name in enumerate(MEMBERS, start=1)
        ]
        self.rounds(3)

    def wait(self, reached, timeout_s=60):
        """Look again at each move of the ledger, of which there are several a second."""
        return self.swarm.wait("lyon", lambda _state: reached(), timeout_s)

    def rounds(self, more):
        """Until so many more rounds are accepted."""
        done = self.study("lyon").history
        number = (done[-1].number if done else 0) + more
        self.swarm.wait("lyon", lambda state: len(state.studies["aml"].history) >= number)

    def go_on_for(self, seconds):
        """Rounds for so long, by the ledger's time."""
        until_s = self.swarm.control("lyon").state().now_s + seconds
        self.swarm.wait("lyon", lambda state: state.now_s >= until_s)

    def study(self, name):
        return self.swarm.control(name).state().studies["aml"]

    def certificate(self, name):
        """What the node of a member shows to whoever connects."""
        host, _, port = read_config(self.swarm.directory(name)).node.listen.rpartition(":")
        return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())

    def another_certificate(self, *names):
        """Wait until these members' nodes show others than now."""
        before = {name: self.certificate(name) for name in names}
        self.wait(lambda: all(self.certificate(name) != shown for name, shown in before.items()))

    def finish(self):
        """End the study by a vote; every round had both, at the first attempt, and none took long."""
        last = self.study("bonn").open.number + 2
        self.swarm.control("bonn").call(ProposeStudySettings(replace(SETTINGS, rounds=last)))
        self.swarm.wait("lyon", lambda state: bool(state.proposals))
        self.swarm.control("lyon").call(Vote(1, yes=True))
        for trainer in self.trainers:
            assert trainer.end()[-1]["event"] == "ended"
        study = self.study("lyon")
        assert study.phase == "finished"
        for record in study.history:
            assert (set(record.roster), record.attempt, record.absent) == (set(MEMBERS), 1, {})
        took_s = [record.accepted_s - record.opened_s for record in study.history]
        assert max(took_s) <= 5, took_s
        self.swarm.require_running()
        return study


@pytest.fixture
def hospitals_with(site, make_spire):
    """A function that founds the swarm, with certificates of this life."""
    return lambda ttl_s: Hospitals(site, make_spire, ttl_s)
