"""The same source on a real SPIRE: only the socket's address changes.

Set KONSIL_SPIRE to a folder with ``spire-server`` and ``spire-agent`` to run it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.card import encode_card, make_card, read_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.source import SvidSource
from konsil.identity.verify import verify_chain
from konsil.identity.workload_api import WorkloadApi

SPIRE = Path(os.environ.get("KONSIL_SPIRE", "/nonexistent"))
NODE = "spiffe://lyon.example/node"
HOST = "spiffe://lyon.example/host"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (SPIRE / "spire-agent").exists(), reason="KONSIL_SPIRE names no folder with SPIRE"
    ),
]

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{at}/server.sock"
  trust_domain = "lyon.example"
  data_dir = "{at}/server"
  log_level = "WARN"
  ca_ttl = "24h"
  experimental {{ cache_reload_interval = "1s" }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{at}/server.db" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"""

AGENT = """
agent {{
  data_dir = "{at}/agent"
  socket_path = "{at}/agent.sock"
  server_address = "127.0.0.1"
  server_port = "{port}"
  trust_domain = "lyon.example"
  insecure_bootstrap = true
  log_level = "WARN"
  experimental {{ sync_interval = "1s" }}
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{at}/agent" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class Site:
    def __init__(self, at):
        self.at = at
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for name, text in (("server", SERVER), ("agent", AGENT)):
            (at / name).mkdir()
            (at / f"{name}.conf").write_text(text.format(at=at, port=port))
        self.running = {}

    def ask(self, *words):
        command = [SPIRE / "spire-server", *words, "-socketPath", self.at / "server.sock"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    def start(self, name, *words):
        with (self.at / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [SPIRE / f"spire-{name}", "run", "-config", self.at / f"{name}.conf", *words],
                stdout=log,
                stderr=log,
            )

    def kill(self, name):
        process = self.running.pop(name)
        process.kill()
        process.wait(10)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    try:
        made.start("server")
        deadline_s = time.monotonic() + 20
        while True:
            try:
                made.ask("healthcheck")
                break
            except subprocess.CalledProcessError:
                assert time.monotonic() < deadline_s, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
        token = made.ask("token", "generate", "-spiffeID", HOST).split()[1]
        made.start("agent", "-joinToken", token)
        yield made
    finally:
        for name in list(made.running):
            made.kill(name)


def _register(site):
    uid = f"unix:uid:{os.getuid()}"
    site.ask("entry", "create", "-parentID", HOST, "-spiffeID", NODE, "-selector", uid, "-x509SVIDTTL", "20")


async def test_a_node_gets_its_identity_from_spire_and_follows_it_through_rotation_and_a_crash(
    site, tmp_path
):
    async with SvidSource.open(f"unix://{tmp_path}/agent.sock") as source:
        with pytest.raises(IdentityError, match="PERMISSION_DENIED"):
            await source.wait_ready(5)
        _register(site)
        await source.wait_ready(30)
        first = source.svid
        assert first.spiffe_id == NODE
        verify_chain(first.chain_der, source.bundle, NODE, time.time())
        card = make_card("lyon", source, source.bundle, LedgerKey.create(tmp_path / "ledger.pem"))
        assert read_card(encode_card(card)) == card
        assert await source.changed(1, 30) > 1
        assert source.svid.chain_der != first.chain_der
        generation = source.generation
        site.kill("agent")
        site.start("agent")
        assert await source.changed(generation, 30) > generation
        assert source.svid.not_after_s > time.time()


async def test_the_same_source_takes_spire_and_the_built_in_authority_for_one_another(site, tmp_path):
    _register(site)
    authority = Authority.create(tmp_path / "keys", "lyon.example")
    async with WorkloadApi(authority, tmp_path / "w.sock") as api:
        for address in (api.address, f"unix://{tmp_path}/agent.sock"):
            async with SvidSource.open(address) as source:
                await source.wait_ready(30)
                assert source.svid.spiffe_id == NODE
