"""Looking names up and dialling what they stand for: what hangs keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest

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


# --- a name with several addresses -----------------------------------------------------------------


@contextlib.contextmanager
def swallowing():
    """An address on this machine that answers no connection: the places of those that wait are taken."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        where = listener.getsockname()
        for _ in range(8):
            taken = stack.enter_context(socket.socket())
            taken.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                taken.connect(where)
        yield where


@contextlib.contextmanager
def refusing():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def resolve(monkeypatch):
    """A function that says which addresses every name has."""

    def named(*addresses):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in addresses]

        def resolved(*_args, **options):
            if options.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "no number")
            return found

        monkeypatch.setattr(socket, "getaddrinfo", resolved)

    return named


def open_sockets():
    return sorted(link for fd in Path("/proc/self/fd").iterdir() if (link := _link(fd)).startswith("socket:"))


def _link(fd):
    try:
        return str(fd.readlink())
    except OSError:
        return ""


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_where_no_address_answers_what_each_said_is_told(resolve, monkeypatch):
    said = {"one": errno.ECONNREFUSED, "two": errno.ENETUNREACH, "three": errno.ECONNREFUSED}

    async def fails(address):
        number = said[address[4][0]]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sockets, "_connect_to", fails)
    resolve(*((name, 443) for name in said))
    with pytest.raises(OSError, match="Connection refused; Network is unreachable") as caught:
        await sockets.connect("several.example", 443)
    assert sockets.explain(caught.value) == "Connection refused; Network is unreachable"
    resolve(("one", 443), ("three", 443))
    with pytest.raises(ConnectionRefusedError):
        await sockets.connect("several.example", 443)


async def test_an_address_that_swallows_everything_costs_a_moment_only(resolve, listener):
    with swallowing() as hole:
        resolve(hole, hole, listener.getsockname())
        before, began_s = open_sockets(), time.monotonic()
        async with asyncio.timeout(5):
            sock = await sockets.connect("several.example", 443)
        assert 2 * sockets.NEXT_ADDRESS_S <= time.monotonic() - began_s < 3
        assert sock.getpeername() == listener.getsockname()
        sock.close()
        await settled()
        assert open_sockets() == before
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_that_refuses_costs_nothing(resolve, listener):
    with refusing() as closed:
        resolve(closed, closed, closed, listener.getsockname())
        began_s = time.monotonic()
        (await sockets.connect("several.example", 443)).close()
        assert time.monotonic() - began_s < sockets.NEXT_ADDRESS_S


async def test_where_all_addresses_refuse_that_is_the_error(resolve):
    with refusing() as closed:
        for addresses in ((closed,), (closed, closed)):
            resolve(*addresses)
            with pytest.raises(ConnectionRefusedError):
                await sockets.connect("several.example", 443)
    resolve()
    with pytest.raises(OSError, match="has no address"):
        await sockets.connect("several.example", 443)


async def test_a_dial_that_is_given_up_leaves_nothing_open(resolve):
    with swallowing() as hole:
        resolve(hole, hole, hole)
        before = open_sockets()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5 * sockets.NEXT_ADDRESS_S):
                await sockets.connect("several.example", 443)
        await settled()
        assert open_sockets() == before


def test_the_kinds_of_address_take_turns():
    six, four = socket.AF_INET6, socket.AF_INET
    addresses = [(kind, number) for number, kind in enumerate((six, six, six, four, four))]
    assert [each[1] for each in sockets._by_turns(addresses)] == [0, 3, 1, 4, 2]
    assert sockets._by_turns([]) == []
