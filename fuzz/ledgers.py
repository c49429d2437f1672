"""What is on the ledger, and what a member may try to put there."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import world
from msgspec.structs import replace
from target import Target, must, refusal

from konsil.core.card_check import compare_card
from konsil.core.digest import bytes_digest
from konsil.core.model_card import ModelCard, card_of, decode_card, encode_card
from konsil.core.round import Farewell, Promise, UpdateReady
from konsil.core.rules import (
    MAX_CALL_BYTES,
    Call,
    Genesis,
    Score,
    State,
    asked_for,
    decode_entry,
    decode_signed,
    decode_state,
    encode_entry,
    encode_signed,
    encode_state,
    final_round,
    genesis_digest,
    initial_state,
    state_digest,
)
from konsil.errors import (
    ConfigError,
    DigestMismatch,
    FrameError,
    JournalCorrupt,
    LedgerError,
    NodeError,
    ParametersError,
    Refused,
)
from konsil.identity.card import check_record, read_card
from konsil.identity.ledger_key import verify
from konsil.ledger.bundle import check_bundle, write_bundle
from konsil.ledger.history import follow_on, replay
from konsil.ledger.journal import Journal
from konsil.ledger.verify import verify as recompute
from konsil.node.genesis import read_genesis
from konsil.node.journal import Journal as Notebook
from konsil.node.notes import Notes, check_of, decode_notes, encode_notes

GROWTH_BYTES = 8 * 1024
"""What one call may add to the state beyond twice its own length: a round of four members with its parts."""


# --- signed calls and entries ----------------------------------------------------------------------


def read_signed(data: bytes) -> bool:
    """A signed call has one encoding."""
    try:
        signed = decode_signed(data)
    except FrameError as error:
        refusal(error)
        return False
    must(encode_signed(signed) == data, "two encodings of one signed call")
    return True


def read_entry(data: bytes) -> bool:
    """An entry has one encoding, and follows, or is refused, whatever is in it."""
    try:
        entry = decode_entry(data)
    except FrameError as error:
        refusal(error)
        return False
    must(encode_entry(entry) == data, "two encodings of one entry")
    points = world.life()
    at = min(max(entry.height - 1, 0), len(points) - 1) if -1 < entry.height < 10**6 else 0
    point = points[at][0]
    try:
        after = follow_on(point.state, entry, point.head, verify)
    except JournalCorrupt as error:
        refusal(error)
        return False
    must(after.height == point.state.height + 1, "an entry that follows has the next height")
    return True


def signed_seeds() -> list[bytes]:
    """Every kind of call."""
    return [entry.signed for entry in world.life()[-1][0].entries]


def entry_seeds() -> list[bytes]:
    """A whole history."""
    return [encode_entry(entry) for entry in world.life()[-1][0].entries]


# --- a hostile member ------------------------------------------------------------------------------


def call_as_member(data: bytes) -> bool:
    """JSON: [moment of the story, [caller, call, seconds later], ...]; every call is signed by its member."""
    try:
        moment, *calls = msgspec.json.decode(data, type=list[Any])
        point = world.life()[int(moment) % len(world.life())][0]
        steps = [(world.NAMES[int(who) % 4], call, int(later)) for who, call, later in calls[:12]]
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError, UnicodeError):
        return False
    before = point
    for caller, raw, later in steps:
        try:
            call = msgspec.json.decode(msgspec.json.encode(raw), type=Call)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return False
        now_s = point.state.now_s + max(-10, min(later, 10**9))
        try:
            after = world.put(point, caller, call, now_s)
        except (Refused, FrameError) as error:
            refusal(error)
            continue
        _check_taken(point, after)
        point = after
    return point is not before


def _check_taken(point: world.Point, after: world.Point) -> None:
    entry = after.entries[-1]
    must(decode_entry(encode_entry(entry)) == entry, "an entry that was taken does not come back")
    must(follow_on(point.state, entry, point.head, verify) == after.state, "a follower gets another state")
    data = encode_state(after.state)
    read = decode_state(data)
    must(read == after.state and state_digest(read) == entry.state, "a state does not come back")
    grown = len(data) - len(encode_state(point.state))
    must(grown <= 2 * len(entry.signed) + GROWTH_BYTES, f"one call made the state grow by {grown} bytes")
    for name, study in after.state.studies.items():
        must(name == study.settings.name, "a study under another's name")
        if study.initial:
            final_round(study, after.state.now_s)


def call_seeds() -> list[bytes]:
    """Every call at its moment, alone and with what follows."""
    story = world.life()
    made = []
    for moment in range(len(story) - 1):
        for count in (1, 3):
            steps = [step for _, step in story[moment : min(moment + count, len(story) - 1)]]
            calls = [[world.NAMES.index(step.caller), step.call, step.after_s] for step in steps]
            made.append(msgspec.json.encode([moment, *calls]))
    return made


# --- states, genesis, cards of models --------------------------------------------------------------


def read_state(data: bytes) -> bool:
    """A state that is read comes back."""
    try:
        state = decode_state(data)
    except JournalCorrupt as error:
        refusal(error)
        return False
    must(decode_state(encode_state(state)) == state, "a state does not come back")
    state_digest(state)
    return True


def state_seeds() -> list[bytes]:
    """Some moments."""
    return [encode_state(point.state) for point, _ in world.life()[::6]]


def found_from(data: bytes) -> bool:
    """A genesis file founds a swarm, or is refused."""
    path = world.scratch() / "genesis.json"
    path.write_bytes(data)
    try:
        genesis = read_genesis(path)
        state = initial_state(genesis)
    except ConfigError as error:
        refusal(error)
        return False
    must(genesis_digest(msgspec.json.decode(msgspec.json.encode(genesis), type=Genesis)) == state.genesis,
         "a genesis does not come back")  # fmt: skip
    must(decode_state(encode_state(state)) == state, "its state does not come back")
    return True


def genesis_seeds() -> list[bytes]:
    """As `konsil swarm found` writes it."""
    return [msgspec.json.format(msgspec.json.encode(world.genesis()), indent=2) + b"\n"]


@cache
def _model_card() -> ModelCard:
    point = world.life()[-1][0]
    study = point.state.studies["aml"]
    chosen = asked_for(study, 1, final_round(study, point.state.now_s))
    return card_of(point.state, study, chosen, chosen.digest, (10, 15), software="0.1.0")


def read_model_card(data: bytes) -> bool:
    """A model's card is read and compared with the ledger, or refused."""
    try:
        card = decode_card(data)
    except ParametersError as error:
        refusal(error)
        return False
    must(decode_card(encode_card(card)) == card, "a card does not come back")
    state = world.life()[-1][0].state
    try:
        compare_card(state, card, state.now_s)
    except DigestMismatch as error:
        refusal(error)
        return False
    return True


