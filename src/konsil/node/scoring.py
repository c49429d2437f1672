"""Scores that training measured, on their way to the ledger: also through the death of this node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from konsil.core.round import Event, NodeRound, ScoreReady
from konsil.core.rules import Score, Study, is_score
from konsil.errors import LedgerError, NodeBusy
from konsil.node.journal import StudyJournal
from konsil.node.site import Site

SAID_S = 5.0
"""How long training waits for the ledger to take scores that the disk does not."""

_log = structlog.get_logger(__name__)


class Scoring:
    """One study's scores: written down before training is told that they are known, said until the ledger has
    them or will never take them.
    """

    def __init__(
        self,
        site: Site,
        journal: StudyJournal,
        study: Callable[[], Study],
        state: Callable[[], NodeRound],
        post: Callable[[Event], None],
    ) -> None:
        """``state``: what the machine knows; ``post``: tells it a fact."""
        self._site = site
        self._journal = journal
        self._study = study
        self._state = state
        self._post = post
        self._noted: set[int] = set()

    def take_up(self) -> None:
        """Say again what an earlier life of this node may have left unsaid."""
        for score in self._journal.scores:
            if self._is_on_record(score):
                self._journal.forget_score(score)
            else:
                self._noted.add(score.round)
                self._say(score)

    async def take(self, score: Score) -> None:
        """Training has measured; on return that is written down, or the ledger has it.

        Raises:
            NodeBusy: neither in time; it is to be said again.
        """
        if not self._can_be_taken(score):
            self._say(score)  # for the contract to say why not
            return
        try:
            await asyncio.to_thread(self._journal.note_score, score)
        except LedgerError as error:
            _log.warning("scores cannot be written down", study=self._journal.study, why=str(error))
            self._say(score)
            await self._settled(score, error)
        else:
            self._noted.add(score.round)
            self._say(score)

    def _say(self, score: Score) -> None:
        if score not in self._state().scores:
            self._post(ScoreReady(score))

    def _can_be_taken(self, score: Score) -> bool:
        there = 1 <= score.round <= len(self._study().history)
        return there and is_score(score) and not self._is_on_record(score)

    def _is_on_record(self, score: Score) -> bool:
        history = self._study().history
        return score.round <= len(history) and self._site.me in history[score.round - 1].scores

    async def _settled(self, score: Score, error: LedgerError) -> None:
        ledger, loop = self._site.ledger, asyncio.get_running_loop()
        until_s = loop.time() + SAID_S
        while score in self._state().scores:
            left_s = until_s - loop.time()
            if left_s <= 0:
                raise NodeBusy(
                    f"The scores of round {score.round} are not on the ledger yet. {error.what}",
                    safe="The node says them until it stops.",
                    do=error.do,
                )
            await ledger.changed(ledger.state.height, min(1.0, left_s))

    def look(self) -> None:
        """Something happened: what the machine is done with needs no note any more."""
        if not self._noted:
            return
        on_their_way = {score.round for score in self._state().scores}
        for score in self._journal.scores:
            if score.round in self._noted and score.round not in on_their_way:
                self._journal.forget_score(score)
        self._noted &= on_their_way
