"""A universe: members, their nodes, disks and training processes, and what goes wrong, from one seed."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from konsil.core.digest import bytes_digest
from konsil.core.rules import Call, Genesis, MemberRecord, State, initial_state
from konsil.simulation import laws
from konsil.simulation.calls import sentence
from konsil.simulation.faults import Crash, Late, Loss, Skew, TrainingDies
from konsil.simulation.laws import Law, Violation
from konsil.simulation.nodes import faults
from konsil.simulation.nodes.disk import Disk
from konsil.simulation.nodes.invariants import Invariants
from konsil.simulation.nodes.ledger import SharedContract
from konsil.simulation.nodes.liars import disguise
from konsil.simulation.nodes.loop import EverybodyWaits, SimulatedLoop, Spinning
from konsil.simulation.nodes.network import Conditions, Network
from konsil.simulation.nodes.node import SimulatedNode
from konsil.simulation.nodes.observer import Observer
from konsil.simulation.nodes.plan import BOUND_S, STUDY, Plan
from konsil.simulation.nodes.scope import simulated
from konsil.simulation.nodes.script import Around, TrainingProcess
from konsil.simulation.nodes.signing import FastKey, verify
from konsil.simulation.nodes.system import watched

BEGIN_S = 1_000_000
"""Unix time at which every world begins."""

CHUNK_BYTES = 192
"""The model of a world has three chunks of so many bytes; real ones have 4 MiB."""

SCALE = 4 * 1024 * 1024 / CHUNK_BYTES

LEAVING_S = 60.0
"""For tasks of a universe that was broken off to come to their ends, in its own time."""

LEAVING_TIMES = 20
"""Who ends may begin something, which is ended too: a node that has not been told to stop goes on."""

LOOK_S = 0.25
"""How often the world looks whether all is done."""

REST_S = 2.0
"""What is still under way when a study ends: last models on their way to disks and training processes."""

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of a name of its own is made there


class Outcome(laws.Outcome[Plan], frozen=True):
    """``trace``: what happened, in sentences; ``broken``: all that did not hold."""

    trace: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def text(self) -> str:
        """The trace as one text: the same to the byte for the same seed."""
        return "\n".join(self.trace) + "\n"


class World:
    """One universe while it runs."""

    def __init__(self, plan: Plan, place: Path, tell: Callable[[str], None] | None = None) -> None:
        """Lay it out; nothing runs yet. ``tell``: gets its story, sentence by sentence."""
        self.plan = plan
        self.seed = f"universe {plan.seed}"
        self.loop = SimulatedLoop(self.seed)
        self.trace: list[str] = []
        self.problems: list[Violation] = []
        self.calls = 0
        self._tell = tell
        self.unheard: OSError | None = None
        self._is_quiet = False
        self._place = place
        self.skews = {fault.member: fault.ahead_s for fault in plan.faults if isinstance(fault, Skew)}
        self.keys = {name: FastKey(name) for name in plan.members}
        self.verify = verify
        self.genesis = Genesis(
            "lungs", "local", plan.members[0], BEGIN_S, tuple(self._record(name) for name in plan.members)
        )
        self.disks = {name: Disk(place, name, partial(self._clock_ns, name)) for name in plan.members}
        self.invariants = Invariants(self.disks, plan.liars, self.broken)
        conditions = Conditions(plan.delay_s, plan.repeated, plan.bytes_per_s, plan.slow)
        self.network = Network(self.loop, self.seed, conditions, SCALE)
        self.heights: dict[str, int] = {}
        self.nodes: dict[str, SimulatedNode] = {}
        self.scripts: dict[str, TrainingProcess] = {}
        self.down: Counter[str] = Counter()
        self._lives: Counter[str] = Counter()
        self._gone: list[SimulatedNode] = []
        ends = (fault for fault in plan.faults if isinstance(fault, Crash | TrainingDies))
        self._gone_for_good = {fault.member for fault in ends if not fault.back_s}
        self.contract: SharedContract | None = None
        self._observer = Observer(self.genesis, self.took, self.broken)
        if not plan.engine:
            self.contract = SharedContract(
                self.loop,
                self.seed,
                initial_state(self.genesis),
                lambda: BEGIN_S + self.loop.time(),
                self.took,
                delay_s=plan.ledger_delay_s,
                lost=plan.lost_calls,
            )

    def _record(self, name: str) -> MemberRecord:
        addresses = () if name in self.plan.dial_only else (f"{name}:1",)
        bundle, card = bytes_digest(name.encode(), "bundle"), bytes_digest(name.encode(), "card")
        return MemberRecord(
            name, f"spiffe://{name}.example/node", self.keys[name].public, bundle, card, addresses
        )

    # --- what is heard ---------------------------------------------------------------------------

    def say(self, what: str) -> None:
        """A line of the trace."""
        if self._is_quiet:
            return
        sentence = f"{self.loop.time():9.3f} s  {what.replace(f'{self._place}/', '')}"
        self.trace.append(sentence)
        if self._tell is None:
            return
        try:
            self._tell(sentence)
        except OSError as error:  # nobody listens any more: no node is to take it for an error of its disk
            self._tell, self.unheard = None, error
            self.loop.stop()

    def broken(self, law: Law, what: str) -> None:
        """Something does not hold."""
        if self._is_quiet:
            return
        self.say(f"Broken law '{law}': {what}")
        self.problems.append(Violation(law, what))

    def logged(self, level: str, what: str) -> None:
        """A node logged something that people must see: honest nodes among honest ones make no errors."""
        if level in {"error", "critical", "exception"} and not what.startswith("a wrong merge"):
            self.broken("honest nodes make no errors", f"a node logged: {what}")

    def took(self, caller: str, call: Call, before: State, after: State) -> None:
        """The ledger took a call."""
        self.calls += 1
        self.say(f"{after.height:3}. {caller} {sentence(call)}")
        self.invariants.took(caller, call, before, after)
        study = after.studies.get(STUDY)
        if study is not None and len(study.history) > len(
            before.studies[STUDY].history if STUDY in before.studies else ()
        ):
            record = study.history[-1]
            self.say(
                f"round {record.number} is accepted with {record.digest[:8]} by {', '.join(record.accepts)}"
            )

    @property
    def state(self) -> State:
        """The ledger's state, as far as anybody has seen it."""
        return self.contract.state if self.contract is not None else self._observer.state

    def clock(self, name: str) -> float:
        """Unix time on a member's machine."""
        return BEGIN_S + self.loop.time() + self.skews.get(name, 0.0)

    def _clock_ns(self, name: str) -> int:
        return int(self.clock(name) * 1e9)

    # --- members ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a member's node, unless it is up or something keeps it down."""
        if name not in self.nodes and self.down[name] <= 0:
            self._lives[name] += 1
            self.nodes[name] = SimulatedNode(self, name, self._lives[name])

    def dress(self, node: SimulatedNode) -> None:
        """A node's parts are together: a liar's are changed now, and the operator's ledger is looked at."""
        disguise(node, self.plan)
        self._observer.look(node, self.loop)

    def crash(self, name: str, loss: Loss) -> None:
        """End a member's node without warning."""
        node = self.nodes.pop(name, None)
        if node is None:
            return
        lost = self.disks[name].crash(loss, node.process.lots)
        node.crash()
        self._gone.append(node)
        self.say(f"{name}'s node is gone ({loss})" + (f"; its disk has {'; '.join(lost)}" if lost else ""))
        self.invariants.survives(name)

    def _script(self, name: str, number: int) -> TrainingProcess:
        outer = self.plan.settings.outer is not None

        def loaded(round_number: int, digest: str, data: bytes) -> None:
            self.say(f"{name}'s training has the model of round {round_number}, {digest[:8]}")
            self.invariants.handed(name, round_number, digest, data, outer=outer)

        around = Around(
            door=lambda: self.nodes[name].visit() if name in self.nodes else None,
            made=self.invariants.made,
            loaded=loaded,
            noted=partial(self.invariants.noted, name),
            say=self.say,
        )
        return TrainingProcess(self.loop, self.seed, name, number, self.plan.trains_s[name], around)

    # --- the whole -------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the beginning to the end of everything."""
        late = {fault.member: fault.at_s for fault in self.plan.faults if isinstance(fault, Late)}
        for number, name in enumerate(self.plan.members, start=1):
            self.scripts[name] = self._script(name, number)
            self.loop.call_at(late.get(name, 0.0), self.start, name)
            self.scripts[name].start()
        faults.arrange(self)
        await self._until_done()
        await self._end()

    async def _until_done(self) -> None:
        bound_s = self.plan.healed_s + BOUND_S
        if not await self._until(lambda: self._is_done, bound_s):
            how = self._how_it_is()
            self.broken(
                "rounds end",
                f"{BOUND_S:g} s after the last fault the study has not come to its end: {how}",
            )
            return
        await asyncio.sleep(REST_S)
        if not self.problems and not await self._until(lambda: not self._unsaid, bound_s):
            self.broken("a noted score reaches the ledger", f"not there: {', '.join(self._unsaid)}")
        if not self.problems and self.state.studies[STUDY].phase != "finished":
            self.broken("rounds end", f"the study failed: {self.state.studies[STUDY].ended}")

    async def _until(self, reached: Callable[[], bool], bound_s: float) -> bool:
        """Wait until it is so, or something is wrong; whether that came before the bound."""
        while not self.problems and not reached():
            if self.loop.time() > bound_s:
                return False
            await asyncio.sleep(LOOK_S)  # the world looks on: nobody tells it
        return True

    @property
    def _unsaid(self) -> list[str]:
        return self.invariants.unsaid(self.state.studies[STUDY], frozenset(self._gone_for_good))

    @property
    def _is_done(self) -> bool:
        study = self.state.studies.get(STUDY)
        is_over = study is not None and study.phase in {"finished", "failed"}
        return is_over and self.loop.time() > self.plan.healed_s and not self._who_waits()

    def _who_waits(self) -> list[str]:
        """Honest members that take part and whose training does not know yet that the study is over."""
        study = self.state.studies.get(STUDY)
        expected = (
            set(study.participants) - self.plan.liars - self._gone_for_good if study is not None else set()
        )
        return [name for name in sorted(expected) if not (self.scripts[name].over or self.scripts[name].left)]

    def _how_it_is(self) -> str:
        study = self.state.studies.get(STUDY)
        if study is None:
            return "there is none"
        current = study.open
        where = (
            f"round {current.number}, attempt {current.attempt}, {current.phase}" if current else study.phase
        )
        problems = {
            name: runner.problem for name, node in self.nodes.items() for runner in node.runners.values()
        }
        said = "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)
        return f"{where}; waiting: {', '.join(self._who_waits())}; {said}"

    async def _end(self) -> None:
        for script in self.scripts.values():
            await script.die()
        for name, node in self.nodes.items():
            for what in getattr(node, "transport", _NONE).broken:
                self.broken("honest nodes make no errors", f"{name} answered with an error: {what}")
        await asyncio.gather(*(node.close() for node in self.nodes.values()))
        await asyncio.gather(*(node.closed() for node in self._gone))
        await self._observer.close()
        left = [
            f"{task.get_name()} {task.get_coro()}"
            for task in asyncio.all_tasks()
            if task is not asyncio.current_task()
        ]
        if left:
            self.broken("nothing is left behind", f"tasks were left behind: {', '.join(sorted(left))}")
        for problem in self.loop.problems:
            self.broken("honest nodes make no errors", problem)

    def leave(self) -> None:
        """End whatever is still under way in a universe that was broken off; nothing is told of it."""
        self._is_quiet = True
        for _ in range(LEAVING_TIMES):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            with suppress(EverybodyWaits, Spinning):
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVING_S))
        self._is_quiet = False


