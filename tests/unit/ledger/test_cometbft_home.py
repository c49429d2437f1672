"""What CometBFT reads: files of one user alone, the same genesis everywhere, and no vote ever forgotten."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tomllib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from konsil.core.rules import genesis_digest
from konsil.errors import LedgerError
from konsil.ledger.cometbft.application import MAX_BLOCK_BYTES, chain_id, key_address
from konsil.ledger.cometbft.home import Home, engine_genesis
from konsil.ledger.cometbft.timings import LOCAL_MS, timings

TIMINGS = timings(20)


def prepared(folder, world, name="lyon", port=1234):
    home = Home(folder / "engine")
    home.prepare(world.genesis, world.keys[name].seed, port, TIMINGS)
    return home


def files(home):
    return {
        str(path.relative_to(home.directory)): path for path in home.directory.rglob("*") if path.is_file()
    }


def test_all_that_is_written_is_its_owners_alone(tmp_path, hospitals):
    mask = os.umask(0)
    try:
        home = prepared(tmp_path, hospitals)
    finally:
        os.umask(mask)
    assert sorted(files(home)) == [
        "config/config.toml", "config/genesis.json", "config/node_key.json", "config/priv_validator_key.json",
        "data/priv_validator_state.json",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in files(home).values()} == {0o600}
    folders = [home.directory, *(path for path in home.directory.iterdir() if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_what_was_voted_is_never_made_anew(tmp_path, hospitals):
    """Who forgets a vote may vote twice, which every other member can prove."""
    state = prepared(tmp_path, hospitals).data / "priv_validator_state.json"
    assert json.loads(state.read_text()) == {"height": "0", "round": 0, "step": 0}
    for voted in ('{"height": "77", "round": 1, "step": 3}', "", "{damaged"):
        state.write_text(voted)
        prepared(tmp_path, hospitals)
        assert state.read_text() == voted


def test_settings_keys_and_genesis_are_written_anew_at_every_start(tmp_path, hospitals):
    home = prepared(tmp_path, hospitals)
    before = {name: path.read_bytes() for name, path in files(home).items()}
    for name in before:
        if name.startswith("config/"):
            files(home)[name].write_text("changed")
    prepared(tmp_path, hospitals)
    assert {name: path.read_bytes() for name, path in files(home).items()} == before
    prepared(tmp_path, hospitals, port=999)
    assert (
        tomllib.loads((home.directory / "config/config.toml").read_text())["p2p"]["laddr"]
        == "tcp://127.0.0.1:999"
    )


def test_the_members_ledger_key_is_the_one_that_votes_and_speaks(tmp_path, hospitals):
    home = prepared(tmp_path, hospitals)
    voting = json.loads((home.directory / "config/priv_validator_key.json").read_text())
    speaking = json.loads((home.directory / "config/node_key.json").read_text())
    seed, public = (
        base64.b64decode(voting["priv_key"]["value"])[half] for half in (slice(32), slice(32, None))
    )
    assert Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() == public
    assert public.hex() == hospitals.keys["lyon"].public
    assert base64.b64decode(voting["pub_key"]["value"]) == public
    assert (
        voting["address"]
        == hashlib.sha256(public).hexdigest()[:40].upper()
        == key_address(public.hex()).hex().upper()
    )
    assert speaking == {"priv_key": voting["priv_key"]}
    assert (voting["pub_key"]["type"], voting["priv_key"]["type"]) == (
        "tendermint/PubKeyEd25519",
        "tendermint/PrivKeyEd25519",
    )


def test_the_engines_genesis_is_the_same_bytes_at_every_member(tmp_path, hospitals):
    written = {
        name: (prepared(tmp_path / name, hospitals, name).directory / "config/genesis.json").read_bytes()
        for name in hospitals.keys
    }
    assert len(set(written.values())) == 1
    told = json.loads(written["lyon"])
    assert told == engine_genesis(hospitals.genesis)
    assert told["chain_id"] == chain_id(hospitals.genesis)
    assert genesis_digest(hospitals.genesis).startswith(told["chain_id"].removeprefix("konsil-"))
    assert told["genesis_time"] == "2023-11-13T22:13:20Z"  # a day before the founding: no clock is behind it
    assert [(one["name"], one["power"]) for one in told["validators"]] == [
        (name, "1") for name in sorted(hospitals.keys)
    ]
    assert told["app_hash"] == ""
    limits = told["consensus_params"]
    assert int(limits["block"]["max_bytes"]) == MAX_BLOCK_BYTES
    assert int(limits["evidence"]["max_bytes"]) < MAX_BLOCK_BYTES
    assert limits["validator"]["pub_key_types"] == ["ed25519"]


def test_a_witness_is_a_validator_from_the_beginning(hospitals):
    records = (*hospitals.genesis.members[:3], replace(hospitals.genesis.members[3], witness=True))
    assert len(engine_genesis(replace(hospitals.genesis, members=records))["validators"]) == 4


def test_the_settings_let_nobody_in_but_through_the_node(tmp_path, hospitals):
    home = prepared(tmp_path, hospitals)
    told = tomllib.loads((home.directory / "config/config.toml").read_text())
    assert told["proxy_app"] == f"unix://{home.abci_socket}"
    assert told["filter_peers"] is True
    assert told["rpc"]["laddr"] == f"unix://{home.rpc_socket}"
    assert told["rpc"]["pprof_laddr"] == ""
    assert told["p2p"]["laddr"].startswith("tcp://127.0.0.1:")
    assert told["p2p"]["pex"] is False
    assert told["consensus"]["create_empty_blocks"] is False
    assert told["consensus"]["timeout_propose"] == f"{TIMINGS.propose}ms"


def test_a_path_with_quotes_and_umlauts_comes_back_from_the_settings(tmp_path, hospitals):
    folder = tmp_path / 'a "b" \\ ü\t'
    folder.mkdir()
    home = prepared(folder, hospitals)
    told = tomllib.loads((home.directory / "config/config.toml").read_text())
    assert told["proxy_app"] == f"unix://{home.abci_socket}"


def test_it_has_blocks_once_cometbft_has_made_its_store(tmp_path, hospitals):
    home = prepared(tmp_path, hospitals)
    assert not home.has_blocks
    home.blocks.mkdir()
    assert home.has_blocks


def test_a_disk_that_refuses_is_said_to_and_nothing_was_started(tmp_path, hospitals):
    (tmp_path / "engine").write_text("a file where the folder should be")
    with pytest.raises(LedgerError, match="cannot be written"):
        prepared(tmp_path, hospitals)


@pytest.mark.parametrize("round_trip_ms", [0.0, 0.4, 15.0, 100.0, 800.0])
def test_time_outs_grow_with_the_longest_way_and_leave_room_for_it(round_trip_ms):
    here = timings(round_trip_ms)
    assert here.propose >= 500 + 3 * round_trip_ms
    assert here.vote >= 200 + 2 * round_trip_ms
    assert here == timings(LOCAL_MS) or here.propose > timings(LOCAL_MS).propose
    assert all(isinstance(value, int) and value > 0 for value in here)
