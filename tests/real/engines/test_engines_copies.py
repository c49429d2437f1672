"""A member's own copy of the history: lost, lost in parts, made anew, late, and changed by hand."""

from __future__ import annotations

import shutil
import time

import pytest
from click.testing import CliRunner

from konsil.cli import main
from konsil.core.rules import genesis_digest
from konsil.core.wall import AskAdmit
from konsil.errors import NodeError
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.history import put_on, sign_call
from konsil.ledger.journal import Journal
from konsil.node.config import read_config

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

CALLS = 2000
"""What a swarm of four has on its ledger after about a hundred rounds."""

AT_ONCE = 48
"""Calls of one member on their way: below what may wait."""


def forget_history(kept, name: str) -> None:
    """Delete a member's own copy, as after a failed disk."""
    file = read_config(kept.swarm_of_test.directory(name)).ledger_file
    for part in ("", "-wal", "-shm"):
        file.with_name(file.name + part).unlink(missing_ok=True)


def forget_blocks(kept, name: str) -> None:
    """Delete what the engine keeps at a member, all but what it has signed."""
    data = kept.swarm_of_test.directory(name) / "engine" / "data"
    for each in data.iterdir():
        if each.name != "priv_validator_state.json":
            shutil.rmtree(each) if each.is_dir() else each.unlink()


def test_a_member_that_lost_its_copy_of_the_history_has_it_again(kept):
    swarm = kept.swarm()
    swarm.start()
    for number in range(5):
        kept.announce("lyon", number)
    swarm.stop("lyon")
    forget_history(kept, "lyon")
    kept.announce("bonn", 5)
    swarm.start(["lyon"])
    kept.announce("lyon", 6)
    kept.alike()
    assert set(kept.times_called("lyon", "lyon").values()) == {1}


@pytest.mark.parametrize("copy", ["kept", "lost"])
def test_a_member_whose_engine_lost_its_blocks_gets_them_from_its_peers(cometbft, copy):
    kept = cometbft
    swarm = kept.swarm()
    swarm.start()
    for number in range(5):
        kept.announce("lyon", number)
    height = swarm.control("lyon").state().height
    swarm.stop("lyon")
    forget_blocks(kept, "lyon")
    if copy == "lost":
        forget_history(kept, "lyon")
    kept.announce("bonn", 5)
    swarm.start(["lyon"])
    assert copy == "lost" or swarm.control("lyon").state().height >= height, (
        "what is on disk is shown at once"
    )
    kept.announce("lyon", 6)
    kept.alike()
    assert set(kept.times_called("lyon", "lyon").values()) == {1}
    kept.kill("koeln")  # lyon's vote is needed from now on
    kept.announce("bonn", 7)


def test_an_engine_that_was_killed_while_it_made_its_databases_makes_them_anew(cometbft):
    kept = cometbft
    swarm = kept.swarm(witnesses=())
    swarm.start([name for name in swarm.members if name != "lyon"])
    unmade = swarm.directory("lyon") / "engine" / "data" / "blockstore.db"
    unmade.mkdir(parents=True)
    (unmade / "MANIFEST-000000").write_bytes(bytes(41))  # and no CURRENT, which is written after it
    votes = unmade.with_name("priv_validator_state.json")  # which stands there before CometBFT is started
    votes.write_text('{"height": "0", "round": 0, "step": 0}')
    swarm.start(["lyon"])
    kept.announce("lyon", 1)
    kept.alike()


@pytest.mark.parametrize("blocks", ["kept", "lost"])
def test_a_copy_that_holds_what_no_block_holds_is_found_out(cometbft, blocks):
    kept = cometbft
    swarm = kept.swarm()
    swarm.start()
    for number in range(3):
        kept.announce("lyon", number)
    state = kept.alike()
    swarm.stop("lyon")
    config = read_config(swarm.directory("lyon"))
    with Journal(config.ledger_file, genesis_digest(swarm.genesis)) as journal:
        key = LedgerKey.load(config.ledger_key_file)
        sequence = state.members["lyon"].sequence + 1
        signed = sign_call(state.genesis, key, "lyon", sequence, kept.announced("lyon", 99))
        entry, _ = put_on(state, journal.head, signed, state.now_s, verify)
        journal.append([entry], journal.position)
    if blocks == "lost":
        forget_blocks(kept, "lyon")

    swarm.start(["lyon"])
    kept.announce("bonn", 4)
    problem = kept.until_problem("lyon")
    assert "konsil ledger repair" in problem
    kept.alike(*(name for name in swarm.members if name != "lyon"))
    swarm.stop("lyon")
    repaired = CliRunner().invoke(main, ["ledger", "repair", "--dir", str(swarm.directory("lyon"))])
    assert repaired.exit_code == 0, repaired.output
    swarm.start(["lyon"])
    kept.announce("lyon", 5)
    kept.alike()


def test_a_newcomer_is_soon_where_two_thousand_calls_have_led(kept):
    swarm = kept.swarm()
    swarm.start()
    names = kept.trainers
    kept.announce_many(range(CALLS // len(names)), AT_ONCE, *names)

    swarm.make("oslo")
    swarm.give_genesis("oslo", swarm.genesis)
    swarm.control("bonn").ask(AskAdmit(read_config(swarm.directory("oslo")).card_file.read_bytes()))
    kept.say_yes(1, "koeln", "lyon")
    began_s = time.monotonic()
    swarm.start(["oslo"])
    swarm.wait("oslo", lambda state: state.height >= CALLS and "oslo" in state.members)
    took_s = time.monotonic() - began_s
    kept.announce("oslo", 1)
    kept.alike(*swarm.members, "oslo")
    assert took_s < 20, took_s


def test_a_node_that_does_not_know_how_far_it_has_voted_does_not_start(cometbft):
    kept = cometbft
    swarm = kept.swarm()
    swarm.start()
    kept.announce("lyon", 1)
    swarm.stop("lyon")
    votes = swarm.directory("lyon") / "engine" / "data" / "priv_validator_state.json"
    was = votes.read_bytes()
    votes.unlink()
    with pytest.raises(NodeError, match="how far this member has voted"):
        swarm.start(["lyon"])
    assert not votes.exists()
    votes.write_bytes(was)
    swarm._processes.pop("lyon")
    swarm.start(["lyon"])
    kept.announce("lyon", 2)
    kept.alike()
