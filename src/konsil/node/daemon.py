"""The daemon behind `konsil node start`: puts the parts of a node together and keeps them running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import structlog

from konsil.core.messages import (
    PROTOCOL_VERSION,
    Hello,
    decode_request,
    encode,
)
from konsil.core.rules import Genesis, MemberRecord, genesis_digest
from konsil.errors import (
    FrameError,
    IdentityError,
    LedgerError,
    NodeError,
    StudyError,
)
from konsil.files import make_private_folder
from konsil.identity.authority import Authority
from konsil.identity.ledger_key import LedgerKey
from konsil.identity.source import SvidSource
from konsil.identity.tls import HasSvid
from konsil.identity.workload_api import WorkloadApi
from konsil.ledger.base import Ledger
from konsil.ledger.local import LocalLedger
from konsil.node.config import Config, read_config
from konsil.node.control import Control
from konsil.node.credentials import Credentials
from konsil.node.directory import Cards, Directory
from konsil.node.engines import open_ledger
from konsil.node.genesis import read_genesis
from konsil.node.journal import Journal
from konsil.node.log import configure_log
from konsil.node.models import Models
from konsil.node.peers import Peers
from konsil.node.process import notify, only_one, writable
from konsil.node.renewal import Renewal
from konsil.node.roots import Roots
from konsil.node.rules import Rules
from konsil.node.service import Service
from konsil.node.site import Site, default_max_model_bytes
from konsil.node.study import StudyRunner
from konsil.node.training import Training
from konsil.node.way_out import way_out
from konsil.transport.base import Transport
from konsil.transport.tls import TlsTransport
from konsil.transport.tunnel import dialling
from konsil.wall.door import Door

IDENTITY_S = 30.0
"""How long a node waits for its first SVID at start."""

WATCH_S = 60.0
"""The node looks at everything at least this often, news or not."""

CARD_RETRY_S = 2.0
"""A member's card that nobody here has yet is asked for again after this."""

_log = structlog.get_logger(__name__)