class _NONE:
    broken: tuple[str, ...] = ()


def run_universe(plan: Plan, tell: Callable[[str], None] | None = None) -> Outcome:
    """Run a universe to its end. ``tell``: gets its story, sentence by sentence."""
    gc.disable()  # what is alive must not depend on when the collector comes by
    before = _descriptors()
    try:
        with ExitStack() as stack:
            place = Path(
                stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None))
            )
            said: list[tuple[str, str]] = []
            stack.enter_context(
                simulated(f"universe {plan.seed}", CHUNK_BYTES, lambda *line: said.append(line))
            )
            world = World(plan, place, tell)
            stack.callback(world.loop.close)
            stack.enter_context(watched(world.disks.values()))
            stack.callback(world.leave)
            _to_its_end(world)
            for level, what in said:
                world.logged(level, what)
            study = world.state.studies.get(STUDY)
            took_s = world.loop.time()
    finally:
        gc.enable()
    left = [what for what in _descriptors() if what not in before] if not world.problems else []
    if left:
        world.broken("nothing is left behind", f"descriptors were left open: {', '.join(left)}")
    law, what = (world.problems[0].law, world.problems[0].what) if world.problems else ("", "")
    rounds = len(study.history) if study is not None else 0
    broken = tuple(map(str, world.problems))
    return Outcome(plan, law, what, rounds, world.calls, round(took_s, 3), tuple(world.trace), broken)


def _to_its_end(world: World) -> None:
    """Let a universe happen.

    Raises:
        OSError: its story could not be told any more.
    """
    try:
        world.loop.run_until_complete(world.run())
    except (EverybodyWaits, Spinning) as error:
        world.broken("rounds end", str(error))
    except RuntimeError as stopped:
        raise world.unheard or stopped from None


def _descriptors() -> list[str]:
    found = []
    for place in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one through which this looks
            found.append(f"{place.name} to {place.readlink()}")
    return found
