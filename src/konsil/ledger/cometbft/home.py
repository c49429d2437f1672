"""What CometBFT reads when it starts: its settings, its genesis, and the member's key in its own form."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from konsil.core.rules import Genesis
from konsil.errors import LedgerError
from konsil.files import make_private_folder, write_whole
from konsil.ledger.cometbft.application import MAX_BLOCK_BYTES, POWER, RULES_VERSION, chain_id, key_address
from konsil.ledger.cometbft.timings import Timings

POOL_CALLS = 5000
MAX_CALL_FRAMED_BYTES = 66 * 1024
"""The longest call with what the engine puts around it."""

EVIDENCE_BLOCKS = 1_000_000
EVIDENCE_S = 14 * 24 * 3600
"""How old proof of a double signature may be, whichever is longer ago."""

BEGUN_EARLIER_S = 24 * 3600
"""CometBFT sleeps, and says nothing, while its clock shows less than the genesis time that it reads. So that
time is a day before the swarm's, which is of whoever made the newest card: other clocks may be behind."""

_PRIVATE = 0o600


class Home:
    """CometBFT's folder at a member."""

    def __init__(self, directory: Path) -> None:
        """``directory``: private to this user; made when it is written to."""
        self.directory = directory
        self.abci_socket = directory / "abci.sock"
        self.rpc_socket = directory / "rpc.sock"
        self.data = directory / "data"
        self.votes = self.data / "priv_validator_state.json"
        self.blocks = self.data / "blockstore.db"

    @property
    def has_blocks(self) -> bool:
        """Whether CometBFT keeps a history here already."""
        return self.blocks.exists()

    def make(self) -> None:
        """Make the folders.

        Raises:
            OSError: the disk refuses.
        """
        for folder in (self.directory, self.directory / "config", self.data):
            make_private_folder(folder)

    def prepare(self, genesis: Genesis, seed: bytes, port: int, timings: Timings) -> None:
        """Write everything that CometBFT reads; what it keeps itself is left as it is.

        Args:
            genesis: what the members agreed on.
            seed: the private half of the member's ledger key, 32 bytes: it votes with that key.
            port: on the loopback interface, where CometBFT takes its peers' connections.
            timings: its time-outs.

        Raises:
            LedgerError: the disk refuses.
        """
        try:
            self.make()
            self.rpc_socket.unlink(missing_ok=True)  # of one that was killed: CometBFT would not start
            self._drop_unmade()
            own = _own_key(seed)
            self._write("config/config.toml", _toml(self._settings(port, timings)))
            self._write("config/genesis.json", _json(engine_genesis(genesis)))
            self._write("config/priv_validator_key.json", _json(own))
            self._write("config/node_key.json", _json({"priv_key": own["priv_key"]}))
            if not self.votes.exists():  # what it has signed: never made anew while there is one
                self._write("data/priv_validator_state.json", _json({"height": "0", "round": 0, "step": 0}))
        except OSError as error:
            raise LedgerError(
                f"{error.filename or self.directory} cannot be written: {error.strerror}.",
                safe="Nothing was started.",
                do="Free disk space, or see that this user may write there.",
            ) from error

    def _drop_unmade(self) -> None:
        """Remove databases that were never finished, since CometBFT was killed at its first start: it refuses
        them for ever. A database with anything in it has `CURRENT`, or else is a person's to look at.
        """
        for database in self.data.glob("*.db"):
            filled = [*database.glob("*.ldb"), *(log for log in database.glob("*.log") if log.stat().st_size)]
            if not filled and not (database / "CURRENT").exists():
                shutil.rmtree(database)

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.directory / name, [data], mode=_PRIVATE)

    def _settings(self, port: int, timings: Timings) -> dict[str, dict[str, Any]]:
        return {
            "": {
                "proxy_app": f"unix://{self.abci_socket}",
                "abci": "socket",
                "moniker": "konsil",
                "log_level": "error",
                "log_format": "json",
                "filter_peers": True,
            },
            "rpc": {
                "laddr": f"unix://{self.rpc_socket}",
                "unsafe": True,  # to be told of peers; nobody else can open the socket
                "pprof_laddr": "",
            },
            "p2p": {
                "laddr": f"tcp://127.0.0.1:{port}",
                "addr_book_strict": False,
                "allow_duplicate_ip": True,
                "pex": False,  # peers are told by the node, which alone knows how they are reached
                "flush_throttle_timeout": _ms(timings.flush),
                "persistent_peers_max_dial_period": "5s",
                "max_num_inbound_peers": 256,
                "max_num_outbound_peers": 256,
            },
            "mempool": {
                "size": POOL_CALLS,
                "max_txs_bytes": POOL_CALLS * MAX_CALL_FRAMED_BYTES,
                "max_tx_bytes": MAX_CALL_FRAMED_BYTES,
            },
            "consensus": {
                "timeout_propose": _ms(timings.propose),
                "timeout_propose_delta": _ms(timings.propose),
                "timeout_prevote": _ms(timings.vote),
                "timeout_prevote_delta": _ms(timings.vote),
                "timeout_precommit": _ms(timings.vote),
                "timeout_precommit_delta": _ms(timings.vote),
                "timeout_commit": _ms(timings.commit),
                "create_empty_blocks": False,
                "peer_gossip_sleep_duration": _ms(timings.gossip),
                "peer_query_maj23_sleep_duration": "2s",
            },
            "storage": {"discard_abci_responses": True},
            "tx_index": {"indexer": "null"},
        }


def engine_genesis(genesis: Genesis) -> dict[str, Any]:
    """CometBFT's genesis: the same at every member, since it is made of what they agreed on."""
    begun = datetime.fromtimestamp(genesis.created_s - BEGUN_EARLIER_S, UTC)
    return {
        "genesis_time": begun.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "chain_id": chain_id(genesis),
        "initial_height": "1",
        "consensus_params": {
            "block": {"max_bytes": str(MAX_BLOCK_BYTES), "max_gas": "-1"},
            "evidence": {
                "max_age_num_blocks": str(EVIDENCE_BLOCKS),
                "max_age_duration": str(EVIDENCE_S * 10**9),
                "max_bytes": str(MAX_BLOCK_BYTES // 16),
            },
            "validator": {"pub_key_types": ["ed25519"]},
            "version": {"app": str(RULES_VERSION)},
            "abci": {"vote_extensions_enable_height": "0"},
        },
        "validators": [
            {
                "address": key_address(record.ledger_key).hex().upper(),
                "pub_key": _public(record.ledger_key),
                "power": str(POWER),
                "name": record.name,
            }
            for record in genesis.members
        ],
        "app_hash": "",
    }


def _own_key(seed: bytes) -> dict[str, Any]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - only where a node starts
        Ed25519PrivateKey,
    )

    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    private = {"type": "tendermint/PrivKeyEd25519", "value": base64.b64encode(seed + public).decode()}
    return {
        "address": key_address(public.hex()).hex().upper(),
        "pub_key": _public(public.hex()),
        "priv_key": private,
    }


def _public(ledger_key: str) -> dict[str, str]:
    return {
        "type": "tendermint/PubKeyEd25519",
        "value": base64.b64encode(bytes.fromhex(ledger_key)).decode(),
    }


def _ms(value: int) -> str:
    return f"{value}ms"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Settings of texts, numbers and booleans; JSON's forms of these are TOML's."""
    lines = ["# Written by Konsil at every start; what is changed here is lost."]
    for table, values in tables.items():
        if table:
            lines += ["", f"[{table}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines).encode() + b"\n"
