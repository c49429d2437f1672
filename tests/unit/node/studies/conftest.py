"""Whole studies in one process: the runners of real nodes over memory, with a contract that all share."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from msgspec.structs import replace

from konsil.core.parameters import Schema, pack, views
from konsil.core.round import Attached, Detached, FinishWanted, Offered, ScoreReady, UpdateReady
from konsil.core.rules import (
    Agree,
    Genesis,
    MemberRecord,
    ProposeStudy,
    Score,
    StudySettings,
    apply,
    initial_state,
    settings_digest,
)
from konsil.errors import LedgerUnreachable
from konsil.node.journal import Journal
from konsil.node.models import Models
from konsil.node.peers import Peers
from konsil.node.rules import Rules
from konsil.node.service import Service
from konsil.node.site import Site
from konsil.node.store import model_of
from konsil.node.study import StudyRunner
from konsil.node.trainee import Trainee
from konsil.transport.base import PeerAddress
from konsil.transport.memory import MemoryNetwork, MemoryTransport
from konsil.wall.memory import seal_pieces

NAMES = ("a", "b", "c")
BEGIN_S = 1_000_000
SETTINGS = StudySettings(
    name="aml",
    min_members=3,
    quorum=2,
    rounds=3,
    every_steps=1,
    weighting="equal",
    silence_s=60,
    audit_fraction=1.0,
)


def zeros(elements=1_100_000):
    return {"weights": np.zeros(elements, np.float32), "bias": np.zeros(3)}


def record(name):
    return MemberRecord(name, f"spiffe://{name}.example/node", name * 64, "b" * 64, "c" * 64, (f"{name}:1",))


class World:
    """The contract in this process, and every member's node."""

    def __init__(self, root, settings=SETTINGS, names=NAMES, outsiders=()):
        self.root, self.names, self.members = root, names, (*names, *outsiders)
        self.network = MemoryNetwork()
        self.now_s = BEGIN_S
        self.state = initial_state(Genesis("lungs", "local", "a", BEGIN_S, tuple(map(record, self.members))))
        self.moved = asyncio.Event()
        self.away: set[str] = set()
        self.put("a", ProposeStudy(settings))
        for name in names[1:]:
            self.put(name, Agree("aml", settings_digest(settings)))
        self.nodes = {}

    @property
    def study(self):
        return self.state.studies["aml"]

    def put(self, name, call):
        sequence = self.state.members[name].sequence + 1
        self.state = apply(self.state, name, sequence, call, int(self.now_s))
        self.move()
        return self.state.height

    async def start(self, *names, **options):
        for name in names or self.names:
            self.nodes[name] = Node(self, name, **options)
        for name in names or self.names:
            await self.nodes[name].open()

    async def until(self, reached, *, at_s=0.0, limit_s=20.0):
        """Wait until the ledger says so; the members' clocks go on by ``at_s`` first, and they look."""
        self.now_s += at_s
        self.move()
        async with asyncio.timeout(limit_s):
            while not reached(self):
                await self.moved.wait()

    def move(self):
        self.moved.set()
        self.moved = asyncio.Event()

    async def close(self):
        for node in list(self.nodes.values()):
            await node.close()


class Ledger:
    """One member's view of the contract."""

    def __init__(self, world, name):
        self.world, self.name = world, name

    @property
    def state(self):
        return self.world.state

    async def submit(self, call):
        await asyncio.sleep(0)
        if self.name in self.world.away:
            raise LedgerUnreachable("The ledger is away.", do="Wait.")
        return self.world.put(self.name, call)

    async def changed(self, after, timeout_s):
        moved = self.world.moved
        if self.state.height <= after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await moved.wait()
        return self.state.height


class Node:
    """One member: its folder, runner, service, and a training process that adds a number a round."""

    def __init__(self, world, name, *, number=1.0, elements=1_100_000):
        self.world, self.name, self.number = world, name, number
        self.folder = world.root / name
        for folder in ("merges", "journal"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self.service = Service(name, lambda: self.runners, lambda _digest: None)
        self.transport = MemoryTransport(name, self.service.answer, world.network)
        self.service.peers = peers = Peers(self.transport)
        self.service.ledger = ledger = Ledger(world, name)
        self.journal = Journal(self.folder / "journal")
        models = Models(self.folder / "merges")
        self.site = Site(
            name,
            ledger,
            self.journal,
            models,
            peers,
            clock=lambda: world.now_s,
            rules=Rules(self.folder / "rules"),
        )
        self.runner = StudyRunner("aml", self.site)
        self.runners = {"aml": self.runner}
        self.arrays = zeros(elements)
        self.schema = Schema.of(self.arrays)
        self.seen = []
        self.problems = []
        self.stop_after = 10**6
        self.contribution = "inactive"

    async def open(self):
        known = [PeerAddress(n, f"spiffe://{n}.example/node", (f"{n}:1",), b"") for n in self.world.members]
        self.transport.set_peers(known)
        await self.runner.open()
        self.looking = asyncio.create_task(self._look())

    async def _look(self):
        while True:
            moved = self.world.moved
            await self._follow()
            await moved.wait()

    async def _follow(self):
        for study in self.world.state.studies:
            if study not in self.runners:
                self.runners[study] = StudyRunner(study, self.site)
                await self.runners[study].open()
            self.runners[study].look()

    def train(self):
        self.runner.trainee = Trainee(self.schema, self._told)
        if self.name == self.world.study.proposer and not self.world.study.initial:
            model = self._sealed()
            self.runner.serve(model)
            self.runner.post(Offered(self.schema.digest, model.digest, self.schema.data_bytes))
        self.runner.post(Attached(""))
        return self

    def _sealed(self):
        data = bytearray(self.schema.data_bytes)
        pack(self.schema, self.arrays, memoryview(data))
        return model_of(seal_pieces([self.schema.header, bytes(data)]), self.schema)

    async def _told(self, effect, study, model):
        self.seen.append(effect.round)
        self.handed = model
        if model is None or study.phase in {"finished", "failed"}:
            return
        self.arrays = {name: array + self.number for name, array in views(self.schema, model.data()).items()}
        asyncio.get_running_loop().call_soon(self._trained, effect)

    def _trained(self, effect):
        if effect.round >= self.stop_after:
            self.runner.post(FinishWanted(self.contribution))
            self.runner.trainee = None
            self.runner.post(Detached(goodbye=True))
            return
        if effect.round:
            self.runner.post(ScoreReady(Score("aml", effect.round, 5, loss=1.0 / effect.round)))
        model = self._sealed()
        self.runner.serve(model)
        self.runner.post(UpdateReady(effect.round + 1, effect.digest, model.digest, 5))

    async def close(self):
        self.world.nodes.pop(self.name, None)
        self.looking.cancel()
        await asyncio.gather(self.looking, return_exceptions=True)
        for runner in self.runners.values():
            await runner.close()
        await self.runner.site.models.close()
        await self.transport.close()
        self.journal.close()

    def model(self):
        return self.runner.store.model(self.world.study.accepted)


@pytest.fixture
async def worlds(tmp_path):
    """A function that makes a world, with its nodes started unless told otherwise."""
    made: list[World] = []

    async def world(*, start=True, names=NAMES, outsiders=(), **settings):
        made.append(World(tmp_path, replace(SETTINGS, **settings), names, outsiders))
        if start:
            await made[-1].start()
        return made[-1]

    yield world
    for each in made:
        await each.close()
