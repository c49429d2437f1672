"""Whole studies with the runners of real nodes, over memory instead of sockets, on real folders."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

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
from konsil.errors import LedgerUnreachable, NodeError, StudyError
from konsil.node.journal import Journal
from konsil.node.models import Models
from konsil.node.peers import Peers
from konsil.node.pull import Puller
from konsil.node.service import Service
from konsil.node.site import Site
from konsil.node.store import model_of
from konsil.node.study import StudyRunner, Trainee
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

    def __init__(self, root, settings=SETTINGS, names=NAMES):
        self.root, self.names = root, names
        self.network = MemoryNetwork()
        self.now_s = BEGIN_S
        self.state = initial_state(Genesis("lungs", "local", "a", BEGIN_S, tuple(map(record, names))))
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
        self.state = apply(self.state, name, sequence, call, self.now_s)
        self.move()
        return self.state.height

    async def start(self, *names, **options):
        for name in names or self.names:
            self.nodes[name] = Node(self, name, **options)
        for name in names or self.names:
            await self.nodes[name].open()

    async def until(self, reached, *, at_s=0.0, limit_s=8.0):
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
            async with asyncio.timeout(timeout_s):
                await moved.wait()
        return self.state.height


class Node:
    """One member: its folder, runner, service, and a training process that adds a number a round."""

    def __init__(self, world, name, *, number=1.0, elements=1_100_000):
        self.world, self.name, self.number = world, name, number
        self.folder = world.root / name
        (self.folder / "merges").mkdir(parents=True, exist_ok=True)
        self.service = Service(name, lambda: {"aml": self.runner}, lambda _digest: None)
        self.transport = MemoryTransport(name, self.service.answer, world.network)
        self.service.peers = peers = Peers(self.transport)
        self.service.ledger = ledger = Ledger(world, name)
        self.journal = Journal(self.folder / "journal.db")
        models = Models(self.folder / "merges")
        site = Site(name, ledger, self.journal, models, Puller(name, peers), clock=lambda: world.now_s)
        self.runner = StudyRunner("aml", site)
        self.arrays = zeros(elements)
        self.schema = Schema.of(self.arrays)
        self.seen = []
        self.problems = []
        self.stop_after = 10**6
        self.contribution = "inactive"

    async def open(self):
        known = [PeerAddress(n, f"spiffe://{n}.example/node", (f"{n}:1",), b"") for n in self.world.names]
        self.transport.set_peers(known)
        await self.runner.open()
        self.looking = asyncio.create_task(self._look())

    async def _look(self):
        while True:
            moved = self.world.moved
            self.runner.look()
            await moved.wait()

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
        await self.runner.close()
        await self.runner.site.models.close()
        await self.transport.close()
        self.journal.close()

    def model(self):
        return self.runner.store.model(self.world.study.accepted)


@pytest.fixture
async def make(tmp_path):
    made = []

    async def world(*, start=True, **options):
        world = World(tmp_path, **options)
        made.append(world)
        if start:
            await world.start()
        return world

    yield world
    for each in made:
        await each.close()


async def soon(reached, limit_s=5.0):
    """Wait for what no event tells: a node's own knowledge, or a file."""
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - as the sentence above says
            await asyncio.sleep(0.005)


def finished(world):
    return world.study.phase == "finished"


def rounds(number):
    return lambda world: len(world.study.history) >= number


async def test_a_study_runs_to_its_end_and_all_hold_the_same_model(make):
    world = await make()
    for number, node in enumerate(world.nodes.values(), start=1):
        node.number = float(number)
        node.train()
    await world.until(finished)
    await soon(lambda: all(node.seen[-1:] == [3] for node in world.nodes.values()))
    for node in world.nodes.values():
        weights = views(node.schema, node.model().data())["weights"]
        assert np.all(weights == 6.0)
        assert node.seen == [0, 1, 2, 3]
        assert node.runner.problem == ""
        assert node.runner.status().stage == "finished"
    assert world.study.history[0].scores.keys() == set(NAMES)
    assert world.study.history[0].attempt == 1


@pytest.mark.parametrize("contribution", ["snapshot", "active", "inactive"])
async def test_a_member_whose_training_has_finished_contributes_what_it_chose(make, contribution):
    world = await make()
    world.nodes["c"].stop_after, world.nodes["c"].contribution = 1, contribution
    for node in world.nodes.values():
        node.train()
    await world.until(finished)
    last = world.study.history[-1]
    expected = {
        "snapshot": world.study.history[0].roster["c"].digest,
        "active": last.base,
        "inactive": None,
    }[contribution]
    assert (last.roster["c"].digest if "c" in last.roster else None) == expected


