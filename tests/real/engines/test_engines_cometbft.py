"""What only a ledger of CometBFT has: states that differ, repair, proof of double votes, newcomers that validate."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from konsil.core.rules import Announce, Vote, state_digest, validators
from konsil.errors import LedgerError
from konsil.identity.ledger_key import LedgerKey
from konsil.ledger.cometbft.application import chain_id, key_address
from konsil.ledger.cometbft.rpc import Rpc
from konsil.node.config import read_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MEMBERS = ("berlin", "bonn", "koeln", "lyon")


def start_diverging(swarm, name: str, height: int) -> None:
    directory = swarm.directory(name)
    with (directory / "node.log").open("ab") as log:
        swarm._processes[name] = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("diverging_node.py")), str(directory), str(height)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"NOTIFY_SOCKET": str(swarm.root / "ready.sock")},
        )
    swarm.wait_ready({name})


def announce(swarm, name: str, number: int) -> None:
    swarm.control(name).call(Announce((f"127.0.0.{number}:7400",)))


def konsil(swarm, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "konsil", *words, "--dir", str(swarm.directory(name))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def until_problem(swarm, name: str, word: str) -> str:
    """Wait until a node tells of a problem with this word in it; news of the ledger wakes the wait."""
    for number in range(30):
        problems = [problem for problem in swarm.control(name).node().problems if word in problem]
        if problems:
            return problems[0]
        state = swarm.control(name).state()
        swarm.control(name).state(after=state.height, wait_s=1.0)
        announce(swarm, MEMBERS[0], number + 100)
    raise AssertionError(swarm.log_tail(name))


def test_a_node_whose_state_differs_says_so_and_is_repaired(cometbft):
    swarm = cometbft.swarm(*MEMBERS)
    swarm.start([*MEMBERS[:3], "witness"])
    start_diverging(swarm, "lyon", 3)
    for number in range(6):
        announce(swarm, "bonn", number + 1)
    assert "konsil ledger repair" in until_problem(swarm, "lyon", "differs")

    with pytest.raises(LedgerError, match="konsil ledger repair"):
        announce(swarm, "lyon", 98)
    assert swarm.control("bonn").state().members["lyon"].sequence == 0

    refused = konsil(swarm, "lyon", "ledger", "repair")
    assert refused.returncode == 1
    assert "runs from" in refused.stderr
    swarm.stop("lyon")
    repaired = konsil(swarm, "lyon", "ledger", "repair")
    assert repaired.returncode == 0, repaired.stderr
    assert "put aside" in repaired.stdout

    swarm.start(["lyon"])
    announce(swarm, "lyon", 99)
    height = swarm.control("lyon").state().height
    states = [swarm.wait(name, lambda state: state.height >= height) for name in swarm.members]
    assert len({state_digest(state) for state in states}) == 1
    assert konsil(swarm, "lyon", "ledger", "verify").returncode == 0


def test_a_member_stops_deciding_on_blocks_and_begins_again_as_its_settings_say(cometbft):
    swarm = cometbft.swarm(*MEMBERS)
    swarm.start()
    swarm.stop("lyon")
    file = swarm.directory("lyon") / "node.toml"
    text = file.read_text()
    assert "\nvalidate = true\n" in text
    file.write_text(text.replace("\nvalidate = true\n", "\nvalidate = false\n"))
    swarm.start(["lyon"])
    swarm.wait("bonn", lambda state: "lyon" not in validators(state))
    announce(swarm, "lyon", 1)
    swarm.stop("lyon")
    file.write_text(text)
    swarm.start(["lyon"])
    swarm.wait("bonn", lambda state: "lyon" in validators(state))


def test_proof_of_two_votes_is_put_before_the_members_once(cometbft, double_vote):
    swarm = cometbft.swarm(*MEMBERS)
    swarm.start()
    for number in range(2):
        announce(swarm, "bonn", number + 1)
    config = read_config(swarm.directory("bonn"))
    rpc = Rpc(config.engine_dir / "rpc.sock")
    key = LedgerKey.load(read_config(swarm.directory("lyon")).ledger_key_file)

    async def put_before_them() -> None:
        header = (await rpc.ask("block", height="2"))["block"]["header"]
        known = (await rpc.ask("validators", height="2"))["validators"]
        index = next(
            n for n, one in enumerate(known) if one["address"] == key_address(key.public).hex().upper()
        )
        proof = double_vote(key, chain_id(swarm.genesis), header, len(known), index)
        await rpc.ask("broadcast_evidence", evidence=proof)

    asyncio.run(put_before_them())
    rpc.close()
    announce(swarm, "bonn", 3)
    state = swarm.wait("koeln", lambda state: state.proposals)
    accused = state.proposals[0]
    assert accused.subject.member == "lyon"
    assert "signed two different votes at height 2" in accused.subject.reason
    assert accused.proposer == "berlin"
    swarm.control("bonn").call(Vote(1, yes=True))
    swarm.control("koeln").call(Vote(1, yes=True))
    state = swarm.wait("witness", lambda state: not state.members["lyon"].active)
    assert validators(state) == ("berlin", "bonn", "koeln", "witness")
    announce(swarm, "bonn", 4)
    assert len(swarm.control("bonn").state().proposals) == 1


def test_a_bundle_proves_that_the_members_agreed_on_the_history(cometbft, tmp_path):
    swarm = cometbft.swarm(*MEMBERS)
    swarm.start()
    for number in range(3):
        announce(swarm, MEMBERS[number], number + 1)
    bundle = tmp_path / "history.konsil-audit"
    done = konsil(swarm, "koeln", "audit", "export", str(bundle))
    assert done.returncode == 0, done.stderr
    assert "proof" not in done.stdout
    for name in swarm.members:
        swarm.stop(name)
    command = [sys.executable, "-m", "konsil", "audit", "verify", str(bundle), "--json"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert facts["proof"]["engine"] == "cometbft"
    assert 4 <= len(facts["proof"]["block"]["votes"]) <= 5  # more than two thirds of five

    without = konsil(swarm, "koeln", "audit", "export", str(bundle))
    assert without.returncode == 0, without.stderr
    assert "while the node runs" in without.stdout
