"""The same source on a real SPIRE: only the socket's address changes."""

from __future__ import annotations

import asyncio
import time

import pytest

from konsil.errors import IdentityError
from konsil.identity.authority import Authority
from konsil.identity.card import encode_card, make_card, read_card
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.source import SvidSource
from konsil.identity.verify import verify_chain
from konsil.identity.workload_api import WorkloadApi

pytestmark = [pytest.mark.real]


@pytest.fixture
def spire(make_spire):
    return make_spire("lyon.example")


async def test_a_node_gets_its_identity_from_spire_and_follows_it_through_rotation_and_a_crash(
    spire, tmp_path
):
    async with SvidSource.open(spire.workload_api) as source:
        with pytest.raises(IdentityError, match="PERMISSION_DENIED"):
            await source.wait_ready(5)
        await asyncio.to_thread(spire.register, 20)
        await source.wait_ready(30)
        first = source.svid
        assert first.spiffe_id == spire.node
        verify_chain(first.chain_der, source.bundle, spire.node, time.time())
        card = make_card("lyon", source, source.bundle, LedgerKey.create(tmp_path / "ledger.pem"))
        assert read_card(encode_card(card)) == card
        assert await source.changed(1, 30) > 1
        assert source.svid.chain_der != first.chain_der
        generation = source.generation
        spire.kill("agent")
        spire.start("agent")
        assert await source.changed(generation, 30) > generation
        assert source.svid.not_after_s > time.time()


async def test_the_same_source_takes_spire_and_the_built_in_authority_for_one_another(spire, tmp_path):
    await asyncio.to_thread(spire.register, 20)
    authority = Authority.create(tmp_path / "keys", "lyon.example")
    async with WorkloadApi(authority, tmp_path / "w.sock") as api:
        for address in (api.address, spire.workload_api):
            async with SvidSource.open(address) as source:
                await source.wait_ready(30)
                assert source.svid.spiffe_id == spire.node