class Node:
    """One member's node. Use ``async with``; ``run`` then serves until it is told to stop."""

    transport: Transport
    ledger: Ledger

    def __init__(self, config: Config) -> None:
        """Read what is on disk; nothing is opened yet."""
        self.config = config
        self.genesis: Genesis = read_genesis(config.genesis_file)
        self.genesis_digest = genesis_digest(self.genesis)
        self.key = LedgerKey.load(config.ledger_key_file)
        self.instance = secrets.token_hex(8)
        self.way_out = way_out(config)
        self.directory = Directory(config.name, Cards(config.cards_dir))
        self.rules = Rules(config.rules_dir)
        self.runners: dict[str, StudyRunner] = {}
        self._appeared = asyncio.Event()
        self._lacking_cards = False
        self._fetching: asyncio.Task[None] | None = None
        self._source: SvidSource | None = None
        self._renewal: Renewal | None = None
        self._stack = AsyncExitStack()

    # --- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stack.__aexit__(None, None, None)

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self.config
        stack.enter_context(only_one(config.directory))
        with writable(config.directory):
            for folder in (config.cards_dir, config.merges_dir, config.rules_dir, config.journal_dir):
                make_private_folder(folder)
        journal = stack.enter_context(Journal(config.journal_dir))
        api = None
        if config.builtin_identity:
            authority = Authority.load(config.keys_dir)
            api = WorkloadApi(authority, config.workload_socket, config.identity.svid_ttl_s)
            await stack.enter_async_context(api)
        source = await stack.enter_async_context(SvidSource.open(config.workload_api))
        await source.wait_ready(IDENTITY_S)
        self._source = source
        service = Service(config.name, lambda: self.runners, self.directory.cards.bytes_of)
        renewal = self._renewal = Renewal(config, self.key, source, self.directory.cards)
        self.roots = Roots(config.keys_dir, api, renewal)
        transport = self._make_transport(service, renewal)
        peers = Peers(transport)
        service.peers = peers
        self.peers = peers
        self.transport = transport
        self.ledger = await open_ledger(config, self.genesis, self.key, peers, transport, stack)
        service.ledger = renewal.ledger = self.ledger
        service.operator = self.ledger if isinstance(self.ledger, LocalLedger) else None
        self._require_own_card()
        self._set_peers()
        await transport.start()
        stack.push_async_callback(transport.close)
        models = Models(config.merges_dir)
        stack.push_async_callback(models.close)
        self.site = Site(
            config.name,
            self.ledger,
            journal,
            models,
            peers,
            rules=self.rules,
            max_model_bytes=int(config.node.max_model_gb * 1e9) or default_max_model_bytes(),
        )
        stack.push_async_callback(self._close_runners)
        stack.push_async_callback(self._stop_fetching)
        await stack.enter_async_context(renewal)
        await self._refresh()
        training = Training(config.name, lambda: self.runners)
        await stack.enter_async_context(Door(config.session_socket, training.serve, mode=0o660))
        await stack.enter_async_context(Door(config.control_socket, Control(self).serve))

    def _make_transport(self, service: Service, identity: HasSvid) -> TlsTransport:
        return TlsTransport(
            self.config.name,
            identity=Credentials(identity),
            make_hello=self._make_hello,
            check_hello=self._check_hello,
            handler=service.answer,
            listen=self.config.node.listen or None,
            dial=dialling(self.way_out.proxy),
        )

    async def _close_runners(self) -> None:
        await asyncio.gather(*(runner.close() for runner in self.runners.values()))

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the ledger until told to stop."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                height = self.ledger.state.height
                await self._refresh()
                patience_s = CARD_RETRY_S if self._lacking_cards else WATCH_S
                news = asyncio.create_task(self.ledger.changed(height, patience_s))
                await asyncio.wait({news, stopping}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                try:
                    with contextlib.suppress(asyncio.CancelledError):
                        await news
                except LedgerError as error:
                    # Peers may still fetch what is here, and people must be able to ask what is wrong.
                    _log.error("there is no more news of the ledger", why=str(error))
                    await stopping
        finally:
            stopping.cancel()

    # --- following the ledger ------------------------------------------------------------------

    async def _refresh(self) -> None:
        if self._renewal is not None:
            self._renewal.look()
        lacking = self._set_peers()
        self._lacking_cards = bool(lacking)
        if lacking and (self._fetching is None or self._fetching.done()):
            # Beside everything else: a peer that does not answer must not hold up any study.
            self._fetching = asyncio.create_task(self._fetch_cards(lacking), name="konsil-cards")
        for name in self.ledger.state.studies:
            if name not in self.runners:
                runner = StudyRunner(name, self.site)
                self.runners[name] = runner
                await runner.open()
                self._appeared.set()
                self._appeared = asyncio.Event()
            else:
                self.runners[name].look()

    async def _fetch_cards(self, lacking: list[MemberRecord]) -> None:
        if await self.directory.fetch(lacking, self.peers):
            self._set_peers()

    async def _stop_fetching(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait((self._fetching,))

    def _set_peers(self) -> list[MemberRecord]:
        found, lacking = self.directory.peers(self.ledger.state)
        self.transport.set_peers(found)
        return lacking

    async def trust(self, card: bytes) -> int:
        """Know a member by this newer card of it, from now on; the ledger's height here.

        Raises:
            IdentityError: it is none, or not a newer one of a member.
        """
        await asyncio.to_thread(self.directory.trust, card, self.ledger.state)
        self._set_peers()
        return self.ledger.state.height

    async def runner(self, study: str, timeout_s: float) -> StudyRunner:
        """The runner of a study, once it has appeared here.

        Raises:
            StudyError: it has not appeared in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while study not in self.runners:
                    await self._appeared.wait()
        except TimeoutError:
            raise StudyError(f"Study {study!r} has not appeared at this node.", do="Try again.") from None
        return self.runners[study]

    # --- identity ------------------------------------------------------------------------------

    def _require_own_card(self) -> None:
        """See that this node is who its directory says, for this ledger."""
        me = self.config.name
        member = self.ledger.state.members.get(me)
        source = self._source
        if source is not None and member is not None:
            record = member.record
            if record.ledger_key != self.key.public or record.spiffe_id != source.svid.spiffe_id:
                raise IdentityError(
                    f"The ledger knows {me} by another key or SPIFFE ID than this directory holds.",
                    safe="Nothing was started.",
                    do="Use the directory whose card the members have, or be admitted anew with this one.",
                )

    def _make_hello(self) -> bytes:
        return encode(Hello(PROTOCOL_VERSION, self.genesis_digest, self.config.name, self.instance))

    def _check_hello(self, peer: str, data: bytes) -> str:
        hello = decode_request(data)
        if not isinstance(hello, Hello):
            raise FrameError("The first word of a connection must be Hello.", do="Compare versions.")
        if hello.version != PROTOCOL_VERSION:
            raise NodeError(
                f"{peer} speaks version {hello.version} of the protocol, {self.config.name} version "
                f"{PROTOCOL_VERSION}.",
                do="Install the same version of Konsil at every member.",
            )
        if hello.swarm != self.genesis_digest or hello.member != peer:
            raise IdentityError(
                f"{peer} belongs to another swarm: its genesis is {hello.swarm[:12]}, ours "
                f"{self.genesis_digest[:12]}.",
                do="Compare the digests that `konsil swarm found` printed; use the same cards.",
            )
        return hello.instance

    def svid_expires_s(self) -> float:
        """Unix time at which this node's certificate ends; 0 without one."""
        try:
            return float(self._source.svid.not_after_s) if self._source is not None else 0.0
        except IdentityError:
            return 0.0

    def problems(self) -> tuple[str, ...]:
        """What is wrong now, in sentences."""
        found = [f"{link.name}: {link.problem}" for link in self.transport.links() if link.problem]
        found += [
            f"study {name}: {runner.problem}" for name, runner in self.runners.items() if runner.problem
        ]
        for part in (self._source, self._renewal, self.ledger):
            problem = getattr(part, "problem", "")
            if problem:
                found.append(str(problem))
        return tuple(found)


async def serve(config: Config) -> None:
    """Run a node until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Node(config) as node:
        _log.info(
            "ready",
            member=config.name,
            swarm=node.genesis.swarm,
            genesis=node.genesis_digest[:12],
            listen=config.node.listen or "dials out only",
            way_out=str(node.way_out) or "direct",
            height=node.ledger.state.height,
        )
        if node.way_out.unclear:
            _log.warning("a host may take another way than is meant", why=node.way_out.unclear)
        # In a thread: peers are answered, whether the service manager listens or not.
        await asyncio.to_thread(notify, "READY=1", f"MAINPID={os.getpid()}")
        await node.run(stop)
        await asyncio.to_thread(notify, "STOPPING=1")
        _log.info("stopping")
    _log.info("stopped", member=config.name)


def run(directory: Path) -> None:
    """Run the node of a member's directory until it is told to stop.

    Raises:
        KonsilError: it cannot start; says why and what to do.
    """
    config = read_config(directory)
    configure_log(config.node.log_level, config.node.log_format, config.name)
    asyncio.run(serve(config))
