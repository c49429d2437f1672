"""A swarm of four whose keys are known here, and its history up to every stage of a study."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.parameters import Schema, Tensor
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Announce,
    Best,
    Call,
    Commit,
    Dispute,
    Enter,
    Entry,
    Finish,
    Genesis,
    Initialise,
    Leave,
    MemberRecord,
    OpenRound,
    Plateau,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Report,
    Score,
    State,
    StudySettings,
    SwarmSettings,
    Tick,
    Verdict,
    Vote,
    entry_digest,
    genesis_digest,
    initial_state,
    settings_digest,
)
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.history import put_on, sign_call

NAMES = ("a", "b", "c", "d")
START_S = 1_700_000_000
MIB = 1024 * 1024

SETTINGS = StudySettings(
    name="aml",
    description="a study",
    min_members=3,
    quorum=3,
    rounds=3,
    every_steps=10,
    rule="trimmed_mean",
    rule_options={"f": 1},
    patience_s=600,
    give_up_s=1000,
    plateau=Plateau("auc", "max", 2, 0.01),
    best=Best("auc", "max"),
    local=("head.*",),
)


@cache
def _root() -> Path:
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    folder = Path(tempfile.mkdtemp(prefix="konsil-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _scratch(pid: int) -> Path:
    folder = _root() / str(pid)
    folder.mkdir()
    return folder


def scratch() -> Path:
    """A folder for this process's files, in memory where the system has such a place.

    Called before processes are forked, it goes with the first of them.
    """
    return _scratch(os.getpid())


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One event loop for the process's life."""
    return asyncio.new_event_loop()


def digest(text: object) -> str:
    """Some digest."""
    return bytes_digest(str(text).encode(), "fuzz")


@cache
def key(name: str) -> LedgerKey:
    """A member's ledger key: the same in every run."""
    made = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digest(f"key {name}")))
    return LedgerKey(made.public_key().public_bytes_raw().hex(), made)


def record(name: str) -> MemberRecord:
    """What the ledger knows of a member."""
    return MemberRecord(
        name, f"spiffe://{name}.example/node", key(name).public, digest(f"bundle {name}"),
        digest(f"card {name}"), (f"{name}.example:7400",),
    )  # fmt: skip


@cache
def genesis() -> Genesis:
    """The four founded this."""
    return Genesis("lungs", "local", "a", START_S, tuple(map(record, NAMES)), SwarmSettings(proposal_s=3600))


@cache
def schema() -> Schema:
    """Of a small model."""
    return Schema(
        (Tensor("bias", "F32", (3,)), Tensor("weight", "F32", (3, 4)), Tensor("scale", "F16", (2,)))
    )


class Point(NamedTuple):
    """A history at one moment: the state, the digest of its last entry, and its entries."""

    state: State
    head: str
    entries: tuple[Entry, ...]


def beginning() -> Point:
    """Before the first call."""
    return Point(initial_state(genesis()), genesis_digest(genesis()), ())


def put(point: Point, caller: str, call: Call, now_s: int | None = None) -> Point:
    """The history with one more call.

    Raises:
        KonsilError: it was not taken.
    """
    now_s = point.state.now_s if now_s is None else now_s
    sequence = point.state.members[caller].sequence + 1 if caller in point.state.members else 1
    signed = sign_call(point.state.genesis, key(caller), caller, sequence, call)
    entry, state = put_on(point.state, point.head, signed, now_s, verify)
    return Point(state, entry_digest(entry), (*point.entries, entry))


def _open(point: Point) -> OpenRound:
    opened = point.state.studies["aml"].open
    assert opened is not None  # noqa: S101 - the story below is fixed
    return opened


class Step(NamedTuple):
    """One call of the story. ``after_s``: since the one before."""

    caller: str
    call: Call
    after_s: int = 0


def _story(points: list[Point]) -> Iterator[Step]:
    """A study's life, with all that the contract has a call for; the last of ``points`` is now."""
    yield Step("a", ProposeStudy(SETTINGS))
    yield from (Step(name, Agree("aml", settings_digest(SETTINGS))) for name in NAMES[1:])
    yield Step("a", Initialise("aml", schema().digest, digest("round 0"), 100 * MIB))
    yield Step("b", Announce(("b.example:7401",)))
    yield from (Step(name, Enter("aml")) for name in NAMES)
    yield Step("d", Leave("aml"))
    yield Step("c", Alive("aml", 1, 0.5), 5)
    for name in NAMES[:3]:
        yield Step(name, Commit("aml", 1, points[-1].state.studies["aml"].accepted, digest(name), 10))
    yield Step("b", Report("aml", 1, 1, ("c",)))
    for index, part in enumerate(_open(points[-1]).parts):
        yield Step(part.leader, Publish("aml", 1, 1, index, digest(index)))
    disputed = _open(points[-1])
    other = next(name for name in disputed.roster if name != disputed.parts[0].leader)
    yield Step(other, Dispute("aml", 1, disputed.attempt, 0, 0))
    for name in disputed.roster:
        if name != other:
            yield Step(name, Verdict("aml", 1, disputed.attempt, 0, 0, wrong=False))
    for name in disputed.roster:
        yield Step(name, Accept("aml", 1, disputed.attempt, _open(points[-1]).digest))
    for name in disputed.roster:
        yield Step(name, Score("aml", 1, 10, 0.5, {"auc": 0.9}))
    yield Step("a", ProposeSwarmSettings(SwarmSettings(proposal_s=7200)))
    yield Step("b", Vote(1, yes=True))
    yield Step("c", Vote(1, yes=True))
    yield Step("b", ProposeStudySettings(replace(SETTINGS, rounds=5)))
    yield Step("c", ProposeRemove("d", "left"))
    yield Step("a", ProposeAdmit(record("e")))
    yield Step("b", Vote(3, yes=False))
    yield Step("a", Tick("aml"), 700)
    yield Step("a", Finish("aml", "active"))


@cache
def life() -> tuple[tuple[Point, Step], ...]:
    """Every moment of the story with the call that comes next; the last one has the call that led to it."""
    points = [beginning()]
    made = []
    for step in _story(points):
        made.append((points[-1], step))
        points.append(put(points[-1], step.caller, step.call, points[-1].state.now_s + step.after_s))
    return (*made, (points[-1], made[-1][1]))
