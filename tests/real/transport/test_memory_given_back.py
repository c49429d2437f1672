"""Memory that an answer was to fill is its owner's again once the request has failed, without the collector.

A merge is sealed as soon as its last chunk is there; memory that a failed request still holds forbids that.
"""

from __future__ import annotations

import asyncio
import gc
import mmap

import pytest

from konsil.errors import KonsilError
from konsil.transport.base import Reply


@pytest.fixture
def _uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def too_slow(_who, _message):
    await asyncio.sleep(30)
    return Reply(b"late")


async def broken(_who, _message):
    raise ValueError("this handler breaks")


async def fails(near, into):
    try:
        await near.request("b", b"give", timeout_s=0.5, into=into)
    except KonsilError:
        return True
    return False


async def too_long(_who, _message):
    return Reply(b"", bytes(200))


async def cut_off(who, message):
    who_asks = asyncio.get_running_loop()
    who_asks.call_later(0.05, cut_off.far.set_peers, [])
    return await too_slow(who, message)


@pytest.mark.usefixtures("_uncollected")
@pytest.mark.parametrize("handler", [too_slow, broken, too_long, cut_off])
async def test_a_failed_request_holds_no_memory(site, handler):
    async def answer(who, message):
        return Reply(b"yes") if message == b"are you there" else await handler(who, message)

    near, cut_off.far = await site.pair(far=answer)
    memory = mmap.mmap(-1, 4096)
    with memoryview(memory) as whole, whole[:100] as into:
        assert await fails(near, into)
    memory.close()  # raises a BufferError while anybody can still look into it
