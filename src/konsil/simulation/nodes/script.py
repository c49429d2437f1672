"""A member's training process: joins, trains, hands over, loads, scores; dies and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from konsil.core.digest import Manifest, chunk_count, chunk_range, leaf
from konsil.core.parameters import Schema, pack, views
from konsil.core.rules import Contribution
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
    Wanted,
)
from konsil.errors import KonsilError
from konsil.simulation.nodes.door import ScriptEnd
from konsil.simulation.nodes.loop import Process, SimulatedLoop
from konsil.simulation.nodes.plan import STUDY
from konsil.wall.memory import open_sealed, seal_pieces

AGAIN_S = 0.4
"""Between two attempts to reach the node."""

ANSWER_S = 15.0
"""A node that is there answers small words sooner."""

ARRAYS: dict[str, NDArray[Any]] = {"weights": np.zeros(120, np.float32), "bias": np.zeros(3)}
SCHEMA = Schema.of(ARRAYS)

Word = TypeVar("Word", bound=FromNode)


class NotNow(Exception):
    """The node cannot serve this training process now; it comes again."""


def digest_of(data: bytes) -> str:
    """The digest of an update or of initial parameters: one group."""
    spans = (chunk_range(index, len(data)) for index in range(chunk_count(len(data))))
    return Manifest(SCHEMA.header, (tuple(leaf(data[start:stop]) for start, stop in spans),)).digest


def initial() -> bytes:
    """The proposer's initial parameters."""
    return _packed(ARRAYS)


def _packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    data = bytearray(SCHEMA.data_bytes)
    pack(SCHEMA, arrays, memoryview(data))
    return bytes(data)


@dataclass(frozen=True)
class Around:
    """What a training process has around it.

    ``door``: a line to the node, or None while that is away. ``made``: told of every update and its digest.
    ``loaded``: told of every model that was handed over: round, digest, data. ``noted``: told of every round
    whose scores the node has acknowledged. ``say``: told what happens.
    """

    door: Callable[[], ScriptEnd | None]
    made: Callable[[str, bytes], None]
    loaded: Callable[[int, str, bytes], None]
    noted: Callable[[int], None]
    say: Callable[[str], None]


