"""Looking names up: one that hangs keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import socket
import threading

from konsil.transport import sockets


async def test_look_ups_that_hang_leave_other_threads_to_disks_and_digests(monkeypatch):
    let_go, real = threading.Event(), socket.getaddrinfo

    def hangs(host, *args, **options):
        if host == "hangs.example" and not options.get("flags"):
            let_go.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    dials = [asyncio.create_task(sockets.connect("hangs.example", 443)) for _ in range(64)]
    try:
        await asyncio.sleep(0)  # all have begun
        async with asyncio.timeout(5):
            await asyncio.gather(*(asyncio.to_thread(int) for _ in range(8)))
        assert not any(dial.done() for dial in dials)
    finally:
        let_go.set()
        await asyncio.gather(*dials, return_exceptions=True)