async def test_a_node_that_restarts_takes_the_accepted_model_from_its_disk(make):
    world = await make()
    for name in "ab":
        world.nodes[name].train()
    third = world.nodes["c"].train()
    third.stop_after = 2
    await world.until(rounds(2))
    await soon((third.folder / "merges" / "aml" / f"{world.study.accepted}.manifest").exists)
    await third.close()
    for name in "ab":
        world.network.cut(name, "c")
    await world.start("c")
    assert world.nodes["c"].model().digest == world.study.accepted


async def test_a_late_member_fetches_the_accepted_model_from_its_peers_and_joins(make):
    world = await make(
        start=False, settings=StudySettings(**{**_fields(SETTINGS), "min_members": 2, "rounds": 6})
    )
    await world.start("a", "b")
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    await world.start("c")
    world.nodes["c"].train()
    await world.until(finished)
    assert "c" in world.study.history[-1].roster
    assert world.nodes["c"].seen[0] >= 2


def _fields(settings):
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


async def test_while_the_ledger_is_away_the_problem_is_shown_and_then_gone(make):
    world = await make()
    world.away.add("b")
    for node in world.nodes.values():
        node.train()
    await world.until(lambda w: w.study.participants["a"].present)
    await soon(lambda: "The ledger is away. Wait." in world.nodes["b"].runner.problem)
    world.away.clear()
    await world.until(finished, at_s=1.0)
    assert world.nodes["b"].runner.problem == ""


async def test_a_member_that_has_not_agreed_is_told_how(make):
    world = await make(names=("a", "b", "c", "d"), start=False)
    await world.start("a", "d")
    world.nodes["d"].runner.require_participant()
    stranger = StudyRunner("aml", world.nodes["a"].runner.site)
    stranger.site.me, kept = "zoe", stranger.site.me
    with pytest.raises(StudyError, match=r"zoe has not agreed.*`konsil study agree aml`"):
        stranger.require_participant()
    stranger.site.me = kept


async def test_an_update_is_not_served_before_the_roster_is_fixed(make):
    world = await make()
    for name in "ab":
        world.nodes[name].train()
    await world.until(lambda w: w.study.participants["b"].present)
    update = world.nodes["a"].runner.store
    world.nodes["c"].train()
    await world.until(finished)
    assert not world.nodes["a"].runner.may_read("zoe", world.study.accepted)
    assert world.nodes["a"].runner.may_read("b", world.study.accepted)
    assert update.model(world.study.accepted) is not None


def full(models):
    """Let a node's disk be full; what to call when there is room again."""
    save = models.save

    async def refuse(*_):
        raise NodeError("No space.", do="Free disk space; the node tries again by itself.")

    models.save = refuse
    return lambda: setattr(models, "save", save)


async def test_a_full_disk_keeps_a_member_from_committing_and_shows_why(make):
    world = await make()
    third = world.nodes["c"]
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    make_room = full(third.runner.site.models)
    await world.until(lambda w: w.study.open is not None and set(w.study.open.commits) == {"a", "b"})
    await soon(lambda: "Free disk space" in third.runner.problem)
    await soon(lambda: not third.runner.state.scores)
    assert "Free disk space" in third.runner.problem  # what succeeds beside it does not hide it
    make_room()
    await world.until(finished, at_s=1.0)
    assert third.runner.problem == ""


async def test_the_last_model_is_written_when_there_is_room_again(make, monkeypatch):
    monkeypatch.setattr("konsil.node.study.SAVE_AGAIN_S", 0.01)
    world = await make()
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(2))
    second = world.nodes["b"]
    await world.until(lambda w: w.study.open is None or "b" in w.study.open.commits)
    make_room = full(second.runner.site.models)
    await world.until(lambda w: w.study.open is not None and set(w.study.open.accepts) == {"a", "c"})
    await world.until(finished, at_s=60.0)  # what is not on its disk, b does not accept: a majority does
    await soon(lambda: "Free disk space" in second.runner.problem)
    make_room()
    await soon((second.folder / "merges" / "aml" / f"{world.study.accepted}.manifest").exists)
    await soon(lambda: second.runner.problem == "")


async def test_nothing_is_left_running_or_open_when_a_runner_closes(make):
    before = asyncio.all_tasks()
    world = await make()
    for node in world.nodes.values():
        node.train()
    await world.until(rounds(1))
    for node in list(world.nodes.values()):
        await node.close()
        assert not node.runner._tasks
        assert node.runner.merging.assembly is None
    await soon(lambda: asyncio.all_tasks() == before)