def model_card_seeds() -> list[bytes]:
    """Of round 1, and of the beginning."""
    return [encode_card(_model_card())]


# --- files of the ledger ---------------------------------------------------------------------------


def _remove(path: Path) -> None:
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def open_history(data: bytes) -> bool:
    """A damaged history is opened, replayed and recomputed, or refused."""
    path = world.scratch() / "ledger.db"
    digest = genesis_digest(world.genesis())
    opened = 0
    for read_only in (True, False):
        _remove(path)
        path.write_bytes(data)
        try:
            with Journal(path, digest, read_only=read_only) as journal:
                state = replay(world.genesis(), journal.read(), verify)
                must(journal.height == state.height, "a history of another height than its state")
                opened += 1
        except (ConfigError, LedgerError) as error:
            refusal(error)
    try:
        recompute(world.genesis(), path, verify)
    except (ConfigError, LedgerError) as error:
        refusal(error)
        return False
    return opened > 0


@cache
def history_seeds() -> tuple[bytes, ...]:
    """Of three entries, as SQLite leaves it when it is closed in order."""
    path = world.scratch() / "seed.db"
    with Journal(path, genesis_digest(world.genesis())) as journal:
        journal.append(world.life()[-1][0].entries[:3])
    return (_small(path),)


def _small(path: Path) -> bytes:
    """The same in the smallest pages that there are: most of a page is empty, and teaches nothing."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for order in ("journal_mode=DELETE", "page_size=512"):
            database.execute(f"PRAGMA {order}")
        database.execute("VACUUM")
        database.execute("PRAGMA journal_mode=WAL")
    made = path.read_bytes()
    _remove(path)
    return made


def open_notes(data: bytes) -> bool:
    """A damaged journal of a study says what it still has, is mended, and keeps promises from then on.

    A line that begins with "=" gets the check that it needs: else no changed line would be read any further.
    """
    folder = world.scratch()
    path = folder / "aml.notes"
    for old in folder.glob("aml.*"):
        old.unlink()
    data = b"\n".join(_checked(line) for line in data.split(b"\n"))
    path.write_bytes(data)
    promise = Promise("aml", 2, "publish 1 0", world.digest("mine"))
    with Notebook(folder) as notebook:
        journal = notebook.of("aml")
        journal.open()
        whole = journal.damage is None
        if not whole:
            refusal(journal.damage)
            try:
                journal.promise(promise)
            except NodeError as error:
                refusal(error)
            else:
                must(held=False, what="a promise in a study whose journal is damaged")
            must(journal.mend().aside.read_bytes() == data, "another file than the damaged one was kept")
        try:
            journal.promise(promise)
            journal.promise(replace(promise, digest=world.digest("another")))
        except NodeError as error:
            refusal(error)
        else:
            must(held=False, what="two promises for one part")
    notes, wrong = decode_notes("aml", path.read_bytes())
    must(not wrong, "what was mended or written does not hold")
    must(encode_notes("aml", notes) == path.read_bytes(), "notes have two forms")
    return whole


def _checked(line: bytes) -> bytes:
    return check_of("aml", line[1:]) + b" " + line[1:] if line.startswith(b"=") else line


@cache
def note_seeds() -> tuple[bytes, ...]:
    """Of every kind, and of none; whole as they are, and to be changed line by line."""
    promises = {(2, f"publish 1 {part}"): world.digest(f"{part}") for part in range(1, 3)}
    update = UpdateReady(1, world.digest("base"), world.digest("mine"), 10)
    score = Score("aml", 1, 20, loss=0.25, metrics={"auc": 0.875})
    whole = Notes(promises, Farewell("snapshot", update), {1: score})
    written = encode_notes("aml", whole)
    bare = b"\n".join(b"=" + line.partition(b" ")[2] for line in written.splitlines()) + b"\n"
    return bare, written, encode_notes("aml", Notes())


# --- audit bundles ---------------------------------------------------------------------------------


def verify_bundle(data: bytes) -> bool:
    """A bundle is verified, as it is and with an end that fits what was changed, or refused.

    Whatever passes tells the history that the seed tells.
    """
    lines = data.splitlines(keepends=True)
    body = b"".join(lines[:-1])
    fitting = f'"digest":"{bytes_digest(body, "audit bundle")}"'.encode()
    resealed = body + re.sub(rb'"digest":"[^"]*"', fitting, lines[-1]) if lines else b""
    _bundle(resealed)
    return _bundle(data)


def _bundle(data: bytes) -> bool:
    path = world.scratch() / "bundle"
    path.write_bytes(data)
    try:
        found = check_bundle(path, verify, lambda card, record: check_record(read_card(card), record))
    except JournalCorrupt as error:
        refusal(error)
        return False
    must(found.state == _told()[0] and found.head == _told()[1], "a bundle passes with another history")
    return True


@cache
def _told() -> tuple[State, str, bytes]:
    """A history of three entries: the state after it, its head, and its bundle."""
    journal, out = world.scratch() / "bundle.db", world.scratch() / "seed.bundle"
    journal.write_bytes(history_seeds()[0])
    made = write_bundle(out, world.genesis(), journal, verify, lambda _digest: None)
    with Journal(journal, genesis_digest(world.genesis()), read_only=True) as opened:
        return replay(world.genesis(), opened.read(), verify), made.head, out.read_bytes()


def bundle_seeds() -> list[bytes]:
    """The bundle of a short history."""
    return [_told()[2]]


KIB = 1024
TARGETS: Sequence[Target] = (
    Target("signed", "a signed call", read_signed, signed_seeds, "json", MAX_CALL_BYTES + KIB),
    Target("entry", "an entry of the operator's", read_entry, entry_seeds, "msgpack", MAX_CALL_BYTES + KIB),
    Target("call", "whatever a member may sign", call_as_member, call_seeds, "json"),
    Target("state", "a state of the ledger", read_state, state_seeds, "json", 64 * KIB),
    Target("genesis", "a genesis file", found_from, genesis_seeds, "json"),
    Target(
        "model_card", "a model's card, and the ledger", read_model_card, model_card_seeds, "json", 64 * KIB
    ),
    Target("audit_bundle", "a file to be verified", verify_bundle, bundle_seeds, max_bytes=64 * KIB),
    Target("history", "a damaged ledger.db", open_history, history_seeds, max_bytes=64 * KIB),
    Target("notes", "a damaged journal of a study", open_notes, note_seeds, max_bytes=64 * KIB),
)
