"""Keeps a connection up to every peer that can be dialled: whom to try when, and what went wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from konsil.errors import KonsilError
from konsil.transport.link import Link
from konsil.transport.sockets import explain
from konsil.transport.timings import Timings
from konsil.transport.turns import Turns

log = structlog.get_logger("konsil.transport")

_jitter = random.SystemRandom()


class Dialler:
    """Dials, with growing pauses, whenever a link has no connection.

    Args:
        own: this side's member name.
        timings: deadlines.
        dial_one: makes a connection to a link at one of its addresses and has the link adopt it, or raises.
        listens: whether peers can dial this side, too.
    """

    def __init__(
        self,
        own: str,
        timings: Timings,
        dial_one: Callable[[Link, str], Awaitable[None]],
        *,
        listens: bool,
    ) -> None:
        """Dial nobody yet."""
        self._own = own
        self._timings = timings
        self._dial_one = dial_one
        self._listens = listens
        self._turns = Turns()

    async def keep_up(self, link: Link) -> None:
        """Have a connection to this peer until cancelled."""
        if self._listens and link.name < self._own and not link.wanted:
            # It will dial this node at the same moment; a second connection would be made for nothing.
            await link.rest(self._timings.yield_s)
        failures = 0
        while True:
            link.wake.clear()
            if link.best() is not None or not link.address.addresses:
                failures = 0
                await link.wake.wait()
                continue
            if await self._dial(link):
                failures = 0
                continue
            failures += 1
            await asyncio.sleep(self._timings.backoff_min_s)  # however many requests call for it
            backoff_s = self._timings.backoff_s(failures, wanted=link.wanted)
            await link.rest(backoff_s * _jitter.uniform(0.5, 1.0))

    async def _dial(self, link: Link) -> bool:
        """Try the peer's addresses in turn; whether there is a connection now."""
        for address in link.address.addresses:
            async with self._turns.of(link):
                if link.best() is None:
                    await self._try(link, address)
            if link.best() is not None:
                return True
        return False

    async def _try(self, link: Link, address: str) -> None:
        before = link.problem
        try:
            async with asyncio.timeout(self._timings.handshake_s):
                await self._dial_one(link, address)
        except TimeoutError:
            link.problem = f"'{link.name}' did not greet at {address} in {self._timings.handshake_s:g} s."
        except KonsilError as error:
            link.problem = str(error)
        except OSError as error:
            link.problem = f"No connection to '{link.name}' at {address}: {explain(error)}."
        except Exception:  # a mistake of ours must not end the attempts for good
            link.problem = f"No connection to '{link.name}' at {address}: see this node's log."
            log.exception("dialling failed", peer=link.name, address=address)
        if link.best() is None and link.problem != before:
            log.info("a peer cannot be reached", peer=link.name, address=address, problem=link.problem)
