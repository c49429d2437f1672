"""ABCI over a Unix socket: CometBFT opens four connections and asks one thing after another on each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import structlog

from konsil.core.protobuf import varint
from konsil.errors import FrameError, KonsilError
from konsil.ledger.cometbft.abci import MAX_MESSAGE_BYTES, decode_request, encode_response

Answer = Callable[[str, Any], Awaitable[dict[str, Any]]]
"""(kind, request) -> the fields of the answer."""

_MAX_VARINT_BYTES = 5
_SOCKET_MODE = 0o600

_log = structlog.get_logger(__name__)


class AbciServer:
    """Listens for CometBFT. Use ``async with``."""

    def __init__(self, path: Path, answer: Answer) -> None:
        """``path``: of the socket, in a folder that is this user's alone. ``answer``: asked in turn."""
        self.path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.path.unlink(missing_ok=True)  # of a node that was killed; its directory's lock is held
        self._server = await asyncio.start_unix_server(self._connected, str(self.path))
        self.path.chmod(_SOCKET_MODE)
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)
        self.path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # CometBFT stopped, which its supervisor notices
        except asyncio.CancelledError:
            pass  # closed; it ends here: Python 3.11 complains of a connection whose task was cancelled
        except KonsilError as error:
            _log.error("the ledger's engine cannot be answered", why=str(error))
        finally:
            if task is not None:
                self._serving.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, request = decode_request(await read_message(reader))
            try:
                answer = encode_response(kind, **await self._answer(kind, request))
            except Exception as error:  # noqa: BLE001 - without an answer CometBFT waits for ever; with this one it stops
                _log.error(
                    "a request of the ledger's engine failed",
                    kind=kind,
                    why=str(error) or repr(error),
                    exc_info=not isinstance(error, KonsilError),
                )
                words = (str(error) or repr(error)).encode(errors="replace").decode()
                writer.write(framed(encode_response("exception", error=words)))
                await writer.drain()
                return
            writer.write(framed(answer))
            await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The next message: its length as a varint, and its bytes.

    Raises:
        FrameError: over the limit.
        asyncio.IncompleteReadError: the other side has gone.
    """
    length = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the top bit says that more follows
            break
    else:
        length = 1 << 7 * _MAX_VARINT_BYTES
    if length > MAX_MESSAGE_BYTES:
        raise FrameError(
            f"CometBFT announces a message of {length} bytes, over the limit of {MAX_MESSAGE_BYTES}.",
            safe="Nothing was read.",
            do="Use CometBFT 0.38: see `konsil doctor`.",
        )
    return await reader.readexactly(length)


def framed(data: bytes) -> bytes:
    """A message behind its length."""
    return varint(len(data)) + data
