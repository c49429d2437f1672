"""Swarms whose ledger is kept by each of the engines in turn, and what must be whole after every test."""

from __future__ import annotations

import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from konsil.core.rules import Announce, Call, Entry, SignedCall, State, StudySettings, Vote, state_digest
from konsil.evaluation.loopback import Kept, LoopbackSwarm
from konsil.identity.ledger_key import verify as check
from konsil.ledger.verify import Verified, read_calls, verify
from konsil.node.config import read_config
from konsil.node.genesis import read_genesis
from konsil.node.tables import LedgerTable

MEMBERS = ("berlin", "bonn", "koeln", "lyon")
ENDED_S = 15.0
"""How long a process may take to end that lost its node."""


class KeptBy:
    """One swarm under one engine. An engine more is a class more below."""

    engine = "local"
    witnesses: tuple[str, ...] = ()
    """Members that keep the ledger and train nothing, where the engine has use for them."""

    clock_behind_s = 100
    """How far a member's clock may be behind without harm; ahead it may be 100 s everywhere."""

    swarm_of_test: LoopbackSwarm

    def __init__(self, site: Any, engine_binary: Callable[[str], Path]) -> None:
        self.site = site
        self.table = self.settings(engine_binary)

    def settings(self, engine_binary: Callable[[str], Path]) -> LedgerTable:  # noqa: ARG002 - for those that have a program
        """What stands under [ledger] in every member's node.toml."""
        return LedgerTable()

    # --- making --------------------------------------------------------------------------------

    def swarm(self, *members: str, witnesses: tuple[str, ...] | None = None, **options: Any) -> LoopbackSwarm:
        """A swarm of these members, four by default, and the engine's witnesses."""
        more = self.witnesses if witnesses is None else witnesses
        kept = Kept(self.engine, self.table, more)  # type: ignore[arg-type]  # a word
        names = members or MEMBERS
        self.swarm_of_test = self.site.swarm(*names, *more, kept=kept, **options)
        return self.swarm_of_test

    @property
    def trainers(self) -> tuple[str, ...]:
        swarm = self.swarm_of_test
        return tuple(name for name in swarm.members if name not in swarm.kept.witnesses)

    def study(self, by: str = "", **changes: object) -> StudySettings:
        """Propose a study at one of its members and have all others agree."""
        known: dict[str, object] = {
            "name": "aml",
            "min_members": len(self.trainers),
            "quorum": 2,
            "rounds": 4,
            "every_steps": 1,
            "weighting": "equal",
            "silence_s": 60,
            "merge_s": 10,
            "audit_fraction": 0.5,
        }
        settings = StudySettings(**(known | changes))
        self.swarm_of_test.propose(settings, by)
        return settings

    def train(self, *names: str, study: str = "aml", **options: object) -> list[Any]:
        """Start the training script of these members, of all by default; each adds its place, from 1 on."""
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [
            self.site.train(self.swarm_of_test, study, name, self.trainers.index(name) + 1, *words)
            for name in names or self.trainers
        ]

    def start_script(self, name: str, script: str, *words: str) -> None:
        """Start a script of the tests in place of a member's node."""
        swarm = self.swarm_of_test
        places = Path(__file__).parent, Path(__file__).parents[1]
        path = next(place / script for place in places if (place / script).exists())
        with (swarm.directory(name) / "node.log").open("ab") as log:
            swarm._processes[name] = subprocess.Popen(
                [sys.executable, str(path), str(swarm.directory(name)), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"NOTIFY_SOCKET": str(swarm.root / "ready.sock")} | swarm.environment,
            )
        swarm.wait_ready({name})

    # --- calls ---------------------------------------------------------------------------------

    def announce(self, name: str, number: int) -> None:
        """Put a call on the ledger that no other call of the test is like, and that changes nothing else."""
        self.swarm_of_test.control(name).call(self.announced(name, number))

    def announced(self, name: str, number: int) -> Announce:
        """The member's true address, if it listens, and one that says the number."""
        listen = read_config(self.swarm_of_test.directory(name)).node.listen
        return Announce((*filter(None, (listen,)), f"number-{number}.example:7400"))

    def announce_many(self, numbers: range, at_once: int, *names: str) -> None:
        """Announce all these numbers at each of these members, so many of each member's at once."""
        with ExitStack() as stack:
            pools = [stack.enter_context(ThreadPoolExecutor(at_once)) for _ in names]
            each = [
                pool.map(partial(self.announce, name), numbers)
                for pool, name in zip(pools, names, strict=True)
            ]
            for results in each:
                list(results)

    def calls(self, name: str) -> list[tuple[Entry, SignedCall]]:
        """What stands in a member's own copy of the history."""
        config = read_config(self.swarm_of_test.directory(name))
        return list(read_calls(read_genesis(config.genesis_file), config.ledger_file))

    def times_called(self, name: str, of: str) -> Counter[Call]:
        """How often each announcement of a member stands on the ledger, by a member's copy of it."""
        return Counter(
            signed.call.addresses
            for _, signed in self.calls(name)
            if signed.caller == of and isinstance(signed.call, Announce)
        )

    def say_yes(self, number: int, *voters: str) -> None:
        """Vote for a proposal: as many of these members as it takes, since a witness has a vote too."""
        swarm, height = self.swarm_of_test, 0
        for voter in voters:
            # It must have heard of the vote before: that one may have decided.
            state = swarm.wait(
                voter, lambda state, seen=height: len(state.proposals) >= number and state.height >= seen
            )
            if state.proposals[number - 1].outcome == "open":
                swarm.control(voter).call(Vote(number, yes=True))
                height = swarm.control(voter).state().height

    def until_problem(self, name: str) -> str:
        """Wait until a node tells of a problem with its ledger, and no line to a peer."""
        control = self.swarm_of_test.control(name)
        until_s = time.monotonic() + ENDED_S
        while time.monotonic() < until_s:
            problems = [each for each in control.node().problems if "No connection" not in each]
            if problems:
                return problems[0]
            time.sleep(0.1)  # what a node says of itself wakes nobody
        raise AssertionError(self.swarm_of_test.log_tail(name))

    # --- what must be whole --------------------------------------------------------------------

    def alike(self, *names: str) -> State:
        """See that these members, all by default, come to one history, and that the rules replay it.

        Returns:
            The state.
        """
        swarm = self.swarm_of_test
        names = names or swarm.members
        height = max(swarm.control(name).state().height for name in names)
        states = [swarm.wait(name, lambda state: state.height >= height) for name in names]
        if len({state.height for state in states}) > 1:  # a call came in between
            return self.alike(*names)
        assert len({state_digest(state) for state in states}) == 1
        verified = [self.verified(name, height) for name in names]
        if len({each.height for each in verified}) > 1:  # one came in between here
            return self.alike(*names)
        assert len({each.head for each in verified}) == 1
        if verified[0].height == height:
            assert verified[0].digest == state_digest(states[0])
        return states[0]

    def verified(self, name: str, height: int) -> Verified:
        """A member's own copy of the history, recomputed from the genesis by the rules alone."""
        config = read_config(self.swarm_of_test.directory(name))
        found = verify(read_genesis(config.genesis_file), config.ledger_file, check)
        assert found.height >= height
        return found

    # --- processes -----------------------------------------------------------------------------

    def engine_pid(self, name: str, but: int = 0) -> int:
        """The engine's process at a member, where it has one of its own; it may be just starting."""
        home = str(self.swarm_of_test.directory(name) / "engine")
        until_s = time.monotonic() + ENDED_S
        while time.monotonic() < until_s:
            found = [pid for pid in processes_with(home) if pid != but]
            if found:
                return found[0]
            time.sleep(0.02)  # another's child tells nobody but its parent that it is there
        raise AssertionError(f"no engine runs at {name}: {self.swarm_of_test.log_tail(name)}")

    def kill_engine(self, name: str) -> int:
        """End the engine's process at once, and nothing else of the member."""
        pid = self.engine_pid(name)
        os.kill(pid, signal.SIGKILL)
        self.wait_ended(pid)
        return pid

    def kill(self, name: str) -> None:
        """End a node at once, as a power cut does to it, and see that its engine ends by itself."""
        home = str(self.swarm_of_test.directory(name) / "engine")
        self.swarm_of_test.kill(name)
        for pid in processes_with(home):
            self.wait_ended(pid)

    @staticmethod
    def wait_ended(pid: int, timeout_s: float = ENDED_S) -> None:
        """Wait until a process has ended, whoever's child it is."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert poll.poll(timeout_s * 1000), f"process {pid} still runs after {timeout_s:g} s"
        finally:
            os.close(handle)


class KeptByCometbft(KeptBy):
    engine = "cometbft"
    witnesses = ("witness",)
    clock_behind_s = 50  # CometBFT takes no block whose time is more than a minute ahead of its clock

    def settings(self, engine_binary: Callable[[str], Path]) -> LedgerTable:
        return LedgerTable(cometbft=str(engine_binary("cometbft")))


ENGINES = {each.engine: each for each in (KeptBy, KeptByCometbft)}


def processes_with(word: str) -> list[int]:
    """The processes that have this word in their command lines."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has just ended
            if word in words:
                found.append(int(process.name))
    return found


