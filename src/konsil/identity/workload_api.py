"""Serves a member's built-in authority through the SPIFFE Workload API on a Unix socket.

Whoever can open the socket gets the node's identity: only the node's own user can. SPIRE's agent takes
this place by a change of the socket's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import structlog

from konsil.errors import ConfigError, IdentityError
from konsil.files import PRIVATE_MODE, make_private_folder
from konsil.identity.authority import Authority
from konsil.identity.svid import Svid
from konsil.identity.workload_wire import (
    FETCH_BUNDLES,
    FETCH_SVID,
    HEADER,
    SERVICE,
    WireSvid,
    encode_bundles,
    encode_svids,
)

MAX_SOCKET_PATH_BYTES = 96
"""A Unix socket's address holds 107 bytes; 11 go to the folder in which it is made."""

LONGEST_NAP_S = 60.0
"""A machine that was asleep must not serve an expired SVID for long: its timers slept too."""

STOP_S = 1.0
"""How long open streams may take to end before they are cut."""

_MAX_REQUEST_BYTES = 4096

_log = structlog.get_logger(__name__)


class WorkloadApi:
    """The Workload API of one authority: a fresh SVID at once, and another at half its life, to everyone.

    Args:
        authority: who issues.
        socket_path: where to listen; its folder is made if it is missing.
        ttl_s: life of an SVID, in seconds.
        path: of the node's SPIFFE ID.
        clock: unix time, in seconds.
    """

    def __init__(
        self,
        authority: Authority,
        socket_path: Path,
        ttl_s: float = 3600.0,
        *,
        path: str = "/node",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authority = authority
        self._socket_path = socket_path
        self._ttl_s = ttl_s
        self._path = path
        self._clock = clock
        self._svid: Svid | None = None
        self._renew_at_s = 0.0
        self._renewed = asyncio.Event()
        self._closing = False
        self._server: Any = None
        self._inode = (0, 0)
        self._rotation: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """The socket's address, as a source and SPIFFE_ENDPOINT_SOCKET want it."""
        return f"unix://{self._socket_path.absolute()}"

    async def __aenter__(self) -> Self:
        """Issue the first SVID and listen.

        Raises:
            ConfigError: the socket's path is too long, taken by a running program, or no socket.
            IdentityError: the authority cannot issue.
        """
        self._renew()
        _check_free(self._socket_path)
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_REQUEST_BYTES)])
        methods = {FETCH_SVID: self._fetch_svid, FETCH_BUNDLES: self._fetch_bundles}
        handlers = {name: grpc.unary_stream_rpc_method_handler(serve) for name, serve in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            await self._listen()
        except BaseException:
            await self._server.stop(None)
            raise
        self._rotation = asyncio.create_task(self._rotate(), name="svid rotation")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all streams, so that their readers come back elsewhere, and remove the socket."""
        self._closing = True
        self._announce()
        if self._rotation is not None:
            self._rotation.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._rotation
        await self._server.stop(STOP_S)
        with contextlib.suppress(FileNotFoundError):
            if _inode(self._socket_path) == self._inode:
                self._socket_path.unlink()

    def use(self, authority: Authority) -> None:
        """Issue by this authority from now on, to everyone at once.

        Raises:
            IdentityError: it cannot issue; the one before it goes on.
        """
        before, self._authority = self._authority, authority
        try:
            self._renew()
        except IdentityError:
            self._authority = before
            raise

    async def _listen(self) -> None:
        """Make the socket where nobody else can reach it, and only then give it its name.

        The name appears with its final mode, and in place of one that a crash left behind.
        """
        parent = self._socket_path.parent
        try:
            make_private_folder(parent)
            hidden = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        except OSError as error:
            raise _unusable(self._socket_path, f"its folder cannot be written: {error.strerror}") from error
        try:
            made = hidden / "s"
            self._server.add_insecure_port(f"unix:{made.absolute()}")
            made.chmod(PRIVATE_MODE)
            await self._server.start()
            self._inode = _inode(made)
            made.replace(self._socket_path)
        except (OSError, RuntimeError) as error:
            raise _unusable(self._socket_path, str(error)) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _renew(self) -> None:
        now_s = self._clock()
        self._svid = self._authority.issue(self._path, self._ttl_s, now_s)
        self._renew_at_s = now_s + self._ttl_s / 2
        self._announce()

    def _announce(self) -> None:
        """Wake every stream: each waits on the event that stood here when it last sent."""
        self._renewed.set()
        self._renewed = asyncio.Event()

    async def _rotate(self) -> None:
        while True:
            left_s = self._renew_at_s - self._clock()
            if left_s > 0:
                await asyncio.sleep(min(left_s, LONGEST_NAP_S))
                continue
            try:
                self._renew()
            except IdentityError as error:
                _log.warning("svid_not_renewed", problem=str(error))
                self._renew_at_s = self._clock() + LONGEST_NAP_S

    async def _fetch_svid(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        await _check_header(context)
        async for svid in self._svids(context):
            wire = WireSvid(
                spiffe_id=svid.spiffe_id,
                chain=b"".join(svid.chain_der),
                key=svid.key_der,
                bundle=self._authority.bundle_der,
            )
            yield encode_svids((wire,))

    async def _fetch_bundles(self, _request: bytes, context: Any) -> AsyncIterator[bytes]:
        await _check_header(context)
        async for _ in self._svids(context):
            yield encode_bundles({f"spiffe://{self._authority.trust_domain}": self._authority.bundle_der})

    async def _svids(self, context: Any) -> AsyncIterator[Svid]:
        """The SVID now, and each that follows, until this API closes or the stream's reader goes."""
        while not self._closing:
            renewed = self._renewed
            if self._svid is not None:
                yield self._svid
            await renewed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this Workload API is closing")


async def _check_header(context: Any) -> None:
    if HEADER not in {(key, value) for key, value in context.invocation_metadata() or ()}:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"security header missing from request: {HEADER[0]}"
        )


def _check_free(path: Path) -> None:
    """A socket that nobody listens on any more may be replaced; anything else may not."""
    if len(os.fsencode(path.absolute())) > MAX_SOCKET_PATH_BYTES:
        raise _unusable(path, f"its path is longer than {MAX_SOCKET_PATH_BYTES} bytes")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, str(error.strerror)) from error
    if not stat.S_ISSOCK(mode):
        raise _unusable(path, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass
    raise _unusable(path, "another program serves it")


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"The Workload API's socket {path} cannot be used: {why}.",
        safe="Nothing was replaced, and no identity was issued.",
        do="Stop the other program, or give another, short path in the node's config.",
        path=str(path),
    )
