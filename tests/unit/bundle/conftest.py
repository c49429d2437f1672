"""A short history with everything in it: an admission, a study with an absent member, a dispute and scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.core.digest import bytes_digest, chunk_count, part_range
from konsil.core.rules import (
    Accept,
    Agree,
    Call,
    Commit,
    Dispute,
    Enter,
    Entry,
    Finish,
    Initialise,
    Leave,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    Publish,
    Score,
    State,
    StudySettings,
    Verdict,
    Vote,
    entry_digest,
    genesis_digest,
    initial_state,
    settings_digest,
)
from konsil.identity.card import card_digest, encode_card, member_record
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.bundle import write_bundle
from konsil.ledger.history import put_on, sign_call
from konsil.ledger.journal import Journal
from konsil.node.config import Config
from konsil.node.genesis import found, read_card_file
from konsil.node.setup import make_directory, write_own_card
from konsil.node.tables import MemberTable, NodeTable

MIB = 1024 * 1024


def digest(*words: object) -> str:
    return bytes_digest(repr(words).encode(), "test")


class History:
    """Members lille, lyon (the operator) and nice found it; rennes is admitted; all have real cards."""

    def __init__(self, root: Path, engine: str = "local") -> None:
        self.root = root
        self.keys: dict[str, LedgerKey] = {}
        cards = [self._card(name) for name in ("lille", "lyon", "nice", "rennes")]
        self.cards = {card_digest(card): encode_card(card) for card in cards}
        self.newcomer = member_record(cards[-1])
        self.genesis = found("aml", cards[:-1], "lyon")
        if engine != "local":
            self.genesis = replace(self.genesis, engine=engine, operator="")
        self.digest = genesis_digest(self.genesis)
        self.state: State = initial_state(self.genesis)
        self.states = [self.state]
        self.head, self.now_s = self.digest, self.genesis.created_s
        self.entries: list[Entry] = []

    def _card(self, name: str):
        listen = "127.0.0.1:7400" if name == "lyon" else ""
        config = Config(self.root / name, MemberTable(name), node=NodeTable(listen=listen, proxy="none"))
        make_directory(config)
        write_own_card(config)
        self.keys[name] = LedgerKey.load(config.ledger_key_file)
        return read_card_file(config.card_file)

    def do(self, caller: str, *calls: Call, after_s: int = 1) -> None:
        for call in calls:
            self.now_s += after_s
            number = self.state.members[caller].sequence + 1
            signed = sign_call(self.digest, self.keys[caller], caller, number, call)
            entry, self.state = put_on(self.state, self.head, signed, self.now_s, verify)
            self.head = entry_digest(entry)
            self.entries.append(entry)
            self.states.append(self.state)

    @property
    def open(self):
        return self.state.studies["heart"].open

    def journal(self, path: Path, upto: int | None = None) -> Path:
        with Journal(path, self.digest) as journal:
            journal.append(self.entries[:upto])
        return path


def told(root: Path) -> History:
    """The history: a study of 'heart' with three rounds accepted and a fourth open."""
    history = History(root)
    history.do("lyon", ProposeAdmit(history.newcomer))
    history.do("nice", Vote(1, yes=True))
    settings = StudySettings(
        "heart", description='AUC «é» "quoted" \\', min_members=4, quorum=2, rounds=4, every_steps=10
    )
    history.do(
        "nice", ProposeStudy(replace(settings, name="skin", description=""))
    )  # before, but sorted after
    history.do("lyon", ProposeStudy(settings))
    for name in ("lille", "nice", "rennes"):
        history.do(name, Agree("heart", settings_digest(settings)))
    history.do("lyon", Initialise("heart", digest("schema"), digest("initial"), 100 * MIB))
    for name in ("lille", "lyon", "nice", "rennes"):
        history.do(name, Enter("heart"))
    _round(history, 1, ("lille", "lyon", "nice", "rennes"))
    _round(history, 2, ("lille", "lyon", "nice", "rennes"), liar="rennes")
    history.do("lille", Leave("heart"))
    _round(history, 3, ("lyon", "nice"))
    history.do("lille", ProposeRemove("rennes", "a wrong merge"))
    history.do("lyon", Finish("heart"))
    return history


def _round(history: History, number: int, members: tuple[str, ...], liar: str = "") -> None:
    base = history.state.studies["heart"].accepted
    for name in members:
        history.do(name, Commit("heart", number, base, digest(name, number), 100))
    _publish(history, number)
    if liar:
        at = [part.leader for part in history.open.parts].index(liar)
        others = [name for name in members if name != liar]
        history.do(others[0], Dispute("heart", number, history.open.attempt, at, _first(history, at)))
        for name in others[1:]:
            if history.open.dispute is not None:
                dispute = history.open.dispute
                history.do(
                    name,
                    Verdict("heart", number, history.open.attempt, dispute.part, dispute.chunk, wrong=True),
                )
        _publish(history, number)
    opened = history.open
    for name in opened.roster:
        history.do(name, Accept("heart", number, opened.attempt, opened.digest))
    for at, name in enumerate(opened.roster):
        history.do(name, Score("heart", number, 50, 1 / (number + at), {"auc": 0.7 + at / 100}))


def _publish(history: History, number: int) -> None:
    for at, part in enumerate(history.open.parts):
        if not part.digest:
            call = Publish("heart", number, history.open.attempt, at, digest(at, number))
            history.do(part.leader, call)


def _first(history: History, part: int) -> int:
    return part_range(part, len(history.open.parts), chunk_count(100 * MIB)).start


@pytest.fixture(scope="session")
def members() -> Iterator[Path]:
    """Where members' directories are made: a short path, since Unix sockets would lie in them."""
    with tempfile.TemporaryDirectory(prefix="konsil-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def history(members) -> History:
    return told(members / "local")


@pytest.fixture(scope="session")
def bundle(history, tmp_path_factory) -> bytes:
    """The bytes of its audit bundle."""
    root = tmp_path_factory.mktemp("bundle")
    write_bundle(root / "b", history.genesis, history.journal(root / "l.db"), verify, history.cards.get)
    return (root / "b").read_bytes()
