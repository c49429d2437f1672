"""A member's node in a world: every part is the real one, but for the lines and the ledger's other end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from konsil.core.messages import GetChunk, GetManifest, decode_request
from konsil.core.rules import Agree, Call, ProposeStudy, State
from konsil.errors import KonsilError, LedgerError, NodeBusy, Refused
from konsil.files import make_private_folder
from konsil.ledger.base import Ledger
from konsil.ledger.local import FollowerLedger, LocalLedger
from konsil.node.engines import OperatorLine
from konsil.node.journal import Journal
from konsil.node.models import Models
from konsil.node.peers import Peers
from konsil.node.rules import Rules
from konsil.node.service import Service
from konsil.node.site import Site
from konsil.node.study import StudyRunner
from konsil.node.training import Training
from konsil.simulation.nodes.door import NodeEnd, ScriptEnd, line
from konsil.simulation.nodes.ledger import SharedLedger
from konsil.simulation.nodes.loop import Process
from konsil.simulation.nodes.plan import STUDY
from konsil.simulation.nodes.transport import SimulatedTransport
from konsil.transport.base import PeerAddress, Reply
from konsil.wall.frames import failure

if TYPE_CHECKING:
    from konsil.simulation.nodes.world import World

START_AGAIN_S = 1.0
"""After this a node that could not start is started again, as a system does that looks after it."""

WATCH_S = 60.0
"""As in ``konsil.node.daemon``."""


class Overheard:
    """A node's ledger, which the world hears. Implements ``konsil.ledger.base.Ledger``."""

    def __init__(self, ledger: Ledger, says: Callable[[Call], None], refused: Callable[[Call], None]) -> None:
        """``says`` is told of each call before it is sent, ``refused`` of each that the contract refused."""
        self.ledger = ledger
        self._says = says
        self._refused = refused

    @property
    def state(self) -> State:
        """As it is here."""
        return self.ledger.state

    @property
    def description(self) -> str:
        """As it is."""
        return self.ledger.description

    async def submit(self, call: Call) -> int:
        """Tell the world, then the ledger."""
        self._says(call)
        try:
            return await self.ledger.submit(call)
        except Refused:
            self._refused(call)
            raise

    async def changed(self, after: int, timeout_s: float) -> int:
        """As it is."""
        return await self.ledger.changed(after, timeout_s)

    async def close(self) -> None:
        """As it is."""
        await self.ledger.close()


