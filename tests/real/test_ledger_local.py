from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from konsil.core.rules import Announce, Genesis, MemberRecord, state_digest
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.ledger_key import verify as check
from konsil.ledger.local import LocalLedger
from konsil.ledger.verify import verify

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).with_name("ledger_operator.py")


@pytest.fixture
def genesis(tmp_path):
    key = LedgerKey.create(tmp_path / "ledger.pem")
    record = MemberRecord("lyon", "spiffe://lyon.example/node", key.public, "1" * 64, "2" * 64)
    made = Genesis("aml", "local", "lyon", 1_700_000_000, (record,))
    (tmp_path / "genesis.json").write_bytes(msgspec.json.encode(made))
    return made


def _start(directory, concurrent):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(directory), str(concurrent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("concurrent", [1, 16])
async def test_an_operator_that_is_killed_has_lost_nothing_that_it_acknowledged(
    tmp_path, genesis, concurrent
):
    acknowledged = 0
    for lines in (1, 7, 40):
        with _start(tmp_path, concurrent) as process:
            for _ in range(lines):
                acknowledged = max(acknowledged, int(process.stdout.readline()))
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
        verified = verify(genesis, tmp_path / "ledger.db", check)
        assert verified.height >= acknowledged
        key = LedgerKey.load(tmp_path / "ledger.pem")
        async with await LocalLedger.open(
            tmp_path / "ledger.db", genesis, key, "lyon", time.time, check
        ) as ledger:
            assert state_digest(ledger.state) == verified.digest
            acknowledged = await ledger.submit(Announce(("home.example:7400",)))
            assert acknowledged == verified.height + 1


def test_two_operators_cannot_share_one_journal(tmp_path, genesis):
    with _start(tmp_path, 1) as first:
        try:
            assert int(first.stdout.readline()) == 1
            with _start(tmp_path, 1) as second:
                _, said = second.communicate(timeout=30)
            assert second.returncode == 1
            assert said.strip() == "NodeBusy"
            before = int(first.stdout.readline())
            assert int(first.stdout.readline()) == before + 1
        finally:
            first.kill()
            first.communicate()


def test_a_history_is_verified_while_its_operator_goes_on_writing(tmp_path, genesis):
    with _start(tmp_path, 4) as process:
        try:
            heights = []
            for _ in range(3):
                acknowledged = int(process.stdout.readline())
                heights.append(verify(genesis, tmp_path / "ledger.db", check).height)
                assert heights[-1] >= acknowledged
            assert heights == sorted(heights)
        finally:
            process.kill()
            process.communicate()
