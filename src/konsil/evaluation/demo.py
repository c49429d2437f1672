"""The demo: hospitals on this machine train one model together, and the result is compared.

Nothing is simulated. Every hospital is a node (`konsil node start`: own directory, keys, mutual TLS, ledger)
and a training process that reads its own rows only. What is not as in real life: the demo has all rows at
hand and deals them out, which also lets it train the "central" model that no swarm could.
"""

from __future__ import annotations

import importlib.metadata
import platform
import selectors
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

import konsil
from konsil import errors
from konsil.core.rules import Call, State, Study, StudySettings
from konsil.core.wall import AskState, Failed, ToldState
from konsil.errors import KonsilError, StudyError
from konsil.evaluation import datasets, models
from konsil.evaluation.checks import Check, Verification, check
from konsil.evaluation.loopback import LoopbackSwarm
from konsil.evaluation.processes import (
    CENTRAL,
    DEALER,
    Alone,
    Broken,
    Deal,
    Dealt,
    Ended,
    Entered,
    Merged,
    News,
    Processes,
    Test,
    Tested,
    Train,
    TrainCentrally,
)
from konsil.evaluation.progress import Plan, Progress
from konsil.evaluation.result import HospitalResult, LedgerEvent, MemberTraffic, StudyResult
from konsil.ledger.verify import read_calls
from konsil.node.config import read_config
from konsil.node.genesis import read_genesis
from konsil.wall.frames import raised
from konsil.wall.line import Line
from konsil.wall.told_state import read_state

STALL_S = 120.0
"""No merge, and no process a step further, for so long: something hangs."""

LOOK_S = 1.0
"""Heartbeats and bytes are not on the ledger, so the nodes are asked for them this often."""

SETTLE_S = 10.0
"""How long the last scores may take to reach the ledger, and the ledger to reach every member."""


@dataclass(frozen=True)
class Outcome:
    """What the demo brought. ``problems``: what was not as it must be, in sentences; empty if all was."""

    result: StudyResult
    verified: dict[str, Verification]
    problems: tuple[str, ...]


def settings_of(plan: Plan, hospitals: Sequence[str]) -> StudySettings:
    """What the demo's hospitals agree on: all of them in every round."""
    dataset = datasets.describe(plan.dataset)
    return StudySettings(
        name=dataset.name,
        description=dataset.question,
        min_members=len(hospitals),
        quorum=len(hospitals),
        rounds=plan.rounds,
        every_epochs=models.EPOCHS_PER_ROUND,
        audit_fraction=1.0,
        silence_s=60,  # a busy machine is no reason to go on without one; a process that died is seen at once
        patience_s=300,
        give_up_s=120,
    )