@pytest.fixture(params=sorted(ENGINES))
def kept(request: pytest.FixtureRequest, site: Any, engine_binary: Callable[[str], Path]) -> Iterator[KeptBy]:
    """A swarm under each engine in turn."""
    yield from _kept(ENGINES[request.param](site, engine_binary), site)


@pytest.fixture
def cometbft(site: Any, engine_binary: Callable[[str], Path]) -> Iterator[KeptBy]:
    """A swarm under CometBFT."""
    yield from _kept(KeptByCometbft(site, engine_binary), site)


def _kept(kept: KeptBy, site: Any) -> Iterator[KeptBy]:
    yield kept
    if not hasattr(kept, "swarm_of_test"):
        return
    for trainer in site.trainers:
        trainer.close()
    swarm = kept.swarm_of_test
    swarm.close()
    for name in swarm.members:
        for word in (str(swarm.directory(name)), str(swarm.directory(name) / "engine")):
            for pid in processes_with(word):
                kept.wait_ended(pid)
        log = (swarm.directory(name) / "node.log").read_text(errors="replace")
        assert "Traceback" not in log, log[max(0, log.index("Traceback") - 2000) :][:4000]


@pytest.fixture
def double_vote() -> Callable[..., dict[str, Any]]:
    """Makes proof that a validator signed two votes."""
    return runpy.run_path(str(Path(__file__).with_name("double_votes.py")))["double_vote"]
