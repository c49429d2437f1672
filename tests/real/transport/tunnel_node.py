"""A member's node with an engine that echoes, in a process of its own: `tunnel_node.py FOLDER ADDRESS`.

It is member b, dials a at ADDRESS, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from konsil.identity.authority import Authority
from konsil.node.tunnels import Tunnels
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.timings import Timings
from konsil.transport.tls import TlsTransport

sys.path.insert(0, str(Path(__file__).parent))
from conftest import FixedIdentity


async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def answer(_who: str, message: bytes) -> Reply:
    return Reply(message)


async def main(folder: Path, address: str) -> None:
    svid = Authority.load(folder / "b").issue()
    bundle = Authority.load(folder / "a").bundle
    transport = TlsTransport(
        "b",
        identity=FixedIdentity(lambda: svid),
        make_hello=lambda: b"b",
        check_hello=lambda _peer, hello: hello.decode(),
        handler=answer,
        timings=Timings(),
    )
    async with transport:
        transport.set_peers([PeerAddress("a", "spiffe://a.example/node", (address,), bundle)])
        tunnels = Tunnels(transport, "b")
        listening = await asyncio.start_server(engine, "127.0.0.1", 0)
        tunnels.set_target(*listening.sockets[0].getsockname())
        tunnels.set_peers(["a"])
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
