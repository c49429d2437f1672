"""Follows a SPIFFE Workload API: the node's SVID as it is now, and word when it changes.

SPIRE's agent and the built-in authority are the same from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import structlog

from konsil.errors import IdentityError
from konsil.identity.svid import MAX_CHAIN, Svid, make_svid, pem_from_der, split_der
from konsil.identity.verify import canonical_bundle, verify_chain
from konsil.identity.workload_wire import (
    FETCH_SVID,
    HEADER,
    MAX_ANSWER_BYTES,
    SERVICE,
    WireSvid,
    decode_svids,
)

ENVIRONMENT = "SPIFFE_ENDPOINT_SOCKET"
"""Where the SPIFFE standard has programs look for the address."""

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
"""Pauses between attempts double from the first to the last: a restarted agent is back within seconds."""

FIRST_ANSWER_S = 10.0
"""The standard has the first answer sent without delay; one that takes longer hangs."""

RENEWAL_DUE = 0.75
"""Issuers renew at half of an SVID's life; one that has not by now is asked again on a new connection."""

_OPTIONS = [
    ("grpc.default_authority", "localhost"),  # a socket's path is no host name, and Go's servers refuse it
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the old one's pauses
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.enable_http_proxy", 0),
]

_log = structlog.get_logger(__name__)