class TrainingProcess:
    """One member's script, over all its lives.

    Args:
        loop: the world's.
        seed: for its luck.
        name: the member's.
        number: tells its updates from those of others.
        trains_s: how long it trains a round, about.
        around: what it has around it.
    """

    def __init__(
        self, loop: SimulatedLoop, seed: str, name: str, number: int, trains_s: float, around: Around
    ) -> None:
        """Not started."""
        self.name = name
        self.over = False
        self.left = False
        self._loop = loop
        self._seed = seed
        self._number = number
        self._trains_s = trains_s
        self._around = around
        self._life = 0
        self._task: asyncio.Task[None] | None = None
        self._wish: Contribution | None = None
        self._goodbye = self._comes_back = False
        self._forget()

    def _forget(self) -> None:
        """What a process knows that has just been started."""
        self._round, self._digest = -1, ""
        self._ended = False
        self._model = b""
        self._update: tuple[Update, bytes] | None = None

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run; a process that runs or that has finished is left alone. One about to leave comes back then."""
        if self._task is not None or self.over:
            self._comes_back = self._goodbye
            return
        self._life += 1
        self.left = self._goodbye = False
        self._forget()
        process = Process(self.name, f"{self._seed}, script {self._life}")
        self._lots = process.lots
        self._task = self._loop.spawn(process, self._run(), f"script of {self.name}")

    async def die(self) -> None:
        """End as a process does that is killed."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def say_goodbye(self) -> None:
        """Leave at the next word, to come back."""
        self._goodbye = True

    def finish(self, contribution: Contribution) -> None:
        """Finish after the next round."""
        self._wish = contribution

    async def _run(self) -> None:
        while not self.over and not self.left:
            line = self._around.door()
            if line is not None:
                try:
                    await self._talk(line)
                except (ConnectionError, TimeoutError, NotNow):
                    pass
                finally:
                    line.close()
            if not self.over and not self.left:
                await asyncio.sleep(AGAIN_S)
        self._task = None
        if self._comes_back:
            self._comes_back = False
            self.start()

    # --- what is said ----------------------------------------------------------------------------

    async def _talk(self, line: ScriptEnd) -> None:
        await line.send(Knock(WALL_VERSION, STUDY, self._number))
        terms = await self._answer(line, Terms, ANSWER_S)
        join = Join(SCHEMA.header, self._round, self._digest)
        if terms.wanted:
            with seal_pieces([SCHEMA.header, initial()]) as memory:
                await line.send(join, memory.fd)
        else:
            await line.send(join)
        self._take(await self._answer(line, Joined))
        while not self.over and not self.left:
            if not self._ended and (self._goodbye or (self._wish is not None and self._round > 0)):
                await self._leave(line)
                return
            if not self._ended and (self._has_update or await self._train(line)):
                await self._hand_over(line)
            if self._ended:
                await self._get_final(line)

    async def _get_final(self, line: ScriptEnd) -> None:
        """Ask for the study's model until nothing can change which one it is."""
        final = Final(0, "", settled=False)
        while not final.settled:
            await line.send(Wanted(ANSWER_S))
            final = await self._answer(line, Final, ANSWER_S)
        self.over = True

    @property
    def _has_update(self) -> bool:
        update = self._update[0] if self._update is not None else None
        return update is not None and (update.round, update.base) == (self._round + 1, self._digest)

    async def _train(self, line: ScriptEnd) -> bool:
        """Train a round; whether there is an update, and no news that makes it worthless."""
        number = self._round + 1
        for step in (1, 2):
            takes_s = self._trains_s / 2 * self._lots.uniform(0.7, 1.3)
            try:
                async with asyncio.timeout(takes_s):
                    delivery = await line.receive()
            except TimeoutError:
                await line.send(Progress(number, step / 2))
                continue
            if self._heard(delivery.word, delivery.fd):
                return False
        arrays = views(SCHEMA, self._model)
        change = self._number + number / 8 + self._life / 64
        grown = np.arange(120, dtype=np.float32) / 128
        data = _packed(
            {"weights": arrays["weights"] + grown + np.float32(change), "bias": arrays["bias"] + change}
        )
        self._around.made(digest_of(data), data)
        self._update = Update(number, self._digest, 10 * self._number), data
        return True

    async def _hand_over(self, line: ScriptEnd) -> None:
        if self._update is None:
            return
        update, data = self._update
        with seal_pieces([SCHEMA.header, data]) as memory:
            await line.send(update, memory.fd)
        while self._round < update.round and not self._ended:
            self._take(await self._answer(line, Merged))
        if self._round:
            # Worse from round to round: where the best merge is wanted, it is the oldest one.
            await line.send(Scored(self._round, 10, loss=self._round + self._number / 8))
            await self._answer(line, Noted, ANSWER_S)
            self._around.noted(self._round)

    async def _leave(self, line: ScriptEnd) -> None:
        if self._wish is None:
            await line.send(Goodbye())
        else:
            await line.send(Finished(self._wish))
        await self._answer(line, Noted, 2 * ANSWER_S)
        self._around.say(
            f"{self.name}'s training says " + ("goodbye" if self._wish is None else f"finished: {self._wish}")
        )
        self.left = True
        self.over = self._wish is not None

    async def _answer(self, line: ScriptEnd, kind: type[Word], within_s: float | None = None) -> Word:
        """The next word of a kind; on the way, what comes unasked."""
        async with asyncio.timeout(within_s):
            while True:
                word, fd = await line.receive()
                if isinstance(word, kind):
                    if fd is not None:
                        self._read(word, fd)
                    return word
                self._heard(word, fd)

    def _heard(self, word: FromNode, fd: int | None) -> bool:
        """Take what came unasked; whether it is news."""
        if isinstance(word, Merged):
            if fd is not None:
                self._read(word, fd)
            self._take(word)
            return True
        if isinstance(word, Failed):
            if "has ended without a merge" in word.what or "was struck" in word.what:
                self.over = True
                return True
            raise NotNow(word.what)
        return False

    def _read(self, word: FromNode, fd: int) -> None:
        with open_sealed(fd) as memory:
            header = len(SCHEMA.header)
            if memory.data[:header] != SCHEMA.header:
                raise KonsilError(f"{self.name} was handed a model with another header.")
            self._model = bytes(memory.data[header:])
        if isinstance(word, Merged):
            self._around.loaded(word.round, word.digest, self._model)
        elif isinstance(word, Joined):
            self._around.loaded(word.round - 1, word.digest, self._model)
        elif isinstance(word, Final):
            self._around.loaded(word.round, word.digest, self._model)

    def _take(self, word: Joined | Merged) -> None:
        self._round = word.round - 1 if isinstance(word, Joined) else word.round
        self._digest = word.digest
        self._ended = bool(word.ended)
