"""A small swarm with real keys, for tests of the local ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from konsil.core.rules import (
    Announce,
    Call,
    Entry,
    Genesis,
    MemberRecord,
    entry_digest,
    genesis_digest,
    initial_state,
)
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.history import put_on, sign_call
from konsil.ledger.local import FollowerLedger, LocalLedger

START_S = 1_700_000_000


def make_key() -> LedgerKey:
    key = Ed25519PrivateKey.generate()
    return LedgerKey(key.public_key().public_bytes_raw().hex(), key)


class World:
    """Members lyon (the operator, where there is one), nice and lille; a clock that stands still until told."""

    def __init__(
        self, swarm: str = "aml", engine: str = "local", names: tuple[str, ...] = ("lille", "lyon", "nice")
    ) -> None:
        self.now_s = START_S
        self.keys = {name: make_key() for name in names}
        records = tuple(
            MemberRecord(
                name, f"spiffe://{name}.example/node", key.public, f"{number:064x}", f"{number + 8:064x}"
            )
            for number, (name, key) in enumerate(self.keys.items(), 1)
        )
        self.genesis = Genesis(swarm, engine, "lyon" if engine == "local" else "", START_S, records)
        self.digest = genesis_digest(self.genesis)
        self.verify = verify

    def clock(self) -> float:
        return self.now_s

    def signed(
        self, name: str, sequence: int, call: Call, *, key: LedgerKey | None = None, swarm: str = ""
    ) -> bytes:
        return sign_call(swarm or self.digest, key or self.keys[name], name, sequence, call)

    def entries(self, count: int, name: str = "lyon", mark: str = "") -> list[Entry]:
        """A right history, made without any ledger."""
        state, head, made = initial_state(self.genesis), self.digest, []
        for number in range(1, count + 1):
            signed = self.signed(name, number, announcement(number, mark))
            entry, state = put_on(state, head, signed, START_S + number, verify)
            head = entry_digest(entry)
            made.append(entry)
        return made

    async def operator(self, path: Path) -> LocalLedger:
        return await LocalLedger.open(path, self.genesis, self.keys["lyon"], "lyon", self.clock, verify)

    async def follower(
        self, path: Path, remote: object, name: str = "nice", submit_s: float = 5.0
    ) -> FollowerLedger:
        return await FollowerLedger.open(
            path, self.genesis, self.keys[name], name, remote, verify, submit_s=submit_s
        )

    announcement = staticmethod(lambda number, mark="": announcement(number, mark))


def announcement(number: int, mark: str = "") -> Announce:
    return Announce((f"host{mark}-{number}.example:7400",))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def hospitals() -> World:
    """Four members that keep their ledger together. Its keys only are used, so one does for all tests."""
    return World(engine="cometbft", names=("lille", "lyon", "metz", "nice"))


@pytest.fixture
def other_world() -> World:
    return World("heart")
