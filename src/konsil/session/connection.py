"""A session's connection to its node, which may die and come back: what was said is said again."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from konsil.core.wall import (
    WALL_VERSION,
    Failed,
    Final,
    Finished,
    FromNode,
    Goodbye,
    Join,
    Joined,
    Knock,
    Merged,
    Noted,
    Progress,
    Scored,
    Terms,
    Update,
    Waiting,
    Wanted,
)
from konsil.errors import FrameError, KonsilError, NodeBusy, NodeError, NodeUnreachable, StudyError
from konsil.session.news import Entry, News, news_of
from konsil.wall.frames import raised
from konsil.wall.line import Line
from konsil.wall.memory import SealedMemory, open_sealed

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two attempts to reach a node that is away: doubled from the first to the longest."""

CONNECT_S = 10.0
"""For one attempt: a living node accepts at once, and answers a knock from memory."""

BRIEF_S = 0.5
"""What a lost node may cost, each time it is looked for, while training goes on."""

LOOK_AGAIN_S = 1.0
"""How often a session that trains says how far it is, and looks for a node that is away."""

NODE_AWAY = "this hospital's own node, which does not answer"
"""What a session waits for while its node restarts."""

Answer = TypeVar("Answer", Terms, Joined, Merged, Noted, Final)
Result = TypeVar("Result")


