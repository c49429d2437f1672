"""The members' turns: join, then load, score and train until the study ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any, TypeVar, cast

from konsil.core.round import Attached, Detached, FinishWanted, Offered, ScoreReady, UpdateReady
from konsil.core.rules import RoundRecord, Score
from konsil.errors import ConfigError, StudyError
from konsil.learners import Scores
from konsil.simulation.member import Problem, Taken, Turn, Work, described
from konsil.simulation.node import Node
from konsil.simulation.turns import TakeAll
from konsil.simulation.update import Layout
from konsil.simulation.world import World

T = TypeVar("T")

_MINUTE_S = 60.0


class Run:
    """The members' turns, from their joining to the study's end."""

    def __init__(
        self,
        world: World,
        take_all: TakeAll,
        round_s: float,
        on_round: Callable[[RoundRecord], None] | None,
    ) -> None:
        self.world = world
        self.take_all = take_all
        self.round_s = round_s
        self.on_round = on_round
        self.told = 0

    def run(self) -> None:
        """Until nobody has anything to do any more.

        Raises:
            StudyError: there was never a merge.
        """
        self._join()
        while True:
            self.world.settle()
            due = [node for node in self.world.nodes if node.due]
            if due:
                self._take_turns(due)
            elif self.world.over:
                break
            else:
                self._wait_in_vain()
        if not self.world.study.history:
            raise self._never(self.world.study.ended)

    # --- the beginning and the end ---------------------------------------------------------------

    def _join(self) -> None:
        world, proposer = self.world, self.world.nodes[0]
        joined: list[Node] = []
        for node in world.nodes:
            try:
                schema = node.prepare(world.study.settings)
                if node is proposer:
                    layout = Layout(schema)
                    initial = node.make_update(layout)
                    world.begin(layout, initial)
                elif joined:
                    world.layout.schema.require_same(schema)
            except Exception as error:  # noqa: BLE001 - the model is the member's: so is what it raises
                world.note(Problem(node.name, 0, *described(error)))
            else:
                joined.append(node)
        if proposer not in joined:
            raise self._never(f"'{proposer.name}', who proposed it, has no initial parameters to give.")
        for node in joined:
            world.post(node, Attached())
        world.post(proposer, Offered(layout.schema.digest, initial.digest, layout.schema.data_bytes))

    def _wait_in_vain(self) -> None:
        """Nobody trains any more, so nothing changes until the round is given up: go there at once."""
        world, study = self.world, self.world.study
        if study.open is None:
            there = sum(participant.present for participant in study.participants.values())
            raise self._never(f"{there} of the {study.settings.min_members} that it needs were ready.")
        before = world.ledger.state.height
        world.jump(study.open.opened_s + study.settings.patience_s + study.settings.give_up_s)
        if world.ledger.state.height == before:
            raise self._never(f"Round {study.open.number} waits for nobody.")

    def _never(self, why: str) -> StudyError:
        problems = tuple(self.world.problems)
        return StudyError(
            f"Study '{self.world.study.settings.name}' has no result: {why}",
            safe="".join(f"\n  {each.member}: {each.what}" for each in problems),
            problems=problems,
        )

    def _leave(self, node: Node, what: str, trace: str = "") -> None:
        self.world.note(Problem(node.name, node.handed + 1, what, trace))
        self.world.post(node, Detached(goodbye=True))

    def _all_that_can(self, nodes: Sequence[Node], work: Callable[[Node], T]) -> dict[Node, T]:
        """What a work in threads gives at each node; a node where it fails leaves."""

        def tried(node: Node) -> tuple[T | None, Exception | None]:
            try:
                return work(node), None
            except Exception as error:  # noqa: BLE001 - as above
                return None, error

        done: dict[Node, T] = {}
        for node, (result, error) in zip(nodes, self.world.pool.map(tried, nodes), strict=True):
            if error is None:
                done[node] = cast("T", result)
            else:
                self._leave(node, *described(error))
        return done

    # --- a round ---------------------------------------------------------------------------------

    def _take_turns(self, due: Sequence[Node]) -> None:
        world, arrays = self.world, self.world.accepted()
        for node in due:
            node.due = False
        fits = self._all_that_can(due, lambda node: self._load(node, arrays))
        turns = {node: self._turn(node) for node, fitting in fits.items() if not fitting}
        # One example a member while preprocessing is fitted: sums and counts are pooled.
        examples = {node: 1 for node, fitting in fits.items() if fitting}
        for node, taken in zip(turns, self.take_all(list(turns.values())), strict=True):
            self._end_turn(node, turns[node], taken, examples)
        world.settle()
        self._tell()
        self._finish([node for node in turns if node.finishes and node.state.attached and not world.over])
        if examples:
            minutes = self._work(0).minutes
            world.pass_time(world.ledger.now_s + (minutes * _MINUTE_S or self.round_s))
        updates = self._all_that_can(list(examples), lambda node: node.make_update(world.layout))
        for node, update in updates.items():
            base = node.state.delivered
            world.post(node, UpdateReady(node.handed + 1, base, update.digest, examples[node]))

    def _load(self, node: Node, arrays: Mapping[str, Any]) -> bool:
        """Load the merge; whether the next update is a step of fitting the preprocessing."""
        node.load(arrays)
        return node.observe(self.world.study)

    def _work(self, number: int) -> Work:
        settings, current = self.world.study.settings, self.world.study.open
        interval = current.interval if current is not None else 1
        return Work(
            number,
            settings.every_steps * interval,
            settings.every_epochs * interval,
            settings.every_minutes * interval,
            interval,
        )

    def _turn(self, node: Node) -> Turn:
        ends = self.world.over or node.finishes
        return Turn(node.member, None if ends else self._work(node.handed + 1), node.may_score)

    def _end_turn(self, node: Node, turn: Turn, taken: Taken, examples: dict[Node, int]) -> None:
        """Take over what came of a turn: the scores, then on how many examples was trained."""
        if taken.member is not node.member:
            self._came_back(node, taken)
        try:
            if taken.scores is not None:
                self._score(node, taken.scores)
            if taken.what:
                self._leave(node, taken.what, taken.trace)
            elif turn.work is not None:
                examples[node] = _count(taken.examples)
                node.trained = True
        except ConfigError as error:
            self._leave(node, error.what)

    def _score(self, node: Node, scores: Scores) -> None:
        """Put a member's scores on the ledger. Where none is defined there is nothing to say."""
        node.trained, node.scored = False, node.handed
        if scores.named:
            study = self.world.study.settings.name
            score = Score(study, node.handed, scores.examples, scores.loss, dict(scores.metrics))
            self.world.post(node, ScoreReady(score))

    def _came_back(self, node: Node, taken: Taken) -> None:
        """The member was in another process, and what came back is a copy: its learner is made anew."""
        settings = self.world.study.settings
        if settings.prox or settings.scaffold:
            raise ConfigError(
                "A study with `prox` or `scaffold` reaches into the optimiser, of which other processes have "
                "a copy.",
                safe="Nothing was merged.",
                do="Simulate it with threads (the default of `jobs`) or with jobs=1.",
            )
        node.member = taken.member
        node.prepare(settings)

    def _tell(self) -> None:
        for record in self.world.study.history[self.told :]:
            if self.on_round is not None:
                self.on_round(record)
        self.told = len(self.world.study.history)

    def _finish(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.world.post(node, FinishWanted(node.member.after))
        self.world.settle()
        for node in nodes:
            self.world.post(node, Detached(goodbye=True))


def _count(examples: Any) -> int:
    """What ``train`` returned."""
    try:
        count = index(examples)
    except TypeError:
        count = 0
    if count < 1:
        raise ConfigError(f"`train` must return on how many examples it trained; it returned {examples!r}.")
    return count