class SimulatedNode:
    """One life of a member's node, from a start to its end."""

    transport: SimulatedTransport
    ledger: Ledger
    site: Site

    def __init__(self, world: World, name: str, life: int) -> None:
        """Not started: see ``start``."""
        self.world = world
        self.name = name
        self.process = Process(name, f"{world.seed}, node {life}")
        self.runners: dict[str, StudyRunner] = {}
        self.is_up = False
        self._disk = world.disks[name]
        self._training = Training(name, lambda: self.runners)
        self._lines: dict[NodeEnd, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()
        self._closing: asyncio.Task[None] | None = None
        self._main = world.loop.spawn(self.process, self._live(), f"node {name}")

    async def _live(self) -> None:
        while True:
            try:
                await self._open()
            except KonsilError as error:
                self.world.say(f"{self.name} cannot start: {error.what}")
                await self._stack.aclose()
                await asyncio.sleep(START_AGAIN_S)
            else:
                break
        self.is_up = True
        self.world.say(f"{self.name} is up at height {self.ledger.state.height}")
        taking_part = asyncio.create_task(self._take_part())
        try:
            await self._follow()
        finally:
            taking_part.cancel()
            await asyncio.gather(taking_part, return_exceptions=True)

    async def _open(self) -> None:
        """Put the parts together as ``konsil.node.daemon`` does."""
        world, folder, stack = self.world, self._disk.folder, self._stack
        try:
            for each in ("merges", "journal"):
                make_private_folder(folder / each)
        except OSError as error:
            raise NodeBusy(f"The disk refuses: {error.strerror}.") from error
        journal = stack.enter_context(Journal(folder / "journal"))
        service = Service(self.name, lambda: self.runners, lambda _digest: None)
        self.service = service
        self.transport = SimulatedTransport(self.process, self._answer, world.network)
        stack.push_async_callback(self.transport.close)
        self.peers = service.peers = Peers(self.transport)
        self._set_peers()
        self.ledger = await self._open_ledger(self.peers)
        stack.push_async_callback(self.ledger.close)
        service.ledger = Overheard(self.ledger, self._says, partial(world.invariants.refused, self.name))
        service.operator = self.ledger if isinstance(self.ledger, LocalLedger) else None
        models = Models(folder / "merges")
        stack.push_async_callback(models.close)
        self.site = Site(
            self.name,
            service.ledger,
            journal,
            models,
            self.peers,
            clock=lambda: world.clock(self.name),
            rules=Rules(folder / "rules"),
        )
        stack.push_async_callback(self._close_runners)
        world.dress(self)

    async def _open_ledger(self, peers: Peers) -> Ledger:
        world = self.world
        if world.contract is not None:
            return SharedLedger(world.contract, self.name, world.heights.get(self.name, 0))
        path, key = self._disk.folder / "ledger.db", world.keys[self.name]
        if self.name == world.genesis.operator:
            clock = lambda: world.clock(self.name)  # noqa: E731 - one line is clearer here
            return await LocalLedger.open(path, world.genesis, key, self.name, clock, world.verify)
        operator = OperatorLine(world.genesis.operator, peers)
        return await FollowerLedger.open(path, world.genesis, key, self.name, operator, world.verify)

    async def _answer(self, peer: str, message: bytes) -> Reply:
        """Answer a peer; the world sees what is given away."""
        asked = self.ledger.state
        reply = await self.service.answer(peer, message)
        if reply.body and self.process.alive:
            request = decode_request(message)
            if isinstance(request, GetManifest | GetChunk):
                self.world.invariants.serves(self.name, peer, request.digest, asked, self.ledger.state)
        return reply

    def _says(self, call: Call) -> None:
        if self.process.alive:
            self.world.invariants.says(self.name, call)

    async def _follow(self) -> None:
        """As ``konsil.node.daemon.Node.run``."""
        ledger = self.site.ledger
        while True:
            height = ledger.state.height
            self._set_peers()
            for study in ledger.state.studies:
                if study not in self.runners:
                    self.runners[study] = StudyRunner(study, self.site)
                    await self.runners[study].open()
                else:
                    self.runners[study].look()
            try:
                await ledger.changed(height, WATCH_S)
            except LedgerError as error:
                self.world.broken(
                    "honest nodes make no errors", f"{self.name} stopped following the ledger: {error.what}"
                )
                return

    def _set_peers(self) -> None:
        plan = self.world.plan
        self.transport.set_peers(
            PeerAddress(
                name, f"spiffe://{name}.example/node", () if name in plan.dial_only else (f"{name}:1",), b""
            )
            for name in plan.members
        )

    async def _take_part(self) -> None:
        """What people do at a member: propose the study, or agree to it."""
        ledger, settings = self.site.ledger, self.world.plan.settings
        while True:
            study = ledger.state.studies.get(STUDY)
            try:
                if study is None and self.name == self.world.plan.members[0]:
                    await ledger.submit(ProposeStudy(settings))
                elif study is not None and self.name not in study.participants:
                    await ledger.submit(Agree(STUDY, study.settings_digest))
                elif study is not None:
                    return
            except KonsilError as error:
                self.world.say(f"{self.name} is told: {error.what}")
                await asyncio.sleep(AGAIN_S)
            await ledger.changed(ledger.state.height, WATCH_S)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside everything else, until the end."""
        task = self.world.loop.spawn(self.process, work, f"beside {self.name}")

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    # --- the training process --------------------------------------------------------------------

    def visit(self) -> ScriptEnd | None:
        """A line for the training process; None while this node is not up."""
        if not self.is_up or not self.process.alive:
            return None
        near, far = line()
        task = self.world.loop.spawn(self.process, self._serve(near), f"visitor of {self.name}")
        self._lines[near] = task
        task.add_done_callback(lambda _: self._lines.pop(near, None))
        return far

    async def _serve(self, near: NodeEnd) -> None:
        """As ``konsil.wall.door.Door`` does."""
        try:
            await self._training.serve(cast("Any", near))
        except KonsilError as error:
            if near.is_open:
                await near.send(failure(error))
        except ConnectionError:
            pass
        finally:
            near.close()

    # --- the end ---------------------------------------------------------------------------------

    def crash(self) -> None:
        """Be gone at once. What is left in memory is cleared away behind the curtain, and changes nothing."""
        self.process.alive = self.is_up = False
        if hasattr(self, "transport"):
            self.transport.leave("The connection was reset.")
        if isinstance(getattr(self, "ledger", None), SharedLedger):
            self.world.heights[self.name] = self.ledger.state.height
            cast("SharedLedger", self.ledger).silence()
        for near in list(self._lines):
            near.close()
        self._closing = self.world.loop.spawn(self.process, self.close(), f"the end of {self.name}")

    async def close(self) -> None:
        """Stop in order."""
        self.is_up = False
        tasks = [self._main, *self._lines.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def closed(self) -> None:
        """Until a crashed node's remains are cleared away."""
        if self._closing is not None:
            await self._closing

    async def _close_runners(self) -> None:
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))


AGAIN_S = 0.5
"""After this people try again what the ledger did not take."""
