"""Members whose nodes do not keep to the protocol: real nodes, with one part exchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from konsil.core.digest import Manifest, group_digest, leaf
from konsil.core.messages import MAX_MANIFEST_BYTES, GetChunk, GetManifest, decode_request
from konsil.core.rules import Call, Commit, Dispute, OpenRound, Publish, Report, State
from konsil.errors import KonsilError, LedgerError, PeerRefused
from konsil.ledger.base import Ledger
from konsil.node.peers import NOT_HERE, failure_reply
from konsil.node.store import Model, Slice
from konsil.simulation.faults import Liar, Lie
from konsil.simulation.nodes.plan import STUDY
from konsil.transport.base import Reply

if TYPE_CHECKING:
    from konsil.simulation.nodes.node import SimulatedNode
    from konsil.simulation.nodes.plan import Plan

WATCH_S = 60.0


def disguise(node: SimulatedNode, plan: Plan) -> None:
    """Let a node lie, if its plan says so."""
    for fault in plan.faults:
        if isinstance(fault, Liar) and fault.member == node.name:
            _LIES[fault.lie](node)


class _LyingLedger:
    """A node's ledger, to which other things are said than the node wants."""

    def __init__(self, ledger: Ledger, instead: Callable[[Ledger, Call], Awaitable[int]]) -> None:
        self._ledger = ledger
        self._instead = instead

    @property
    def state(self) -> State:
        return self._ledger.state

    @property
    def description(self) -> str:
        return self._ledger.description

    async def submit(self, call: Call) -> int:
        return await self._instead(self._ledger, call)

    async def changed(self, after: int, timeout_s: float) -> int:
        return await self._ledger.changed(after, timeout_s)

    async def close(self) -> None:
        await self._ledger.close()


@dataclass(frozen=True)
class _WrongPart:
    """A part with other chunks than it should have, and leaves that fit."""

    leaves: tuple[bytes, ...]
    chunks: tuple[bytes, ...]
    source: object

    def chunk(self, index: int) -> bytes:
        return self.chunks[index]


def _wrong_part(node: SimulatedNode) -> None:
    """Publishes a part that its commits do not give, and serves it faithfully."""
    _publish(node, lambda part, _base: tuple(bytes(len(part.chunk(i))) for i in range(len(part.leaves))))


def _stale_part(node: SimulatedNode) -> None:
    """Publishes what the round started from as what came out of it."""
    _publish(
        node,
        lambda part, base: tuple(bytes(base.chunk(part.first_chunk + i)) for i in range(len(part.leaves))),
    )


def _publish(node: SimulatedNode, instead_of: Callable[[Slice, Model], tuple[bytes, ...]]) -> None:
    async def instead(ledger: Ledger, call: Call) -> int:
        if not isinstance(call, Publish):
            return await ledger.submit(call)
        current, store = _merging(node), node.runners[STUDY].store
        part = store.part(call.digest)
        base = store.model(current.base) if current is not None else None
        if part is None or base is None:
            return await ledger.submit(call)
        chunks = instead_of(part, base)
        leaves = tuple(leaf(chunk) for chunk in chunks)
        store.add_part(group_digest(leaves), cast("Slice", _WrongPart(leaves, chunks, part.source)))
        return await ledger.submit(replace(call, digest=group_digest(leaves)))

    node.site.ledger = _LyingLedger(node.site.ledger, instead)


def _silent_leader(node: SimulatedNode) -> None:
    """Merges its part and tells nobody."""

    async def instead(ledger: Ledger, call: Call) -> int:
        if isinstance(call, Publish):
            raise LedgerError("This leader says nothing.")
        return await ledger.submit(call)

    node.site.ledger = _LyingLedger(node.site.ledger, instead)


def _another_commit(node: SimulatedNode) -> None:
    """Commits one update and then another one."""

    async def instead(ledger: Ledger, call: Call) -> int:
        height = await ledger.submit(call)
        if isinstance(call, Commit):
            with contextlib.suppress(KonsilError):
                await ledger.submit(replace(call, digest=call.digest[::-1]))
        return height

    node.site.ledger = _LyingLedger(node.site.ledger, instead)


def _replayed_calls(node: SimulatedNode) -> None:
    """Says again whatever it has said before."""
    said: list[Call] = []

    async def instead(ledger: Ledger, call: Call) -> int:
        height = await ledger.submit(call)
        said.append(call)
        for before in said[-3:]:
            with contextlib.suppress(KonsilError):
                await ledger.submit(before)
        return height

    node.site.ledger = _LyingLedger(node.site.ledger, instead)


