"""Training scripts at a node's door: the session that users have, a real socket, a study in this process."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import konsil
from konsil.core.wall import WALL_VERSION, AskNode, Failed, Join, Knock, Terms, Update, Waiting
from konsil.errors import (
    ConfigError,
    FrameError,
    KonsilError,
    NodeBusy,
    NodeError,
    SchemaMismatch,
    StudyError,
)
from konsil.node.training import Training
from konsil.wall.door import Door
from konsil.wall.frames import raised
from konsil.wall.line import Line
from konsil.wall.memory import seal_pieces

SMALL = 1000


def model(elements=SMALL):
    return {"weights": np.zeros(elements, np.float32), "bias": np.zeros(3)}


class Doors:
    """A door for each node of a world; scripts run in threads."""

    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.doors = contextlib.AsyncExitStack()

    async def open(self):
        for name, node in self.world.nodes.items():
            training = Training(name, lambda node=node: {"aml": node.runner})
            await self.doors.enter_async_context(Door(self.socket(name), training.serve))

    def socket(self, name):
        return self.folder / f"{name}.sock"

    async def script(self, name, work, *, elements=SMALL, **options):
        """Run ``work(swarm, model)`` as the training script of a member."""

        def run():
            arrays = model(elements)
            with konsil.join("aml", arrays, node=self.socket(name), timeout_s=10.0, **options) as swarm:
                return work(swarm, arrays)

        return await asyncio.to_thread(run)

    async def says(self, name, *words):
        """What the node answers to words said one after the other, by hand."""

        def talk():
            heard = []
            with Line.connect(self.socket(name), 5.0) as line:
                for word, fd in words:
                    line.send(word, fd)
                    answer = line.receive(5.0).word
                    while isinstance(answer, Waiting):
                        answer = line.receive(5.0).word
                    heard.append(answer)
            return heard

        return await asyncio.to_thread(talk)


def trains(number, rounds=10**6):
    """A script that adds its number every round; what it ends with."""

    def work(swarm, arrays):
        merges = 0
        while not swarm.finished and merges < rounds:
            for name in arrays:
                arrays[name] += number
            merges += swarm.step(examples=5)
        return swarm.round, float(arrays["weights"][0]), swarm.ended

    return work


@pytest.fixture
async def doors(worlds):
    # Sockets need a short path, and pytest's own folders are long.
    with tempfile.TemporaryDirectory(prefix="konsil-") as folder:
        made = Doors(await worlds(), Path(folder))
        await made.open()
        yield made
        await made.doors.aclose()


async def test_scripts_train_a_study_to_its_end(doors):
    scripts = [doors.script(name, trains(number)) for number, name in enumerate("abc", start=1)]
    ends = await asyncio.gather(*scripts)
    assert ends == [(4, 6.0, "All 3 rounds are done.")] * 3
    assert doors.world.study.initial
    late = await doors.script("b", lambda swarm, arrays: (swarm.finished, float(arrays["bias"][0])))
    assert late == (True, 6.0)


async def test_a_script_that_leaves_and_one_that_crashes_do_not_hold_the_others_up(doors):
    def crashes(swarm, arrays):
        trains(3, rounds=1)(swarm, arrays)
        raise ZeroDivisionError

    scripts = [asyncio.ensure_future(doors.script(name, trains(1))) for name in "ab"]
    with pytest.raises(ZeroDivisionError):
        await doors.script("c", crashes)
    await asyncio.gather(*scripts)
    assert doors.world.study.history[-1].absent == {"c": "left"}


async def test_another_schema_is_refused_by_the_names_of_its_tensors(doors):
    scripts = [asyncio.ensure_future(doors.script(name, trains(1))) for name in "ab"]
    await doors.world.until(lambda world: world.study.participants["b"].present)
    with pytest.raises(SchemaMismatch, match=r"'weights' has shape \(7,\) instead of \(1000,\)"):
        await doors.script("c", trains(1), elements=7)
    await doors.script("c", trains(1))
    await asyncio.gather(*scripts)


async def test_a_second_script_is_told_that_the_first_goes_on(doors):
    first = asyncio.ensure_future(doors.script("a", trains(1)))
    await doors.world.until(lambda world: world.study.initial)
    with pytest.raises(NodeBusy, match="It goes on undisturbed"):
        await doors.script("a", trains(1))
    (answer,) = await doors.says("a", (Knock(WALL_VERSION, "aml", 1), None))
    assert isinstance(answer, Failed), "a second script hears no terms, for which it would prepare its model"
    others = [doors.script(name, trains(1)) for name in "bc"]
    await asyncio.gather(first, *others)


async def test_words_out_of_place_are_refused_with_the_reason(doors):
    knock = Knock(WALL_VERSION, "aml", 1)
    cases = [
        ([(Knock(WALL_VERSION + 1, "aml", 1), None)], ConfigError, "Install the same version"),
        (
            [(Knock(WALL_VERSION, "other", 1), None)],
            StudyError,
            r"no study 'other' on the ledger \(known: aml\)",
        ),
        ([(AskNode(), None)], FrameError, "must knock first"),
        ([(knock, None), (Update(1, "", 5), None)], FrameError, "must join first"),
        ([(knock, None), (Join(b"\0" * 40), None)], KonsilError, "header"),
    ]
    for words, kind, match in cases:
        *_, answer = await doors.says("a", *words)
        with pytest.raises(kind, match=match):
            raise raised(answer)
    (terms,) = await doors.says("a", (knock, None))
    assert isinstance(terms, Terms)
    assert terms.wanted


async def test_an_update_that_is_not_the_studys_is_refused_and_the_script_may_go_on(doors):
    scripts = [asyncio.ensure_future(doors.script(name, trains(1))) for name in "ab"]
    await doors.world.until(lambda world: world.study.participants["b"].present)
    header = doors.world.nodes["a"].runner.merging.schema.header
    short = seal_pieces([header, b"\0" * 16])
    with short:
        said = [(Knock(WALL_VERSION, "aml", 1), None), (Join(header), None), (Update(1, "", 5), short.fd)]
        *_, joined, failed = await doors.says("c", *said)
    assert joined.round == 1
    with pytest.raises(SchemaMismatch, match="Nothing was committed"):
        raise raised(failed)
    async with asyncio.timeout(8):
        await doors.script("c", trains(1))
        await asyncio.gather(*scripts)


async def test_a_model_larger_than_the_node_takes_is_refused_before_a_byte_of_it_is_read(doors, monkeypatch):
    runner = doors.world.nodes["a"].runner
    monkeypatch.setattr(runner.merging, "max_model_bytes", 4 * SMALL)
    monkeypatch.setattr("konsil.node.training.model_of", lambda *_: pytest.fail("it was read"))
    with pytest.raises(NodeError, match="max_model_gb"):
        await doors.script("a", trains(1))
    await asyncio.sleep(0)
    assert not doors.world.study.initial


async def test_a_member_that_is_struck_is_told_so_at_once(doors):
    first = doors.world.nodes["a"].train()
    second = asyncio.ensure_future(doors.script("b", trains(1), elements=first.arrays["weights"].size))
    await doors.world.until(lambda world: world.study.participants["b"].present)
    study = doors.world.study
    struck = study.participants | {"b": replace(study.participants["b"], struck=True)}
    studies = {"aml": replace(study, participants=struck)}
    doors.world.state = replace(doors.world.state, studies=studies)
    doors.world.move()
    with pytest.raises(StudyError, match="b was struck from study 'aml'"):
        await second
