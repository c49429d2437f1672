"""A hospital's forward proxy, for tests: opens ways by CONNECT, to names that it alone can find.

connect_proxy.py PORT [--user USER:PASSWORD] NAME=HOST:PORT...
Says {"listening": PORT} once it does, and then each request as a JSON line on standard output.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys


class ConnectProxy:
    """``ways``: "name:port" as peers' cards have it -> (host, port) where it really is."""

    def __init__(self, ways: dict[str, tuple[str, int]], user: str) -> None:
        self._ways = ways
        self._known = f"basic {base64.b64encode(user.encode()).decode()}".lower() if user else ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *fields = head.split("\r\n")
            method, where, _ = first.split(" ")
            named = dict(field.lower().split(": ", 1) for field in fields if field)
            status = self._status(method, where, named.get("proxy-authorization", ""))
            say({"asked": where, "status": status})
            if status == 200:
                await self._open(where, reader, writer)
            else:
                offer = "Proxy-Authenticate: Basic realm=hospital\r\n" if status == 407 else ""
                writer.write(f"HTTP/1.1 {status} No\r\n{offer}\r\n".encode())
                await writer.drain()
        writer.close()

    def _status(self, method: str, where: str, known: str) -> int:
        if self._known and known != self._known:
            return 407
        if method != "CONNECT":
            return 405
        return 200 if where in self._ways else 403

    async def _open(self, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._ways[where])
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pipe(reader, far_writer), pipe(far_reader, writer))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    writer.close()


def say(word: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


async def main(port: int, user: str, ways: dict[str, tuple[str, int]]) -> None:
    listener = await asyncio.start_server(ConnectProxy(ways, user).serve, "127.0.0.1", port)
    say({"listening": listener.sockets[0].getsockname()[1]})
    await listener.serve_forever()


if __name__ == "__main__":
    port, *words = sys.argv[1:]
    user = words[words.index("--user") + 1] if "--user" in words else ""
    pairs = (word.split("=") for word in words if "=" in word and word != user)
    ways = {name: (where.rpartition(":")[0], int(where.rpartition(":")[2])) for name, where in pairs}
    asyncio.run(main(int(port), user, ways))
