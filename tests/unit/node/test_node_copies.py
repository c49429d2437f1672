"""What is made for answers: bounded for each peer until it has read, and nothing for what lies somewhere already."""

from __future__ import annotations

import asyncio

import pytest

from konsil.core.messages import Bytes, LedgerFollow, decode_answer, encode
from konsil.node import copies
from konsil.node.copies import Copies
from konsil.node.service import Service


async def test_a_peer_that_has_not_read_waits_and_another_does_not(monkeypatch):
    monkeypatch.setattr(copies, "MOST_BYTES", 100)
    made = Copies()
    await made.room("a")
    body = made.counted("a", b"x" * 100)
    assert body == b"x" * 100
    waiting = [asyncio.create_task(made.room("a")) for _ in range(3)]
    await made.room("b")
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    view = memoryview(body)  # as a transport holds it
    del body
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    del view
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)


async def test_what_lies_somewhere_already_is_neither_copied_nor_counted(monkeypatch):
    monkeypatch.setattr(copies, "MOST_BYTES", 100)
    made, model = Copies(), memoryview(bytes(1000))
    assert made.counted("a", model) is model
    await made.room("a")


async def test_a_peer_that_reads_nothing_is_given_nothing_more_after_a_while(monkeypatch):
    monkeypatch.setattr(copies, "MOST_BYTES", 100)
    monkeypatch.setattr(copies, "WAIT_S", 0.01)
    made = Copies()
    body = made.counted("a", bytes(100))
    with pytest.raises(TimeoutError):
        await made.room("a")
    assert len(body) == 100


async def test_the_history_is_not_made_again_and_again_for_a_peer_that_does_not_read_it(monkeypatch):
    monkeypatch.setattr(copies, "MOST_BYTES", 100)
    monkeypatch.setattr(copies, "WAIT_S", 0.01)

    class Keeper:
        async def follow(self, _after, _wait_s):
            return [bytes(60)]

    service = Service("a", dict, lambda _: None)
    service.operator = Keeper()
    ask = encode(LedgerFollow(0, 0.0))
    unread = [await service.answer("b", ask) for _ in range(2)]
    assert [isinstance(decode_answer(reply.message), Bytes) for reply in unread] == [True, True]
    refused = await service.answer("b", ask)
    assert decode_answer(refused.message).code == "not_yet"
    assert (await service.answer("c", ask)).body
    unread.clear()
    assert (await service.answer("b", ask)).body
