"""A SPIRE gets another root while a study runs, and the old root is trusted by nobody afterwards."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from konsil.core.messages import PROTOCOL_VERSION, GetStatus, Hello, encode
from konsil.core.rules import genesis_digest
from konsil.core.wall import AskTrust
from konsil.errors import KonsilError
from konsil.identity.source import SvidSource
from konsil.identity.verify import bundle_digest
from konsil.node.config import read_config
from konsil.node.credentials import Credentials
from konsil.node.genesis import read_card_file
from konsil.transport.base import PeerAddress
from konsil.transport.tls import TlsTransport

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

TTL_S = 3600
"""So long that no certificate is renewed for its age while the test runs."""


def test_a_root_changes_while_a_study_runs_and_the_old_one_is_trusted_no_longer(hospitals_with):
    hospitals = hospitals_with(TTL_S)
    swarm, lyon = hospitals.swarm, hospitals.spires["lyon"]
    first = record(swarm, "bonn")
    stolen, first_bundle = asyncio.run(from_spire(lyon))
    assert first.bundle == bundle_digest(first_bundle)
    old = lyon.authority("show")["active"]

    new = lyon.authority("prepare")["prepared_authority"]
    swarm.wait("bonn", lambda state: state.members["lyon"].record.bundle != first.bundle)
    both = record(swarm, "bonn")
    assert (both.spiffe_id, both.ledger_key) == (first.spiffe_id, first.ledger_key)
    hospitals.rounds(5)

    shown = hospitals.certificate("lyon")
    lyon.authority("activate", "-authorityID", new)
    lyon.authority("taint", "-authorityID", old)
    hospitals.wait(lambda: hospitals.certificate("lyon") != shown)
    hospitals.rounds(5)
    assert "Two nodes" in asyncio.run(knock(hospitals, stolen)), "what the old root signed is still believed"

    lyon.authority("revoke", "-authorityID", old)
    swarm.wait("bonn", lambda state: state.members["lyon"].record.bundle != both.bundle)
    _, last_bundle = asyncio.run(from_spire(lyon))
    assert record(swarm, "bonn").bundle == bundle_digest(last_bundle)
    assert first_bundle not in last_bundle
    hospitals.rounds(5)
    assert "does not trust our certificate" in asyncio.run(knock(hospitals, stolen))

    study = hospitals.finish()
    assert len(study.history) >= 15
    for name in hospitals.swarm.members:
        assert not hospitals.swarm.control(name).node().problems


@pytest.mark.parametrize("member", ["bonn", "lyon"])  # bonn's node serves the ledger
def test_a_root_that_signs_as_soon_as_it_is_there_costs_no_round(hospitals_with, member):
    hospitals = hospitals_with(TTL_S)
    swarm, spire = hospitals.swarm, hospitals.spires[member]
    other = "lyon" if member == "bonn" else "bonn"
    shown, old = hospitals.certificate(member), spire.authority("show")["active"]

    new = spire.authority("prepare")["prepared_authority"]
    spire.authority("activate", "-authorityID", new)
    spire.authority("taint", "-authorityID", old)
    hospitals.wait(lambda: hospitals.certificate(member) != shown)
    before = swarm.control(other).state().members[member].record.card
    spire.authority("revoke", "-authorityID", old)
    swarm.wait(other, lambda state: state.members[member].record.card != before)
    hospitals.rounds(10)
    hospitals.finish()


def test_a_node_that_was_away_while_its_root_changed_comes_back_by_a_card_that_people_mail(hospitals_with):
    hospitals = hospitals_with(TTL_S)
    swarm, spire = hospitals.swarm, hospitals.spires["lyon"]
    old, before = spire.authority("show")["active"], record(swarm, "bonn")
    swarm.stop("lyon")
    new = spire.authority("prepare")["prepared_authority"]
    spire.authority("activate", "-authorityID", new)
    spire.authority("taint", "-authorityID", old)
    asyncio.run(another_than(spire, before.bundle))
    swarm.start(["lyon"])

    control, card = swarm.control("bonn"), read_config(swarm.directory("lyon")).card_file
    until_s = time.monotonic() + 30
    while bundle_digest(read_card_file(card).bundle.encode()) == before.bundle:
        assert time.monotonic() < until_s, swarm.log_tail("lyon")
        time.sleep(0.1)
    assert record(swarm, "bonn") == before
    assert not any(peer.connected for peer in control.node().peers)
    control.ask(AskTrust(card.read_bytes()))
    swarm.wait("bonn", lambda state: state.members["lyon"].record.bundle != before.bundle)
    hospitals.rounds(3)
    for trainer in hospitals.trainers:
        trainer.close()


async def another_than(spire, bundle):
    """Until SPIRE gives out another bundle than this, and a certificate that it signs."""
    async with SvidSource.open(spire.workload_api) as source:
        await source.wait_ready(30)
        async with asyncio.timeout(30):
            while bundle_digest(source.bundle) == bundle:
                await source.changed(source.generation, 30)


def record(swarm, at):
    """What the ledger at a member says of lyon."""
    return swarm.control(at).state().members["lyon"].record


async def from_spire(spire):
    """A certificate with its key, and the bundle, as SPIRE gives them out now."""
    async with SvidSource.open(spire.workload_api) as source:
        await source.wait_ready(30)
        return source.svid, source.bundle


async def knock(hospitals, svid):
    """How bonn's node answers somebody who comes as lyon with this certificate."""
    config = read_config(hospitals.swarm.directory("bonn"))
    card = read_card_file(config.card_file)
    swarm = genesis_digest(hospitals.swarm.genesis)
    async with TlsTransport(
        "lyon",
        identity=Credentials(SimpleNamespace(svid=svid)),
        make_hello=lambda: encode(Hello(PROTOCOL_VERSION, swarm, "lyon", "0" * 16)),
        check_hello=lambda _peer, _hello: "bonn's",
        handler=None,
    ) as transport:
        transport.set_peers(
            [PeerAddress("bonn", card.spiffe_id, (config.node.listen,), card.bundle.encode())]
        )
        with pytest.raises(KonsilError) as refused:
            await transport.request("bonn", encode(GetStatus()), timeout_s=5)
        return str(refused.value) + " ".join(link.problem for link in transport.links())
