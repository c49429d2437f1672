"""Members' directories made by the commands themselves, and a node that is real but for its peers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from konsil import __version__
from konsil.cli import main
from konsil.core.messages import GetStatus, Status, decode_request, encode
from konsil.core.rules import genesis_digest
from konsil.core.wall import MemberProgress, StudyStatus
from konsil.errors import PeerUnreachable
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.history import sign_call
from konsil.ledger.local import LocalLedger
from konsil.node.config import read_config
from konsil.node.control import Control
from konsil.node.directory import Cards, Directory
from konsil.node.genesis import read_genesis
from konsil.node.peers import Peers
from konsil.node.rules import Rules
from konsil.node.shelf import Shelf
from konsil.node.store import Model
from konsil.node.way_out import way_out
from konsil.transport.base import PeerLink, Received
from konsil.wall.door import Door


class Site:
    """A place with members' directories; runs commands."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, member: str = "lyon", expect: int = 0, **options):
        """Run a command in a member's directory."""
        environment = {"KONSIL_DIR": str(self.root / member)}
        result = CliRunner(env=environment).invoke(main, list(words), **options)
        assert result.exit_code == expect, f"{result.output}\n{result.exception!r}"
        return result

    def json(self, *words: str, member: str = "lyon"):
        return json.loads(self.run(*words, "--json", member=member).stdout)

    def card(self, member: str) -> str:
        return str(self.root / member / f"{member}.card.json")

    def init(self, member: str, listen: str = "none", *more: str):
        return self.run("node", "init", "--name", member, "--listen", listen, *more, member=member)

    def found(self) -> None:
        """Three members; lyon serves the ledger."""
        self.init("lyon", "127.0.0.1:7999")
        self.init("nice")
        self.init("lille")
        cards = [self.card(member) for member in ("lyon", "nice", "lille")]
        self.run("swarm", "found", "aml", *cards)

    @contextlib.contextmanager
    def node(self):
        """Lyon's ledger behind lyon's control socket, on a thread of its own."""
        running = NodeThread(self.root / "lyon")
        running.start()
        try:
            assert running.ready.wait(20), running.fault
            assert running.fault is None
            yield running
        finally:
            running.end()


class Transport:
    """Peers as the node sees them: nice answers, lille does not."""

    bytes_in = bytes_out = 1_000_000

    def links(self):
        return (
            PeerLink("nice", True, "accepted", 1.5, ""),
            PeerLink("lille", False, "", 0.0, "It has not dialled in."),
        )

    async def request(self, peer, message, **_limits):
        assert isinstance(decode_request(message), GetStatus)
        if peer != "nice":
            raise PeerUnreachable(f"{peer} does not answer.")
        return Received(encode(Status("nice", __version__, time.time() + 0.2, 0, ())), b"", 0)


class NodeThread(threading.Thread):
    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.ready = threading.Event()
        self.fault: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.problems: tuple[str, ...] = ()
        self.held: Model | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as fault:  # noqa: BLE001 - shown by the fixture
            self.fault = fault
            self.ready.set()

    async def _serve(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        config = read_config(self.directory)
        genesis, key = read_genesis(config.genesis_file), LedgerKey.load(config.ledger_key_file)
        transport = Transport()
        beat = MemberProgress("nice", 1, "training", 0.4, time.time() - 3)
        here = StudyStatus("heart", "training", 1, (beat,), "")
        async with await LocalLedger.open(
            config.ledger_file, genesis, key, "lyon", time.time, verify
        ) as ledger:
            self.ledger = ledger
            node = SimpleNamespace(
                config=config,
                genesis=genesis,
                genesis_digest=genesis_digest(genesis),
                ledger=ledger,
                transport=transport,
                way_out=way_out(config),
                peers=Peers(transport),
                rules=Rules(config.rules_dir),
                site=SimpleNamespace(ledger_s=time.time),
                directory=Directory("lyon", Cards(config.cards_dir)),
                runners={"heart": SimpleNamespace(status=lambda: here, shelf=self._shelf())},
                svid_expires_s=lambda: time.time() + 3600,
                problems=lambda: self.problems,
            )
            async with Door(config.control_socket, Control(node).serve):
                self.ready.set()
                await self.stop.wait()

    def _shelf(self) -> Shelf:
        """The node's models: what a test put there, or nothing."""
        site = SimpleNamespace(me="lyon", ledger=self.ledger, ledger_s=time.time, models=self)
        return Shelf(
            site, self, self, lambda: self.ledger.state.studies["heart"], lambda: None, None, frozenset
        )

    def model(self, _digest: str) -> Model | None:
        return self.held

    def add_model(self, model: Model) -> None:
        pass

    async def load(self, _study: str, _digest: str) -> None:
        return None

    async def fetch(self, digest: str) -> Model:
        raise PeerUnreachable(f"Nobody could give what is behind {digest[:12]}.")

    def submit(self, *calls) -> None:
        """Put lyon's own calls on the ledger, as a node does."""
        for call in calls:
            asyncio.run_coroutine_threadsafe(self.ledger.submit(call), self.loop).result(20)

    def submit_as(self, member: str, *calls) -> None:
        """Put another member's calls on the ledger, signed with its own key."""
        key = LedgerKey.load(self.directory.parent / member / "keys" / "ledger.pem")
        for call in calls:
            state = self.ledger.state
            signed = sign_call(state.genesis, key, member, state.members[member].sequence + 1, call)
            asyncio.run_coroutine_threadsafe(self.ledger.accept(signed), self.loop).result(20)

    def end(self) -> None:
        if self.loop is not None and self.fault is None:
            self.loop.call_soon_threadsafe(self.stop.set)
        self.join(20)


@pytest.fixture
def site():
    root = Path(tempfile.mkdtemp(prefix="konsil-"))  # short: a Unix socket's path has a limit
    yield Site(root)
    shutil.rmtree(root)
