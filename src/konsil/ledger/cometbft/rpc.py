"""CometBFT's own interface, over a Unix socket that only this user can open."""

from __future__ import annotations

import asyncio
import base64
import http.client
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from konsil.errors import LedgerUnreachable

ANSWER_S = 10.0
"""How long CometBFT may take to answer; it answers from memory, or from its own disk."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024

IN_CACHE = "tx already exists in cache"
"""CometBFT's words for a call that waits in its pool already: no failure."""


_AGAIN = {"safe": "Nothing was lost.", "do": "It is tried again by itself."}


class RpcError(LedgerUnreachable):
    """CometBFT answered with an error. ``what`` has its words."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))


class Rpc:
    """Asks one thing at a time, on a connection that is kept; from a thread, so that nothing waits for it."""

    def __init__(self, path: Path) -> None:
        """``path``: of the socket."""
        self._path = path
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="konsil-engine")
        self._connection: _UnixConnection | None = None

    async def ask(self, method: str, **params: Any) -> Any:
        """The result of a method.

        Raises:
            RpcError: CometBFT says no; its words are in ``what``.
            LedgerUnreachable: no answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._ask, method, params)

    async def broadcast(self, signed: bytes) -> None:
        """Put a call into the pool; to be there already is as good.

        Raises:
            RpcError: the pool is full, or does not want it.
            LedgerUnreachable: no answer.
        """
        try:
            told = await self.ask("broadcast_tx_sync", tx=base64.b64encode(signed).decode())
        except RpcError as error:
            if IN_CACHE in error.what:
                return
            raise
        code = told.get("code") if isinstance(told, dict) else None
        if not isinstance(code, int):
            raise _odd(told)
        if code:
            raise RpcError(f"The ledger's engine did not take the call: {told.get('log', '')}", **_AGAIN)

    def close(self) -> None:
        """Let go of the connection and the thread."""
        self._worker.shutdown(wait=True)
        self._drop()

    def _ask(self, method: str, params: dict[str, Any]) -> Any:
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            answer = self._post(body)
            told = msgspec.json.decode(answer)
        except (OSError, http.client.HTTPException, msgspec.DecodeError, RecursionError) as error:
            self._drop()
            raise LedgerUnreachable(
                f"The ledger's engine does not answer: {error or repr(error)}.",
                safe="Nothing was lost.",
                do="It is started again by itself; if this goes on, see the node's log.",
            ) from error
        failure = told.get("error") if isinstance(told, dict) else None
        if isinstance(failure, dict):
            raise RpcError(f"{failure.get('message', '')}: {failure.get('data', '')}".strip(": "), **_AGAIN)
        if failure or not isinstance(told, dict) or "result" not in told:
            raise _odd(told)
        return told["result"]

    def _post(self, body: bytes) -> bytes:
        fresh = self._connection is None
        try:
            return self._exchange(body)
        except (OSError, http.client.HTTPException):
            self._drop()
            if fresh:
                raise
        return self._exchange(body)  # a connection that was kept may have been closed at the other side

    def _exchange(self, body: bytes) -> bytes:
        if self._connection is None:
            self._connection = _UnixConnection(self._path)
        self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        data = response.read(MAX_ANSWER_BYTES + 1)
        if len(data) > MAX_ANSWER_BYTES:
            raise http.client.HTTPException("the answer is too long")
        if response.length:
            raise http.client.HTTPException("the answer was cut off")
        return data

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _odd(told: object) -> LedgerUnreachable:
    return LedgerUnreachable(
        f"The ledger's engine answers with what is no answer: {str(told)[:200]!r}.",
        safe="Nothing was lost.",
        do="Use CometBFT 0.38: see `konsil doctor`.",
    )