class Demo:
    """One run. Use ``with``: no node is left, whatever happens."""

    def __init__(
        self,
        progress: Progress,
        processes: Processes,
        watch: Callable[[Progress], None],
        describe: Callable[[Call], str],
    ) -> None:
        """Make every member's directory.

        Args:
            progress: of this run; kept up to date.
            processes: the training processes, started already: importing takes them a while.
            watch: told whenever something changed.
            describe: a call on the ledger as a sentence.
        """
        self.progress = progress
        self.plan = plan = progress.plan
        self.processes = processes
        self.root = processes.log.parent
        self._watch = watch
        self._describe = describe
        with ExitStack() as stack:
            for folder in (self._members, self._rows, self._models):
                folder.mkdir(mode=0o700)
            if plan.keep is not None:
                stack.callback(self._keep)
            names = progress.hospitals
            self._selector = stack.enter_context(selectors.DefaultSelector())
            for name, channel in self.processes.channels.items():
                self._selector.register(channel.socket, selectors.EVENT_READ, name)
            data = str(plan.data.absolute()) if plan.data is not None else ""
            self.processes.tell(DEALER, Deal(plan.dataset, data, plan.seed, str(self._rows)))
            self.swarm = stack.enter_context(LoopbackSwarm(self._members, names, swarm="demo"))
            self._stack = stack.pop_all()

    _members = property(lambda self: self.root / "members")
    _rows = property(lambda self: self.root / "rows")
    _models = property(lambda self: self.root / "models")

    def run(self) -> Outcome:
        """Everything, from the first key to the comparison.

        Raises:
            KonsilError: it could not go on.
        """
        progress, names = self.progress, self.progress.hospitals
        settings = settings_of(self.plan, names)
        self.swarm.start(wait=False)
        self._step("start", "nodes")
        self.swarm.wait_ready(set(names))
        self._step("nodes", "agree")
        self.swarm.propose(settings)
        self._until(lambda: bool(progress.patients))
        self._step("agree", "train")
        self._start_training(settings)
        with Line.connect(self.swarm.control(names[0]).directory / "control.sock", STALL_S) as line:
            self._selector.register(line, selectors.EVENT_READ, line)
            line.send(AskState())
            self._until(lambda: len(progress.ended) == len(names))
            self._until(self._all_scored, SETTLE_S)
            self._selector.unregister(line)
        self._step("train", "compare")
        return self._compare(settings)

    # --- the steps -----------------------------------------------------------------------------

    def _start_training(self, settings: StudySettings) -> None:
        for place, name in enumerate(self.progress.hospitals):
            order = Train(
                study=settings.name,
                socket=str(self.swarm.directory(name) / "session.sock"),
                rows=str(self._rows / f"{name}.npz"),
                seed=self.plan.seed,
                place=place,
                epochs=self.plan.rounds * models.EPOCHS_PER_ROUND,
                model=str(self._models / f"{name}.npz"),
            )
            self.processes.tell(name, order)

    def _compare(self, settings: StudySettings) -> Outcome:
        progress, names = self.progress, self.progress.hospitals
        rows = {name: str(self._rows / f"{name}.npz") for name in names}
        epochs = self.plan.rounds * models.EPOCHS_PER_ROUND
        self.processes.tell(CENTRAL, TrainCentrally(rows, self.plan.seed, epochs, str(self._models)))
        state = self._settled()
        with Check(self.swarm) as checking:
            self._until(lambda: progress.alone == {*names, CENTRAL})
            local = {name: str(self._models / f"{name}.npz") for name in names}
            central, together = (str(self._models / f"{n}.npz") for n in ("central", "central_together"))
            for name in names:
                self.processes.tell(name, Test(local, central, together))
            self._until(lambda: len(progress.results) == len(names))
            self._step("compare", "verify")
            verified = checking.results()
        self._look()
        self._step("verify", "report")
        study = state.studies[settings.name]
        held = {name: ended.digest for name, ended in sorted(progress.ended.items())}
        problems = check(study, names, settings.rounds, held, verified)
        return Outcome(self._result(study, held, verified), verified, problems)

    def _settled(self) -> State:
        """The ledger's state once every member has all of it."""
        names = self.progress.hospitals
        state = self.swarm.control(names[0]).state()
        for name in names:
            self.swarm.wait(name, lambda theirs: theirs.height >= state.height, SETTLE_S)
        return state

    def _result(self, study: Study, held: dict[str, str], verified: dict[str, Verification]) -> StudyResult:
        progress, dataset = self.progress, self.progress.dataset
        first = progress.hospitals[0]
        all_held_s = [max(by.values()) for _, by in sorted(progress.merged_s.items())]
        starts_s = [max(progress.entered_s.values()), *all_held_s]
        seen = verified.get(first)
        return StudyResult(
            title=dataset.title,
            study=dataset.name,
            question=dataset.question,
            positive=dataset.positive,
            negative=dataset.negative,
            source=dataset.source,
            note=dataset.note,
            model=f"a multilayer perceptron with {models.HIDDEN_UNITS} hidden units (scikit-learn)",
            finished_s=int(time.time()),
            seed=self.plan.seed,
            settings=study.settings,
            hospitals=tuple(result for _, result in sorted(progress.results.items())),
            rounds=study.history,
            round_s=tuple(round(b - a, 3) for a, b in zip(starts_s, all_held_s, strict=False)),
            first_merge_s=round(all_held_s[0] - self.plan.began_s, 2) if all_held_s else 0.0,
            total_s=round(all_held_s[-1] - self.plan.began_s, 2) if all_held_s else 0.0,
            traffic=tuple(
                MemberTraffic(member=name, bytes_out=told.bytes_out, bytes_in=told.bytes_in)
                for name, told in sorted(progress.told.items())
            ),
            events=self._events(first),
            ledger=progress.told[first].ledger,
            swarm=progress.told[first].swarm,
            genesis=progress.told[first].genesis,
            state=seen.state if seen is not None else "",
            models=held,
            final_digest=study.accepted,
            verify=f"konsil ledger verify --dir {self.plan.keep / first if self.plan.keep else 'DIRECTORY'}",
            versions={
                "Konsil": konsil.__version__,
                "Python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "msgspec")},
            },
            settings_notes={
                "learning rate": f"{models.LEARNING_RATE:g}",
                "L2 penalty": f"{models.L2:g}",
                "patients a step": f"{models.BATCH} at most",
            },
        )

    def _events(self, member: str) -> tuple[LedgerEvent, ...]:
        config = read_config(self.swarm.directory(member))
        return tuple(
            LedgerEvent(
                height=entry.height,
                time_s=entry.time_s,
                member=signed.caller,
                sentence=self._describe(signed.call),
            )
            for entry, signed in read_calls(read_genesis(config.genesis_file), config.ledger_file)
        )

    # --- listening -----------------------------------------------------------------------------

    def _step(self, done: str, then: str) -> None:
        self.progress.finish(done, then)
        self._watch(self.progress)

    def _until(self, reached: Callable[[], bool], stall_s: float = STALL_S) -> None:
        """Listen to the ledger and the processes until then.

        Raises:
            StudyError: nothing got further for too long.
            KonsilError: a process or a node cannot go on.
        """
        now_s = time.monotonic()
        stalled_s, look_s = now_s + stall_s, now_s
        before = self.progress.steps_taken
        while not reached():
            ready = self._selector.select(max(0.0, min(look_s, stalled_s) - now_s))
            for key, _ in ready:
                if isinstance(key.data, Line):
                    self._hear_ledger(key.data)
                else:
                    self._hear(str(key.data))
            now_s = time.monotonic()
            if self.progress.steps_taken != before:
                before = self.progress.steps_taken
                stalled_s = now_s + stall_s
            elif now_s >= stalled_s:
                raise self._stalled(stall_s)
            if now_s >= look_s:
                self._look()
                look_s = now_s + LOOK_S
            self._watch(self.progress)

    def _hear_ledger(self, line: Line) -> None:
        """Take a new state, and ask for the next."""
        answer, fd = line.receive(STALL_S)
        if isinstance(answer, Failed):
            raise raised(answer)
        if isinstance(answer, ToldState):
            state = read_state(answer, fd)
            self.progress.study = state.studies.get(self.progress.dataset.name)
            self.progress.height = state.height
        line.send(AskState(self.progress.height, STALL_S / 2))

    def _hear(self, name: str) -> None:
        channel = self.processes.channels[name]
        for word in channel.read():
            self._note(name, word)
        if channel.ended:
            self._selector.unregister(channel.socket)
            raise StudyError(
                f"The process of {name} ended too early:\n{self.processes.log_tail()}",
                safe="Nothing outside the demo was touched.",
            )

    def _note(self, name: str, word: News) -> None:
        progress = self.progress
        match word:
            case Dealt():
                progress.patients = word.patients
            case Entered():
                progress.entered_s[name] = word.at_s
            case Merged():
                progress.merged_s.setdefault(word.round, {})[name] = word.at_s
            case Ended():
                progress.ended[name] = word
            case Alone():
                progress.alone.add(name)
            case Tested():
                progress.results[name] = msgspec.json.decode(word.result, type=HospitalResult)
            case Broken():
                raise _as_error(name, word)

    def _look(self) -> None:
        """Ask the nodes what they are doing."""
        self.swarm.require_running()
        if "nodes" in self.progress.done:
            for name in self.progress.hospitals:
                self.progress.told[name] = self.swarm.control(name).node()

    def _all_scored(self) -> bool:
        study = self.progress.study
        return (
            study is not None
            and bool(study.history)
            and set(study.history[-1].scores) >= set(study.history[-1].roster)
        )

    def _stalled(self, stall_s: float) -> StudyError:
        problems = sorted({problem for told in self.progress.told.values() for problem in told.problems})
        return StudyError(
            f"In the step '{self.progress.step}' nothing got further for {stall_s:g} s."
            f" The nodes say: {' '.join(problems) or 'no problem'}.",
            safe="Nothing outside the demo was touched.",
            do="Run it again with --keep DIR and look at DIR/*/node.log.",
        )

    # --- the end -------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Leave the members' directories where the user wants them. Rows are not part of them."""
        if self.plan.keep is not None:
            shutil.copytree(
                self._members, self.plan.keep, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _as_error(name: str, word: Broken) -> KonsilError:
    """A process's error as it would have been raised here."""
    kind = getattr(errors, word.kind, None) if word.kind in errors.__all__ else None
    if kind is None or kind.__init__ is not KonsilError.__init__:
        kind = StudyError
    made = kind(word.what if name == DEALER else f"{name}: {word.what}", safe=word.safe, do=word.do)
    if not isinstance(made, KonsilError):
        raise TypeError(kind)
    return made
