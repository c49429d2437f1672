"""The engine that keeps the ledger, as the genesis names it, joined to this node's peers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from konsil.core.messages import MAX_ENTRIES_BYTES, Accepted, LedgerFollow, LedgerSubmit
from konsil.core.rules import Genesis
from konsil.errors import ConfigError, FrameError
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.base import Ledger
from konsil.ledger.local import FollowerLedger, LocalLedger
from konsil.ledger.local.steady import SteadyClock
from konsil.node.config import Config
from konsil.node.peers import Peers
from konsil.node.service import split_entries
from konsil.node.tunnels import Tunnels
from konsil.transport.tls import TlsTransport

ANSWER_S = 15.0
"""How long a peer may take for a small answer."""


MEASURED_MOST_MS = 600.0
"""Hardly a line takes longer there and back: a member that answers later is busy, or wants the others to wait
for it. A longer time can be set by hand."""


class OperatorLine:
    """The operator's ledger, reached over the peer connections."""

    def __init__(self, operator: str, peers: Peers) -> None:
        """``operator``: the member named in the genesis."""
        self.operator = operator
        self.peers = peers

    async def submit(self, signed: bytes) -> int:
        """Put a signed call on the ledger; its height."""
        answer, _ = await self.peers.ask(self.operator, LedgerSubmit(signed), timeout_s=ANSWER_S)
        if not isinstance(answer, Accepted):
            raise FrameError(f"{self.operator} answered a call with {type(answer).__name__}.")
        return answer.height

    async def follow(self, after: int, wait_s: float) -> list[bytes]:
        """Entries above a height."""
        _, received = await self.peers.ask(
            self.operator,
            LedgerFollow(after, wait_s),
            timeout_s=wait_s + ANSWER_S,
            limit_bytes=MAX_ENTRIES_BYTES,
        )
        return split_entries(received.body)


class TunnelMesh:
    """A cometbft engine's peers, each behind a port of this machine. Implements its ``Mesh``."""

    def __init__(self, transport: TlsTransport, me: str) -> None:
        """Nobody is a peer before ``set_members``."""
        self._transport = transport
        self._news = asyncio.Event()
        self.tunnels = Tunnels(transport, me, lambda _peer: self._news.set())
        transport.watch_links(self._link_changed)

    def _link_changed(self, _peer: str, up: bool) -> None:
        if not up:  # of one that is up the tunnels tell
            self._news.set()

    def set_members(self, names: Iterable[str]) -> None:
        """The active members: nobody else's engine comes through."""
        self.tunnels.set_peers(names)

    def take_at(self, port: int) -> None:
        """Lead what comes from peers' engines to this port of the loopback interface."""
        self.tunnels.set_target("127.0.0.1", port)

    def ports(self) -> Mapping[str, int]:
        """Member -> the loopback port that leads to its engine; those that can be reached now."""
        known = self.tunnels.ports()
        return {
            link.name: known[link.name]
            for link in self._transport.links()
            if link.connected and link.name in known
        }

    async def changed(self) -> None:
        """Wait until a member can be reached that could not be, or a line to an engine has ended."""
        await self._news.wait()
        self._news.clear()


async def open_ledger(
    config: Config,
    genesis: Genesis,
    key: LedgerKey,
    peers: Peers,
    transport: TlsTransport,
    stack: AsyncExitStack,
) -> Ledger:
    """The ledger at this member. ``stack`` closes it.

    Raises:
        ConfigError: this version does not run the engine, or it is not installed here; the journal belongs
            to another genesis.
        LedgerError: the journal does not replay, or the disk refuses.
        NodeBusy: another process has the journal open.
    """
    ledger: Ledger
    if genesis.engine == "cometbft":
        ledger = await _open_cometbft(config, genesis, key, transport, stack)
    elif genesis.engine != "local":
        raise ConfigError(
            f"The genesis names the ledger engine {genesis.engine!r}, which this version does not run.",
            safe="Nothing was started.",
            do="Found the swarm with another engine.",
        )
    elif genesis.operator == config.name:
        ledger = await LocalLedger.open(config.ledger_file, genesis, key, config.name, SteadyClock(), verify)
    else:
        line = OperatorLine(genesis.operator, peers)
        ledger = await FollowerLedger.open(config.ledger_file, genesis, key, config.name, line, verify)
    stack.push_async_callback(ledger.close)
    return ledger


async def _open_cometbft(
    config: Config, genesis: Genesis, key: LedgerKey, transport: TlsTransport, stack: AsyncExitStack
) -> Ledger:
    try:
        from konsil.ledger.cometbft.ledger import CometbftLedger, Site  # noqa: PLC0415 - an extra
        from konsil.ledger.cometbft.timings import timings  # noqa: PLC0415 - as above
    except ImportError as error:
        raise ConfigError(
            f"This swarm's ledger is kept by CometBFT, for which a library is missing: {error.name}.",
            safe="Nothing was started.",
            do="Install it: pip install 'konsil[cometbft]'.",
        ) from error
    mesh = TunnelMesh(transport, config.name)
    stack.push_async_callback(mesh.tunnels.close)

    table = config.ledger

    def measured_ms() -> float:
        longest_ms = max((link.rtt_ms for link in transport.links()), default=0.0)
        return table.round_trip_ms or min(MEASURED_MOST_MS, longest_ms)

    site = Site(table.cometbft, config.engine_dir, mesh, lambda: timings(measured_ms()), table.validate)
    return await CometbftLedger.open(config.ledger_file, genesis, key, config.name, site, verify)