class SvidSource:
    """The node's identity, kept up to date in the background. Use ``open``.

    Args:
        address: of the Workload API: "unix:///path/to/socket".
        spiffe_id: which SVID to take where several are issued; the first if empty, as the standard says.
        clock: unix time, in seconds.
    """

    def __init__(self, address: str, spiffe_id: str = "", clock: Callable[[], float] = time.time) -> None:
        self._path = socket_path(address)
        self._spiffe_id = spiffe_id
        self._clock = clock
        self._svid: Svid | None = None
        self._bundle = b""
        self._generation = 0
        self._news = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._problem: IdentityError | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, address: str = "", *, spiffe_id: str = "") -> SvidSource:
        """A source for ``async with``.

        Args:
            address: "unix:///path"; by default what SPIFFE_ENDPOINT_SOCKET says.
            spiffe_id: which SVID to take where several are issued.

        Raises:
            IdentityError: not the address of a Unix socket.
        """
        return cls(address or os.environ.get(ENVIRONMENT, ""), spiffe_id)

    async def __aenter__(self) -> Self:
        """Start to follow; does not wait for the first SVID (``wait_ready`` does)."""
        self._task = asyncio.create_task(self._follow(), name="svid source")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def svid(self) -> Svid:
        """The SVID now.

        Raises:
            IdentityError: none was issued yet, or the last one has expired and no other came.
        """
        if self._svid is None:
            raise self._not_ready()
        if self._clock() >= self._svid.not_after_s:
            raise IdentityError(
                f"The SVID of {self._svid.spiffe_id} has expired, and {self._path} issued no other.",
                safe="Open connections go on; no new one can be opened.",
                do="Look after the SPIRE agent, or the node that serves the built-in authority.",
            ) from self._problem
        return self._svid

    @property
    def bundle(self) -> bytes:
        """The own trust domain's bundle: PEM in its canonical form.

        Raises:
            IdentityError: nothing was issued yet.
        """
        if not self._bundle:
            raise self._not_ready()
        return self._bundle

    @property
    def generation(self) -> int:
        """How many SVIDs have come; 0 before the first."""
        return self._generation

    @property
    def problem(self) -> str:
        """Why the Workload API cannot be followed at the moment; empty while it can."""
        return str(self._problem) if self._problem else ""

    async def changed(self, after: int, timeout_s: float) -> int:
        """Wait until the generation is above ``after`` or the time is up; the generation then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._generation <= after:
                    await self._news.wait()
        return self._generation

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every new SVID, in the event loop; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the first SVID.

        Raises:
            IdentityError: none came in time, and why.
        """
        if not await self.changed(0, timeout_s):
            raise self._not_ready()

    async def _follow(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            before = self._generation
            try:
                await self._follow_stream()
            except Exception as error:  # noqa: BLE001 - whatever it was, following must not end in silence
                self._note(error)
            if self._generation != before:
                pause_s = FIRST_PAUSE_S
            # Several nodes of one host must not all come back in the same instant.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, no secret
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _follow_stream(self) -> None:
        """One stream, until it ends. gRPC's own pauses are not used: they cannot be seen from here."""
        async with grpc.aio.insecure_channel(f"unix:{self._path}", options=_OPTIONS) as channel:
            call = channel.unary_stream(f"/{SERVICE}/{FETCH_SVID}")(b"", metadata=(HEADER,))
            limit_s = FIRST_ANSWER_S
            while True:
                async with asyncio.timeout(limit_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise self._failed("it ended the stream")
                limit_s = self._take(answer)

    def _take(self, answer: bytes) -> float:
        """Use a new answer; how long the next one may take, in seconds."""
        wire = self._choose(decode_svids(answer))
        svid = make_svid(split_der(wire.chain, MAX_CHAIN), wire.key)
        bundle = canonical_bundle(pem_from_der(split_der(wire.bundle)))
        now_s = self._clock()
        verify_chain(svid.chain_der, bundle, svid.spiffe_id, now_s)
        self._svid, self._bundle, self._problem = svid, bundle, None
        self._generation += 1
        self._news.set()
        self._news = asyncio.Event()
        _log.info("svid_received", spiffe_id=svid.spiffe_id, not_after_s=svid.not_after_s)
        for listener in tuple(self._listeners):
            try:
                listener()
            except Exception:  # noqa: BLE001 - a fault of one listener must not keep the others from the news
                _log.exception("svid_listener_failed")
        return max(RENEWAL_DUE * (svid.not_after_s - now_s), FIRST_PAUSE_S)

    def _choose(self, svids: tuple[WireSvid, ...]) -> WireSvid:
        for svid in svids:
            if self._spiffe_id in {"", svid.spiffe_id}:
                return svid
        raise IdentityError(
            f"The Workload API at {self._path} issues {[svid.spiffe_id for svid in svids]}, "
            f"not {self._spiffe_id!r}.",
            safe="None of them was used.",
            do="Register the node's SPIFFE ID with SPIRE, or change it in the node's config.",
        )

    def _note(self, error: Exception) -> None:
        """Keep why it failed; said once, not at every attempt."""
        problem = error if isinstance(error, IdentityError) else self._explain(error)
        if str(problem) != self.problem:
            _log.warning("workload_api_unusable", problem=str(problem))
        self._problem = problem

    def _explain(self, error: Exception) -> IdentityError:
        if isinstance(error, TimeoutError):
            why = "it did not answer in time"
        elif not Path(self._path).exists():
            why = "there is no such socket"
        else:
            code: Any = getattr(error, "code", lambda: None)()
            details: Any = getattr(error, "details", lambda: "")()
            why = f"{code.name}: {str(details)[:200]}" if code else repr(error)[:200]
        return self._failed(why)

    def _failed(self, why: str) -> IdentityError:
        return IdentityError(
            f"The Workload API at {self._path} cannot be followed: {why}.",
            safe="The last SVID, if any, is in use until it expires; this is tried again and again.",
            do="Start the SPIRE agent and register the node with it, or use the built-in authority.",
            path=self._path,
        )

    def _not_ready(self) -> IdentityError:
        return self._problem or IdentityError(
            f"The Workload API at {self._path} has issued nothing yet.",
            safe="Nothing was changed.",
            do="Wait, or look after the SPIRE agent or the node that serves the built-in authority.",
            path=self._path,
        )


def socket_path(address: str) -> str:
    """The path in "unix:///path/to/socket".

    Raises:
        IdentityError: another kind of address.
    """
    path = address.removeprefix("unix://") if address.startswith("unix://") else ""
    if not path.startswith("/") or set(path) & {"?", "#", "\0"}:
        raise IdentityError(
            f"{address[:200]!r} is not the address of a Workload API's socket.",
            safe="Nothing was asked for.",
            do=f"Give it as 'unix:///run/spire/agent.sock' in the node's config, or in {ENVIRONMENT}.",
        )
    return path
