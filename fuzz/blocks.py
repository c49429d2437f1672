"""What a ledger's engine hands to the rules: in its messages is what members' engines passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import world
from target import Target, must, refusal

from konsil.core.rules import MAX_CALL_BYTES, State, entry_digest
from konsil.errors import FrameError, KonsilError
from konsil.identity.ledger_key import verify
from konsil.ledger.cometbft.abci import Request, decode_request
from konsil.ledger.cometbft.application import (
    MAX_BLOCK_BYTES,
    MEMBER_BLOCK_BYTES,
    Application,
    Decided,
    is_peer,
)
from konsil.ledger.cometbft.server import framed, read_message
from konsil.ledger.history import follow_on, sign_call

KIB = 1024
MAX_SHOWN = 64
"""Calls of one message that are looked at: each costs a signature's check, and more show nothing more."""


def converse(data: bytes) -> bool:
    """The first byte says at which moment of the story, the second how the bytes are cut."""
    if len(data) < 2:
        return False
    point = world.life()[data[0] % len(world.life())][0]
    app = Application(world.genesis(), verify)
    app.go_to(point.state, point.head, 1)
    return asyncio.run(_read(app, data[2:], data[1] + 1))


async def _read(app: Application, wire: bytes, step: int) -> bool:
    reader = asyncio.StreamReader()
    for at in range(0, len(wire), step * 16):
        reader.feed_data(wire[at : at + step * 16])
    reader.feed_eof()
    through = False
    while True:
        try:
            kind, request = decode_request(await read_message(reader))
        except asyncio.IncompleteReadError:
            return through
        except FrameError as error:
            refusal(error)
            return through
        through |= _answered(app, kind, request)


def _answered(app: Application, kind: str, request: Any) -> bool:
    """Whether a call in it was let through."""
    if kind == "check_tx":
        return _checked(app, request.tx)
    if kind == "query":
        is_peer(app.state, request.path)
    if kind in {"prepare_proposal", "process_proposal", "finalize_block"}:
        calls = list(request.txs)[:MAX_SHOWN]
        if kind == "prepare_proposal":
            return _proposed(app, calls, request.max_tx_bytes)
        if kind == "process_proposal":
            return app.process(calls) and bool(calls)
        for one in request.misbehavior:
            app.member_at(one.validator.address)
        return _finalized(app, calls, request.height, request.time.seconds)
    return False


def _checked(app: Application, signed: bytes) -> bool:
    paid = []
    try:
        app.check(signed, lambda *call: paid.append(call))
    except KonsilError as error:
        refusal(error)
        must(not paid, "a call that was refused cost its member something")
        return False
    must(len(paid) == 1, "a call that waits is paid for once")
    app.recheck(signed)
    return True


def _proposed(app: Application, calls: Sequence[bytes], room: int) -> bool:
    chosen = app.prepare(calls, room)
    must(app.process(chosen), "nobody would vote for what this node proposes")
    must(sum(map(len, chosen)) <= max(room, 0), "more than there is room for")
    must(sum(map(len, chosen)) <= MEMBER_BLOCK_BYTES * len(world.NAMES), "more than the members' shares")
    return bool(chosen)


def _finalized(app: Application, calls: Sequence[bytes], height: int, time_s: int) -> bool:
    state, head = app.state, app.head
    votable = app.process(calls)
    decided = app.finalize(height, time_s, calls)
    must(app.state is state and app.head == head, "a block counts before it is committed")
    must(app.finalize(height, time_s, calls).entries == decided.entries, "a block makes two histories")
    app.commit()
    _replays(app, state, head, decided)
    for outcome in decided.outcomes:
        if outcome.error is not None:
            refusal(outcome.error)
            must("rules broke" not in outcome.error.what, outcome.error.what)
    return votable and bool(decided.entries)


def _replays(app: Application, state: State, head: str, decided: Decided) -> None:
    must(bool(decided.entries) == (decided.app_hash.hex() != head), "a hash that changes without an entry")
    for entry in decided.entries:
        state = follow_on(state, entry, head, verify)
        head = entry_digest(entry)
    must((app.state, app.head) == (state, head), "a follower gets another state")


def _next_calls(moment: int, count: int) -> list[bytes]:
    """What the story's members sign next, in order."""
    story = world.life()
    numbers = {name: member.sequence for name, member in story[moment][0].state.members.items()}
    made = []
    for _, step in story[moment : min(moment + count, len(story) - 1)]:
        numbers[step.caller] = numbers.get(step.caller, 0) + 1
        swarm = story[0][0].state.genesis
        made.append(sign_call(swarm, world.key(step.caller), step.caller, numbers[step.caller], step.call))
    return made


def seeds() -> list[bytes]:
    """The messages of a block at some moments, as CometBFT sends them."""
    made = []
    for moment in range(0, len(world.life()) - 1, 4):
        calls = _next_calls(moment, 3)
        time = {"seconds": world.life()[moment][0].state.now_s + 1}
        told = [
            Request(info={"version": "0.38.25"}),
            Request(query={"path": "/p2p/filter/id/00"}),
            *(Request(check_tx={"tx": signed}) for signed in calls),
            Request(prepare_proposal={"txs": calls, "max_tx_bytes": MAX_BLOCK_BYTES, "height": 2}),
            Request(process_proposal={"txs": calls, "height": 2, "time": time}),
            Request(finalize_block={"txs": calls, "height": 2, "time": time, "misbehavior": [{"type": 1}]}),
            Request(commit={}),
        ]
        wire = b"".join(framed(one.SerializeToString()) for one in told)
        made.append(bytes((moment, 7)) + wire)
        made.append(bytes((moment, 7)) + framed(told[-2].SerializeToString()))
    return made


TARGETS: Sequence[Target] = (
    Target("abci", "an engine's messages", converse, seeds, max_bytes=MAX_CALL_BYTES + 8 * KIB),
)