class Connection:
    """One study's training connection. One thread at a time.

    Between calls it holds at most one piece of news that came unasked, and no other descriptor.
    """

    def __init__(
        self, path: Path, study: str, *, away_s: float, on_waiting: Callable[[Waiting], None]
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            path: the node's socket.
            study: the study's name.
            away_s: how long the node may be away before that is an error.
            on_waiting: told of what the node waits for.
        """
        self.path = path
        self.away_s = away_s
        self._study = study
        self._on_waiting = on_waiting
        self._line: Line | None = None
        self._lost_at_s: float | None = None
        self._look_at_s = 0.0
        self._join = Join(header=b"")
        self._news: News | None = None

    def enter(self, prepare: Callable[[Terms], Entry], terms_s: float) -> tuple[Terms, News]:
        """Join the study.

        Args:
            prepare: makes what this session enters with, after the node has named its terms. Called again
                when the node dies in between; what it made stays its own to close.
            terms_s: how long a node that is there may take to name its terms.

        Returns:
            The node's terms, and the round that was accepted last.

        Raises:
            NodeUnreachable: no node, for longer than ``away_s``.
            StudyError: the study did not start in time.
            KonsilError: why the node refused.
        """

        def attempt() -> tuple[Terms, News]:
            line, terms = self._knock(time.monotonic() + terms_s)
            entry = prepare(terms)
            self._join = Join(header=entry.header)
            initial = None if entry.initial is None else entry.initial.fd
            return terms, self._joined(line, initial, entry.until_s)

        terms, news = self._persist(attempt, math.inf)
        self._hold(news)
        return terms, news

    def hand_over(self, update: Update, memory: SealedMemory, until_s: float) -> News:
        """Give the node this round's update and wait for the merge of this round or a later one.

        Raises:
            NodeUnreachable: the node was away for longer than ``away_s``.
            StudyError: no merge in time.
            KonsilError: why the node refused.
        """

        def attempt() -> News:
            line = self._connected(until_s)
            news = self._take_news()
            if news is None:
                line.send(update, memory.fd)
            while news is None or (news.round < update.round and not news.ended):
                if news is not None:
                    news.close()
                news = news_of(*self._answer(line, Merged, until_s))
            return news

        news = self._persist(attempt, until_s)
        self._hold(news)
        return news

    def tell(self, word: Scored | Finished, until_s: float) -> None:
        """Say something that the node puts on the ledger, and wait until it is there.

        Raises:
            NodeUnreachable, StudyError, KonsilError: as ``hand_over``.
        """
        self.ask(word, Noted, until_s)

    def ask(
        self, word: Scored | Finished | Wanted, answer: type[Answer], until_s: float
    ) -> tuple[Answer, SealedMemory | None]:
        """Say a word and wait for its answer, and what comes with it: the caller's to close.

        Raises:
            NodeUnreachable, StudyError, KonsilError: as ``hand_over``.
        """

        def attempt() -> tuple[Answer, SealedMemory | None]:
            line = self._connected(until_s)
            line.send(word)
            return self._answer(line, answer, until_s)

        return self._persist(attempt, until_s)

    def progress(self, word: Progress) -> News | None:
        """Say how far training is, and take news that came unasked. Training goes on while the node is away.

        Raises:
            KonsilError: why the node cannot go on with this study; never that it is away.
        """

        def talk(line: Line) -> None:
            line.send(word, timeout_s=BRIEF_S)
            self._read_arrived(line)

        if not self._unless_away(talk):
            return None
        news = self._take_news()
        if news is not None:
            self._hold(news)
        return news

    def offer(self, word: Scored, answer_s: float) -> bool:
        """Say something that the node puts on the ledger, unless the node is away.

        Args:
            word: what to say.
            answer_s: how long a node that is there may take to answer.

        Returns:
            Whether the node has it; if not, it is to be offered another time.

        Raises:
            KonsilError: as ``progress``.
        """

        def talk(line: Line) -> None:
            line.send(word, timeout_s=BRIEF_S)
            self._answer(line, Noted, time.monotonic() + answer_s)

        return self._unless_away(talk)

    def say_goodbye(self, timeout_s: float) -> None:
        """Leave without finishing. Never raises: who leaves has reasons of his own."""
        try:
            if self._line is not None:
                self._line.send(Goodbye(), timeout_s=timeout_s)
                self._answer(self._line, Noted, time.monotonic() + timeout_s)
        except KonsilError:
            return
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        self._drop()
        news = self._take_news()
        if news is not None:
            news.close()

    # --- inside ----------------------------------------------------------------------------------

    def _persist(self, attempt: Callable[[], Result], until_s: float) -> Result:
        """Try again, with pauses, while the node is away; ``away_s`` counts anew from every sign of life.

        For a session that comes again, a node that is busy is one that has not yet seen the old
        connection end.
        """
        came_before = self._join.round >= 0
        self._lost_at_s = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return attempt()
            except (NodeUnreachable, NodeBusy) as error:
                self._drop()
                if isinstance(error, NodeBusy) and not came_before:
                    raise
                now_s = time.monotonic()
                if self._lost_at_s is None:
                    self._lost_at_s = now_s
                if now_s + pause_s > min(self._lost_at_s + self.away_s, until_s):
                    raise
                self._on_waiting(Waiting(max(0, self._join.round + 1), NODE_AWAY, (), 0))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except FrameError:
                self._drop()  # where the next word would begin is not known any more
                raise

    def _unless_away(self, talk: Callable[[Line], None]) -> bool:
        """Talk to the node if it is there. One that is away is looked for briefly, and seldom.

        Returns:
            Whether all was said.
        """
        now_s = time.monotonic()
        if self._line is None and now_s < self._look_at_s:
            return False
        self._look_at_s = now_s + LOOK_AGAIN_S
        while True:
            had_line = self._line is not None
            try:
                talk(self._connected(time.monotonic() + BRIEF_S))
            except (NodeUnreachable, NodeBusy, _NoAnswer):
                self._drop()
                if not had_line:
                    return False  # it is away; a line that only broke is made anew at once
            else:
                return True

    def _connected(self, until_s: float) -> Line:
        """The line; after a loss a new one, on which the session has joined again."""
        if self._line is not None:
            return self._line
        line, _ = self._knock(until_s)
        news = self._joined(line, None, until_s)
        if news.ended or news.digest != self._join.digest:
            self._keep(news)
        else:
            news.close()
        return line

    def _knock(self, until_s: float) -> tuple[Line, Terms]:
        self._drop()
        left_s = min(until_s - time.monotonic(), CONNECT_S)
        self._line = Line.connect(self.path, left_s)
        self._line.send(Knock(version=WALL_VERSION, study=self._study, pid=os.getpid()))
        terms, _ = self._answer(self._line, Terms, until_s)
        return self._line, terms

    def _joined(self, line: Line, initial: int | None, until_s: float) -> News:
        line.send(self._join, initial)
        joined, memory = self._answer(line, Joined, until_s)
        news = News(
            joined.round - 1,
            joined.digest,
            joined.record,
            joined.settings,
            joined.ended,
            memory,
            joined.interval,
            joined.before,
            joined.failed,
        )
        if news.round < self._join.round or (memory is None and news.digest != self._join.digest):
            news.close()
            raise NodeError(
                f"The node is at round {news.round} ({news.digest[:16]}), this session at round"
                f" {self._join.round} ({self._join.digest[:16]}), and no model came along.",
                safe="The model is untouched.",
                do="The node's ledger runs behind or was replaced: `konsil ledger verify`.",
            )
        return news

    def _answer(self, line: Line, kind: type[Answer], until_s: float) -> tuple[Answer, SealedMemory | None]:
        """The next word of this kind and what came with it. What comes before it is kept, or shown."""
        while True:
            try:
                word, fd = line.receive(max(until_s - time.monotonic(), 0.0))
            except TimeoutError as error:
                raise _NoAnswer(
                    f"Study {self._study!r}: the node had no answer in time.",
                    safe="What it was told it keeps; the model is untouched.",
                    do="See who is missing with `konsil study status`, then call again.",
                ) from error
            if not isinstance(word, Terms | Failed):  # a node that gets no further is not back
                self._lost_at_s = None
            memory = None if fd is None else open_sealed(fd)
            if isinstance(word, kind):
                return word, memory
            self._unasked(word, memory)

    def _read_arrived(self, line: Line) -> None:
        """Take what the node said unasked, without waiting."""
        while True:
            try:
                word, fd = line.receive(0.0)
            except TimeoutError:
                return
            self._unasked(word, None if fd is None else open_sealed(fd))

    def _unasked(self, word: FromNode, memory: SealedMemory | None) -> None:
        if isinstance(word, Merged):
            self._keep(news_of(word, memory))
            return
        if memory is not None:
            memory.close()
        if isinstance(word, Failed):
            raise raised(word)
        if isinstance(word, Waiting):
            self._on_waiting(word)
        elif not isinstance(word, Noted | Final):  # which come late, after somebody gave up
            raise NodeError(
                f"The node said {type(word).__name__} where it must not.",
                safe="The model is untouched.",
                do="Training process and node must run the same version of Konsil.",
            )

    def _keep(self, news: News) -> None:
        """Keep the newest news. A merge that this session holds already is none."""
        older = self._take_news()
        if older is not None:
            older.close()
        if news.round <= self._join.round and not news.ended:
            news.close()
        else:
            self._news = news

    def _take_news(self) -> News | None:
        news, self._news = self._news, None
        return news

    def _hold(self, news: News) -> None:
        """Remember what the session holds from now on, for the next time it joins."""
        self._join = Join(header=self._join.header, round=news.round, digest=news.digest)

    def _drop(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()


class _NoAnswer(StudyError):
    """The node is there, but had no answer before the deadline."""