def _answers(node: SimulatedNode, lie: Callable[[GetManifest | GetChunk, Reply], Reply]) -> None:
    """Let a node answer otherwise when it is asked for models."""
    honest = node.service.answer

    async def answer(peer: str, message: bytes) -> Reply:
        reply = await honest(peer, message)
        request = decode_request(message)
        return lie(request, reply) if isinstance(request, GetManifest | GetChunk) else reply

    node.transport.answer_by(answer)


def _wrong_chunks(node: SimulatedNode) -> None:
    """Serves other bytes than it was asked for."""

    def lie(request: GetManifest | GetChunk, reply: Reply) -> Reply:
        body = bytes(reply.body)
        return Reply(reply.message, body[::-1]) if isinstance(request, GetChunk) else reply

    _answers(node, lie)


def _wrong_manifests(node: SimulatedNode) -> None:
    """Serves manifests of something else, and then just that."""

    def lie(request: GetManifest | GetChunk, reply: Reply) -> Reply:
        if not reply.body:
            return reply
        if isinstance(request, GetChunk):
            return Reply(reply.message, bytes(reply.body)[::-1])
        right, store, index = Manifest.decode(bytes(reply.body)), node.runners[STUDY].store, count()
        groups = tuple(
            tuple(leaf(bytes(store.chunk(request.digest, next(index)) or b"")[::-1]) for _ in group)
            for group in right.groups
        )
        return Reply(reply.message, Manifest(right.header, groups).encode())

    _answers(node, lie)


def _curious(node: SimulatedNode) -> None:
    """Asks for the others' updates before the roster is fixed."""

    async def watch() -> None:
        ledger = node.ledger
        while True:
            study = ledger.state.studies.get(STUDY)
            current = study.open if study is not None else None
            commits = current.commits if current is not None and current.phase == "collecting" else {}
            for name in sorted(commits):
                if name != node.name:
                    request = GetManifest(STUDY, commits[name].digest)
                    with contextlib.suppress(KonsilError):
                        await node.peers.ask(name, request, timeout_s=0.2, limit_bytes=MAX_MANIFEST_BYTES)
            height = ledger.state.height
            await ledger.changed(height, WATCH_S)

    node.beside(watch())


def _withheld_update(node: SimulatedNode) -> None:
    """Commits an update and gives it to nobody."""

    def lie(request: GetManifest | GetChunk, reply: Reply) -> Reply:
        current = _merging(node)
        mine = current.commits.get(node.name) if current is not None else None
        if mine is None or mine.digest != request.digest:
            return reply
        return failure_reply(PeerRefused(NOT_HERE, f"{node.name} does not have it."))

    _answers(node, lie)


def _merging(node: SimulatedNode) -> OpenRound | None:
    study = node.ledger.state.studies.get(STUDY)
    current = study.open if study is not None else None
    return current if current is not None and current.phase == "merging" else None


def _says_beside(node: SimulatedNode, about: Callable[[OpenRound], Call | None]) -> None:
    """Say something to the ledger whenever it moves while a round is merged."""

    async def watch() -> None:
        ledger, height = node.ledger, -1
        while True:
            current = _merging(node)
            call = about(current) if current is not None and node.name in current.roster else None
            if call is not None:
                with contextlib.suppress(KonsilError):
                    await ledger.submit(call)
            height = ledger.state.height
            await ledger.changed(height, WATCH_S)

    node.beside(watch())


def _false_reports(node: SimulatedNode) -> None:
    """Reports everybody as unreachable."""

    def about(current: OpenRound) -> Call | None:
        others = tuple(name for name in current.roster if name != node.name)
        known = current.reports.get(node.name)
        return Report(STUDY, current.number, current.attempt, others) if known != others else None

    _says_beside(node, about)


def _needless_dispute(node: SimulatedNode) -> None:
    """Disputes chunks that are right."""

    def about(current: OpenRound) -> Call | None:
        mine = [dispute for dispute in current.disputes if dispute.by == node.name]
        if current.dispute is not None or any(dispute.attempt == current.attempt for dispute in mine):
            return None
        for number, part in enumerate(current.parts):
            if part.digest and part.leader != node.name:
                # With as many parts as chunks a part's chunk has its number; with fewer it is refused.
                return Dispute(STUDY, current.number, current.attempt, number, number)
        return None

    _says_beside(node, about)


_LIES: dict[Lie, Callable[[Any], None]] = {
    "merges a part wrongly": _wrong_part,
    "publishes what it began with": _stale_part,
    "sends wrong chunks": _wrong_chunks,
    "sends other models": _wrong_manifests,
    "reads early": _curious,
    "gives its update to nobody": _withheld_update,
    "leads nothing": _silent_leader,
    "reports honest members": _false_reports,
    "disputes right chunks": _needless_dispute,
    "says old calls again": _replayed_calls,
    "commits twice": _another_commit,
}
