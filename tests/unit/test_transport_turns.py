"""Whose turn it is to dial: so many at a time, nobody forgotten, and nobody who is wanted held up."""

from __future__ import annotations

import asyncio

import pytest

from konsil.transport.base import PeerAddress
from konsil.transport.link import Link
from konsil.transport.turns import Turns


class Dialling:
    """Links whose handshakes last until the test ends them."""

    def __init__(self, turns, count):
        self.turns = turns
        self.links = [Link("me", PeerAddress(f"p{n}", f"spiffe://p{n}/node", (), b"")) for n in range(count)]
        self.end = {link.name: asyncio.Event() for link in self.links}
        self.dialling = set()
        self.done = []
        self.then = {}
        self.tasks = {link.name: asyncio.create_task(self._dial(link)) for link in self.links}

    async def _dial(self, link):
        async with self.turns.of(link):
            self.dialling.add(link.name)
            try:
                await self.end[link.name].wait()
            finally:
                self.dialling.remove(link.name)
        self.done.append(link.name)
        self.then.get(link.name, lambda: None)()

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)
        return sorted(self.dialling)


async def test_few_dial_at_a_time_and_all_come_to_their_turn():
    dialling = Dialling(Turns(2), 6)
    assert await dialling.settle() == ["p0", "p1"]
    dialling.end["p1"].set()
    assert await dialling.settle() == ["p0", "p2"]
    for event in dialling.end.values():
        event.set()
    await asyncio.wait_for(asyncio.gather(*dialling.tasks.values()), 5)
    assert dialling.done == ["p1", "p0", "p2", "p3", "p4", "p5"]


async def test_a_link_that_a_request_waits_for_waits_for_no_turn():
    dialling = Dialling(Turns(2), 4)
    await dialling.settle()
    wanting = asyncio.create_task(dialling.links[3].connected())
    assert await dialling.settle() == ["p0", "p1", "p3"]
    dialling.end["p0"].set()
    assert await dialling.settle() == ["p1", "p3"], "its turn was one too many"
    dialling.end["p1"].set()
    assert await dialling.settle() == ["p2", "p3"]
    for task in (wanting, *dialling.tasks.values()):
        task.cancel()
    await asyncio.gather(wanting, *dialling.tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("gone", [("p2",), ("p0", "p2"), ("p2", "p0"), ("p0", "p1", "p2")])
async def test_whoever_gives_up_leaves_its_turn_to_the_next(gone):
    dialling = Dialling(Turns(2), 5)
    await dialling.settle()
    for name in gone:
        dialling.end[name].set()
        dialling.tasks[name].cancel()
    for name, event in dialling.end.items():
        if name not in gone:
            event.set()
    others = [task for name, task in dialling.tasks.items() if name not in gone]
    await asyncio.wait_for(asyncio.gather(*others), 5)


async def test_a_turn_that_was_just_given_to_one_who_gives_up_is_not_lost():
    dialling = Dialling(Turns(1), 3)
    await dialling.settle()
    dialling.then["p0"] = dialling.tasks["p1"].cancel  # which has been told by then, and has not run yet
    dialling.end["p0"].set()
    assert await dialling.settle() == ["p2"]
    dialling.end["p2"].set()
    await dialling.tasks["p2"]
