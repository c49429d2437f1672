"""What this node answers to its peers."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from konsil import __version__
from konsil.core.digest import CHUNK_BYTES
from konsil.core.messages import (
    MAX_MANIFEST_BYTES,
    Accepted,
    Bytes,
    Done,
    GetCard,
    GetChunk,
    GetManifest,
    GetStatus,
    Heartbeat,
    LedgerFollow,
    LedgerSubmit,
    Request,
    Status,
    decode_request,
    encode,
)
from konsil.errors import KonsilError, PeerRefused
from konsil.ledger.base import Ledger
from konsil.node.copies import Copies
from konsil.node.peers import NOT_HERE, Peers, failure_reply
from konsil.node.study import StudyRunner
from konsil.transport.base import Reply

RELAY_TIMEOUT_S = 60.0
"""A relayed chunk crosses two lines; the asker waits twice this."""

RELAYS_AT_ONCE = 16
"""Relayed answers for one peer that may be on their way: 64 MiB of chunks."""

CATCH_UP_S = 2.0
"""How far behind its peers on the ledger a node may be before it says that it does not know a digest."""

MAX_WAIT_S = 60.0
"""The longest that a peer may ask this node to wait with an answer."""

_log = structlog.get_logger(__name__)


class _Relayed(bytearray):
    """A relayed answer, whose end can be noticed."""

    __slots__ = ("__weakref__",)


class Operator(Protocol):
    """What the node that keeps the local ledger offers to the others."""

    async def accept(self, signed: bytes) -> int:
        """Put a signed call on the ledger."""
        ...

    async def follow(self, after: int, wait_s: float) -> list[bytes]:
        """Entries after a height, waiting for the first."""
        ...


class Service:
    """Answers peers' requests; the handler of the transport."""

    def __init__(
        self,
        me: str,
        runners: Callable[[], dict[str, StudyRunner]],
        cards: Callable[[str], bytes | None],
    ) -> None:
        """``cards``: a card's bytes by digest, if it is here. Ledger and peers are set once they exist."""
        self.me = me
        self._runners = runners
        self._cards = cards
        self.ledger: Ledger | None = None
        self.operator: Operator | None = None
        self.peers: Peers | None = None
        self._copies = Copies()
        self._relaying: Counter[str] = Counter()

    async def answer(self, peer: str, message: bytes) -> Reply:
        """The reply to a peer's request; errors become replies, never silence."""
        try:
            request = decode_request(message)
            return await self._dispatch(peer, request)
        except KonsilError as error:
            _log.debug("a peer was refused", peer=peer, why=error.what)
            return failure_reply(error)
        except TimeoutError:
            return failure_reply(PeerRefused("not_yet", "What was waited for has not come in time."))

    def _dispatch(self, peer: str, request: Request) -> Coroutine[Any, Any, Reply]:
        match request:
            case GetManifest() | GetChunk():
                return self._model_bytes(peer, request)
            case GetCard():
                return self._card(request)
            case Heartbeat():
                return self._heard(peer, request)
            case LedgerSubmit():
                return self._ledger_submit(request)
            case LedgerFollow():
                return self._ledger_follow(peer, request)
            case GetStatus():
                return self._status()
            case _:
                raise PeerRefused("unknown", f"{type(request).__name__} is not asked here.")

    async def _model_bytes(self, peer: str, request: GetManifest | GetChunk) -> Reply:
        runner = await self._readable_in(peer, request)
        await self._copies.room(peer)
        found = _held(runner, request)
        if found is None and await runner.shelf.recall(request.digest):
            found = _held(runner, request)
        if found is not None:
            return Reply(encode(Bytes()), self._copies.counted(peer, found))
        if request.relay and request.holder != self.me and self.peers is not None:
            return await self._relay(peer, request, self.peers)
        raise self._not_here(request.digest)

    async def _readable_in(self, peer: str, request: GetManifest | GetChunk) -> StudyRunner:
        """The study that a request names, once the peer may read there what is behind the digest.

        Another study's word about the same digest counts for nothing: anybody may propose a study and name
        any digest as its first model. A peer may have heard of it from the ledger a moment before this node:
        that moment is waited for.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CATCH_UP_S
        while True:
            runner = self._runners().get(request.study)
            if runner is not None and runner.may_read(peer, request.digest):
                return runner
            left_s = until_s - loop.time()
            if self.ledger is None or left_s <= 0:
                raise self._not_here(request.digest)
            await self.ledger.changed(self.ledger.state.height, left_s)

    def _not_here(self, digest: str) -> PeerRefused:
        return PeerRefused(
            NOT_HERE,
            f"{self.me} does not have what is behind {digest[:12]}, or not for this peer.",
            do="Ask another peer.",
        )

    async def _relay(self, peer: str, request: GetManifest | GetChunk, peers: Peers) -> Reply:
        """Fetch from the holder for a peer that cannot reach it."""
        if request.holder not in peers.connected():
            raise PeerRefused(
                NOT_HERE, f"{self.me} does not reach {request.holder} either.", do="Ask another peer."
            )
        if isinstance(request, GetManifest):
            asked: Request = GetManifest(request.study, request.digest, holder=request.holder)
            limit = MAX_MANIFEST_BYTES
        else:
            asked = GetChunk(request.study, request.digest, request.index, holder=request.holder)
            limit = CHUNK_BYTES
        if self._relaying[peer] >= RELAYS_AT_ONCE:
            raise PeerRefused("busy", f"{self.me} relays {RELAYS_AT_ONCE} answers to {peer} already.")
        self._relaying[peer] += 1
        body = _Relayed()
        # Counted until the transport has let go of it, so that a peer that does not read fills no memory.
        weakref.finalize(body, self._relayed, peer)
        _, received = await peers.ask(request.holder, asked, timeout_s=RELAY_TIMEOUT_S, limit_bytes=limit)
        body += received.body
        return Reply(encode(Bytes()), body)

    def _relayed(self, peer: str) -> None:
        self._relaying[peer] -= 1

    async def _card(self, request: GetCard) -> Reply:
        card = await asyncio.to_thread(self._cards, request.digest)
        if card is None:
            raise PeerRefused(NOT_HERE, f"{self.me} does not have that card.", do="Ask another peer.")
        return Reply(encode(Bytes()), card)

    async def _heard(self, peer: str, beat: Heartbeat) -> Reply:
        runner = self._runners().get(beat.study)
        if runner is not None:
            runner.heartbeats.heard(peer, beat)
        return Reply(encode(Done()))

    async def _ledger_submit(self, request: LedgerSubmit) -> Reply:
        height = await self._keeper().accept(request.signed)
        return Reply(encode(Accepted(height)))

    async def _ledger_follow(self, peer: str, request: LedgerFollow) -> Reply:
        wait_s = min(MAX_WAIT_S, max(0.0, request.wait_s))
        entries = await self._keeper().follow(request.after, wait_s)
        await self._copies.room(peer)
        return Reply(encode(Bytes()), self._copies.counted(peer, join_entries(entries)))

    def _keeper(self) -> Operator:
        if self.operator is None:
            raise PeerRefused(
                "not_operator", f"{self.me} does not keep the ledger.", do="Ask the operator in the genesis."
            )
        return self.operator

    async def _status(self) -> Reply:
        height = self.ledger.state.height if self.ledger is not None else 0
        reachable = self.peers.connected() if self.peers is not None else ()
        return Reply(encode(Status(self.me, __version__, time.time(), height, reachable)))


def _held(runner: StudyRunner, request: GetManifest | GetChunk) -> bytes | memoryview | None:
    """What a study has in memory of what a peer asks for."""
    if isinstance(request, GetManifest):
        return runner.store.manifest(request.digest)
    return runner.store.chunk(request.digest, request.index)


def join_entries(entries: list[bytes]) -> bytes:
    """Ledger entries as one run of bytes: 4 bytes length each, big-endian."""
    return b"".join(len(entry).to_bytes(4, "big") + entry for entry in entries)


def split_entries(data: bytes | bytearray) -> list[bytes]:
    """The reverse of ``join_entries``.

    Raises:
        PeerRefused: the bytes break the format.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + size > len(data):
            raise PeerRefused("broken_entries", "The ledger's entries break off.", safe="None was taken.")
        entries.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return entries
