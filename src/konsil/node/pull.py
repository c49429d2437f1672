"""Getting manifests and chunks by digest, from whoever has them: a digest says if they are right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog

from konsil.core.digest import Manifest, check_leaf
from konsil.core.messages import MAX_MANIFEST_BYTES, GetChunk, GetManifest
from konsil.errors import DigestMismatch, FrameError, PeerUnreachable, TransportError
from konsil.node.peers import Peers

CHUNK_TIMEOUT_S = 120.0
"""For 4 MiB: a line of 0.3 Mbit/s still makes it; a dead one is noticed by the transport much earlier."""

AWAY_S = 5.0
"""How long a holder without a connection is waited for, unless the caller says otherwise."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Puller:
    """Gets what is of one study: asks holders one after the other, directly or, where there is no way to
    them, through a relay.
    """

    def __init__(self, me: str, peers: Peers, study: str) -> None:
        """Pull as the member ``me``; peers look in ``study`` alone."""
        self.me = me
        self.peers = peers
        self.study = study

    async def manifest(self, digest: str, holders: Sequence[str], *, away_s: float = AWAY_S) -> Manifest:
        """The manifest of a model (a root digest) or of a part (a group digest), checked.

        Args:
            digest: what it must have.
            holders: who has it, in the order in which to ask.
            away_s: how long a holder without a connection is waited for.

        Raises:
            PeerUnreachable: nobody who has it could be reached.
        """
        failures: list[str] = []
        for holder, via, timeout_s in self._ways(holders, away_s):
            request = GetManifest(self.study, digest, holder=holder, relay=via != holder)
            try:
                _, received = await self.peers.ask(
                    via, request, timeout_s=timeout_s, limit_bytes=MAX_MANIFEST_BYTES
                )
                manifest = Manifest.decode(received.body)
                manifest.require(digest)
            except (TransportError, DigestMismatch, FrameError) as error:
                failures.append(f"{via}: {error.what}")
                continue
            return manifest
        raise _nobody(digest, holders, failures)

    async def chunk(
        self,
        digest: str,
        index: int,
        leaf: bytes,
        into: memoryview,
        holders: Sequence[str],
        *,
        away_s: float = AWAY_S,
    ) -> None:
        """One chunk straight into memory, checked against its leaf.

        Args:
            digest: what the chunk belongs to.
            index: its number there.
            leaf: what it must be.
            into: as long as the chunk.
            holders: who has it, in the order in which to ask.
            away_s: how long a holder without a connection is waited for.

        Raises:
            PeerUnreachable: nobody who has it could be reached, or nobody sent the right bytes.
        """
        failures: list[str] = []
        for holder, via, timeout_s in self._ways(holders, away_s):
            request = GetChunk(self.study, digest, index, holder=holder, relay=via != holder)
            try:
                await self.peers.ask(via, request, timeout_s=timeout_s, into=into)
                await in_thread(partial(check_leaf, into, leaf, index=index))
            except DigestMismatch as error:
                _log.warning("a peer sent a wrong chunk", peer=via, digest=digest, chunk=index)
                failures.append(f"{via}: {error.what}")
                continue
            except TransportError as error:
                failures.append(f"{via}: {error.what}")
                continue
            return
        raise _nobody(digest, holders, failures)

    def _ways(self, holders: Sequence[str], away_s: float) -> list[tuple[str, str, float]]:
        """(holder, whom to ask, for how long): connected holders, then through relays, then the others."""
        others = [holder for holder in holders if holder != self.me]
        connected = set(self.peers.connected())
        near = [(holder, holder, CHUNK_TIMEOUT_S) for holder in others if holder in connected]
        relays = [
            (holder, relay, CHUNK_TIMEOUT_S)
            for holder in others
            if holder not in connected
            for relay in sorted(connected)  # holders, too: one may reach another without having it yet
        ]
        far = [(holder, holder, away_s) for holder in others if holder not in connected]
        return near + relays + far


async def in_thread(work: Callable[[], T]) -> T:
    """Do work on a view of memory in a thread, which has let go of it when this ends, however it ends."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait((working,))
        if not working.cancelled():
            working.exception()  # seen: it does not matter any more
        raise


def _nobody(digest: str, holders: Sequence[str], failures: Sequence[str]) -> PeerUnreachable:
    return PeerUnreachable(
        f"Nobody could give what is behind {digest[:12]} (held by {', '.join(holders) or 'nobody known'}): "
        f"{'; '.join(failures) or 'no connection'}.",
        safe="Accepted rounds are safe; it is tried again.",
        do="See who is connected: `konsil node status`.",
        digest=digest,
    )
