"""What a node sees of a ledger that CometBFT keeps, where there is only a program that does nothing."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from konsil.core.rules import Announce
from konsil.errors import LedgerError, LedgerUnreachable
from konsil.ledger.cometbft import ledger as ledger_module
from konsil.ledger.cometbft.ledger import CometbftLedger, Site
from konsil.ledger.cometbft.timings import timings


class NoMesh:
    def set_members(self, names):
        pass

    def take_at(self, port):
        pass

    def ports(self):
        return {}

    async def changed(self):
        await asyncio.Event().wait()


@pytest.fixture
async def ledger(hospitals):
    """A ledger whose engine says that it is CometBFT, and then sleeps."""
    with tempfile.TemporaryDirectory(prefix="konsil-") as folder:  # short: a Unix socket lies in it
        root = Path(folder)
        program = root / "cometbft"
        program.write_text('#!/bin/sh\n[ "$1" = version ] && { echo 0.38.25; exit; }\nexec sleep 100\n')
        program.chmod(0o700)
        site = Site(str(program), root / "engine", NoMesh(), lambda: timings(1.0))
        made = await CometbftLedger.open(
            root / "ledger.db", hospitals.genesis, hospitals.keys["lyon"], "lyon", site, hospitals.verify
        )
        try:
            yield made
        finally:
            await made.close()


async def test_a_call_that_no_block_takes_says_so_in_its_time(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "SUBMIT_S", 0.2)
    with pytest.raises(LedgerUnreachable, match="cannot be reached from here"):
        await ledger.submit(Announce(()))


async def test_a_closed_ledger_takes_no_calls_and_says_so_at_once(ledger):
    waiting = asyncio.ensure_future(ledger.submit(Announce(())))
    await asyncio.sleep(0.05)
    await ledger.close()
    async with asyncio.timeout(5):
        for submitted in (waiting, ledger.submit(Announce(("a.example:1",)))):
            with pytest.raises(LedgerError, match="was closed"):
                await submitted


async def test_on_a_ledger_that_differs_nothing_is_signed(ledger):
    ledger._supervisor.diverged = True
    with pytest.raises(LedgerError, match="konsil ledger repair"):
        await ledger.submit(Announce(()))
    assert not ledger._claims.waiting
