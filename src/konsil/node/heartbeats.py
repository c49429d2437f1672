"""How far the members of a study are: told to one another again and again, for people."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from konsil.core.messages import Heartbeat
from konsil.core.rules import Study
from konsil.core.wall import MemberProgress
from konsil.errors import KonsilError
from konsil.node.site import Site

HEARTBEAT_S = 2.0
"""How often a node tells its peers how far it is: often enough for a live view, nothing for the line."""


class Heartbeats:
    """One study's heartbeats at one node: its own go out, its peers' are kept."""

    def __init__(
        self, name: str, site: Site, study: Callable[[], Study], mine: Callable[[], MemberProgress]
    ) -> None:
        """``mine`` gives how far this node is."""
        self._name = name
        self._site = site
        self._study = study
        self._mine = mine
        self._heard: dict[str, MemberProgress] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def peers(self) -> tuple[MemberProgress, ...]:
        """What was heard last of each peer."""
        return tuple(self._heard[name] for name in sorted(self._heard))

    def start(self) -> None:
        """Begin to tell."""
        if self._task is None:  # a study may have to begin more than once
            self._task = asyncio.create_task(self._tell())

    def heard(self, peer: str, beat: Heartbeat) -> None:
        """A peer's heartbeat; one that takes no part in the study is not heard."""
        if peer in self._study().participants:
            now_s = self._site.ledger_s()
            self._heard[peer] = MemberProgress(peer, beat.round, beat.stage, beat.progress, now_s)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)  # a heartbeat is a rhythm: there is no event to wait for
            study = self._study()
            if study.phase in {"finished", "failed"} or self._site.me not in study.participants:
                continue
            mine = self._mine()
            beat = Heartbeat(self._name, mine.round, mine.stage, mine.progress)
            connected = set(self._site.peers.connected()) & set(study.participants)
            await asyncio.gather(*(self._beat(peer, beat) for peer in connected))

    async def _beat(self, peer: str, beat: Heartbeat) -> None:
        with contextlib.suppress(KonsilError):
            await self._site.peers.ask(peer, beat, timeout_s=HEARTBEAT_S)

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
