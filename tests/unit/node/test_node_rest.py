"""The last model of a study that is over is put aside, whatever happens while its file is being opened."""

from __future__ import annotations

import asyncio

from konsil.node.rest import Rest


class Stored:
    closed = False

    def close(self):
        self.closed = True


class Aside:
    """A node's store and its models on disk: a file takes as long to open as the test says."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.is_aside = asyncio.Event()
        self.kept = []

    async def open(self, _study, _digest):
        await self.opened.wait()
        return Stored()

    def drop_stored(self, _digest):
        pass

    def put_aside(self, stored):
        self.kept.append(stored)
        self.is_aside.set()


async def test_what_changes_while_the_file_is_opened_is_looked_at_again():
    aside, busy = Aside(), False
    rest = Rest("aml", aside, aside, lambda: "" if busy else "d")
    rest.look()
    await asyncio.sleep(0)
    busy = True
    aside.opened.set()
    await asyncio.sleep(0)  # the file is open, and somebody needs the model
    busy = False
    rest.look()  # ... and does not any more, before the first look is over
    async with asyncio.timeout(5):
        await aside.is_aside.wait()
    assert not aside.kept[0].closed
    await rest.close()


async def test_a_model_that_somebody_needs_again_stays_in_memory():
    aside, busy = Aside(), False
    rest = Rest("aml", aside, aside, lambda: "" if busy else "d")
    rest.look()
    await asyncio.sleep(0)
    busy = True
    aside.opened.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert aside.kept == []
    await rest.close()
