"""A training process and a node that speaks the real words over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import konsil
from konsil.core.model_card import CardRound, ModelCard, encode_card
from konsil.core.parameters import Schema
from konsil.core.rules import settings_digest
from konsil.core.rules.settings import Outer, StudySettings
from konsil.core.rules.state import Commitment, RoundRecord, ScoreRecord
from konsil.core.wall import (
    WALL_VERSION,
    Failed,
    Final,
    Finished,
    Goodbye,
    Join,
    Joined,
    Knock,
    Merged,
    Noted,
    Progress,
    Scored,
    Terms,
    Update,
    Waiting,
    Wanted,
)
from konsil.errors import (
    ConfigError,
    FrameError,
    NodeBusy,
    NodeError,
    NodeUnreachable,
    NonFinite,
    ParametersError,
    Refused,
    SchemaMismatch,
    StudyError,
)
from konsil.session import connection as connection_module
from konsil.session import place as place_module
from konsil.session import swarm as swarm_module
from konsil.wall.door import Door
from konsil.wall.layout import read_arrays, seal_arrays
from konsil.wall.memory import open_sealed, seal_pieces

SETTINGS = StudySettings(name="aml", every_steps=2, rounds=5)


def model(value=0.0):
    return {"w": np.full((3, 2), value, np.float32), "b": np.full(4, float(value)), "count": np.array(7)}


SCHEMA = Schema.of({name: array for name, array in model().items() if name != "count"})


def sealed_model(value):
    return seal_arrays(SCHEMA, {name: array for name, array in model(value).items() if name != "count"})


def record(number, digest, **more):
    return RoundRecord(
        number=number,
        attempt=0,
        base="",
        digest=digest,
        roster={"lyon": Commitment(digest="u", examples=20, at_s=1)},
        weights={"lyon": 20},
        parts=(),
        absent={"nantes": "silent"},
        opened_s=0,
        merging_s=1,
        accepted_s=2,
        **more,
    )


CARD = ModelCard(
    study="aml",
    swarm="5" * 64,
    round=1,
    digest="d" * 64,
    merge="d" * 64,
    final=True,
    why="It is the last of 1 merges.",
    settings=SETTINGS,
    settings_digest=settings_digest(SETTINGS),
    schema=SCHEMA.digest,
    data_bytes=SCHEMA.data_bytes,
    groups=(1,),
    initial="0" * 64,
    proposer="lyon",
    phase="finished",
    ended="All rounds are done.",
    started_s=1,
    ended_s=2,
    rounds=(CardRound(1, "d" * 64, 2, {}, {}, {"lyon": ScoreRecord(5, 0.25)}),),
    height=3,
    state="a" * 64,
    software="0",
)


class FakeNode:
    """Keeps one study of one member: its merge is the update plus 1. Lives in a thread; can die and return."""

    def __init__(self, path):
        self.path = path
        self.settings = SETTINGS
        self.accepted = 0
        self.value = 10.0
        self.heard = []
        self.ends_after = 99
        self.failed = False
        self.die_on = None  # (kind of word, how often): close that connection instead of answering
        self.answers = {}  # kind of word -> coroutine function instead of the usual
        self.wanted = False
        self.scored = {}  # round -> member -> scores that the ledger has by now
        self.unsettled = 0  # how often the final model is not settled yet
        self._stop = None
        self._thread = None
        self.error = None

    def __enter__(self):
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)))
        self._thread.start()
        assert ready.wait(5)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        assert not self._thread.is_alive()
        assert self.error is None

    async def _run(self, ready):
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: setattr(self, "error", context))
        self._stop = asyncio.Event()
        async with Door(self.path, self.serve):
            ready.set()
            await self._stop.wait()

    def merged(self):
        return Merged(
            round=self.accepted,
            digest=f"d{self.accepted}",
            record=record(self.accepted, f"d{self.accepted}"),
            settings=self.settings,
            ended="rounds" if self.accepted >= self.ends_after else "",
            failed=self.failed and self.accepted >= self.ends_after,
            before=self.record(self.accepted - 1) if self.accepted > 1 else None,
        )

    def record(self, number):
        return record(number, f"d{number}", scores=self.scored.get(number, {}))

    async def serve(self, visitor):
        while True:
            word, fd = await visitor.receive()
            self.heard.append(word)
            memory = None if fd is None else open_sealed(fd)
            try:
                if self.die_on is not None and isinstance(word, self.die_on[0]) and self.die_on[1] > 0:
                    self.die_on = (self.die_on[0], self.die_on[1] - 1)
                    return
                await self.answers.get(type(word), self.answer)(visitor, word, memory)
            finally:
                if memory is not None:
                    memory.close()

    async def answer(self, visitor, word, memory):
        match word:
            case Knock():
                await visitor.send(Terms(member="lyon", settings=self.settings, wanted=self.wanted))
            case Join():
                joined = Joined(
                    settings=self.settings,
                    round=self.accepted + 1,
                    digest=f"d{self.accepted}",
                    record=self.record(self.accepted) if self.accepted else None,
                    failed=self.failed and self.accepted >= self.ends_after,
                )
                if (word.round, word.digest) == (self.accepted, f"d{self.accepted}"):
                    await visitor.send(joined)
                else:
                    with sealed_model(self.value) as mine:
                        await visitor.send(joined, mine.fd)
            case Update():
                self.merge(word, memory)
                with sealed_model(self.value) as mine:
                    await visitor.send(self.merged(), mine.fd)
            case Wanted():
                self.unsettled -= 1
                if self.unsettled >= 0:
                    await visitor.send(Final(self.accepted, f"d{self.accepted}", settled=False, until_s=9.0))
                    return
                with sealed_model(self.value) as mine:
                    await visitor.send(Final(1, CARD.digest, settled=True, card=encode_card(CARD)), mine.fd)
            case Scored() | Finished() | Goodbye():
                await visitor.send(Noted(height=1))

    def merge(self, word, memory):
        if word.round == self.accepted + 1:
            _, data = read_arrays(memory, SCHEMA)
            self.value = float(np.frombuffer(data, np.float64, 1)[0]) + 1
            self.accepted += 1

    def said(self, kind):
        return [word for word in self.heard if isinstance(word, kind)]


@pytest.fixture
def node(tmp_path):
    with FakeNode(tmp_path / "s") as node:
        yield node


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection_module, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(connection_module, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(swarm_module, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(swarm_module, "GOODBYE_S", 0.2)


def train(arrays, by=1.0):
    for array in arrays.values():
        if array.dtype.kind == "f":
            np.add(array, by, out=array)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_study_is_trained_merged_scored_and_finished(node):
    mine = model()
    held = mine["w"]
    with konsil.join("aml", mine, node=node.path) as swarm:
        assert (swarm.member, swarm.round, swarm.digest, swarm.last) == ("lyon", 1, "d0", None)
        assert np.all(held == 10)
        merges = []
        for _ in range(4):
            train(mine)
            merges.append(swarm.step(examples=8))
        assert merges == [False, True, False, True]
        assert np.all(held == 16)
        assert mine["count"] == 7
        assert swarm.round == 3
        assert swarm.last.members == {"lyon": 20}
        assert swarm.last.absent == {"nantes": "silent"}
        swarm.score(examples=5, loss=0.5, auc=0.9)
    assert node.said(Knock) == [Knock(version=WALL_VERSION, study="aml", pid=os.getpid())]
    assert node.said(Update) == [
        Update(round=1, base="d0", examples=16),
        Update(round=2, base="d1", examples=16),
    ]
    assert node.said(Scored) == [Scored(round=2, examples=5, loss=0.5, metrics={"auc": 0.9})]
    assert node.said(Finished) == [Finished("inactive")]
    assert Progress(round=1, progress=0.5) in node.said(Progress)


def test_the_proposers_parameters_travel_only_when_wanted(node):
    brought = []

    async def keep(visitor, word, memory):
        brought.append(None if memory is None else bytes(memory.data))
        await node.answer(visitor, word, memory)

    node.answers[Join] = keep
    konsil.join("aml", model(3), node=node.path).close()
    node.wanted = True
    konsil.join("aml", model(3), node=node.path).close()
    with sealed_model(3) as expected:
        assert brought == [None, bytes(expected.data)]


def test_names_that_the_study_keeps_local_do_not_travel(node):
    node.settings = StudySettings(name="aml", every_steps=1, local=("b*",))
    schema = Schema.of({"w": model()["w"]})

    async def joined(visitor, word, memory):
        assert word.header == schema.header
        with seal_arrays(schema, {"w": np.ones((3, 2), np.float32)}) as mine:
            await visitor.send(Joined(settings=node.settings, round=1, digest="d0"), mine.fd)

    node.answers[Join] = joined
    mine = model(5)
    with konsil.join("aml", mine, node=node.path):
        assert np.all(mine["w"] == 1)
        assert np.all(mine["b"] == 5)


def test_when_the_study_is_over_steps_do_nothing_and_the_session_only_says_goodbye(node):
    node.ends_after = 1
    with konsil.join("aml", model(), node=node.path) as swarm:
        assert not swarm.finished
        assert [swarm.step(1), swarm.step(1), swarm.step(1), swarm.epoch()] == [False, True, False, False]
        assert swarm.finished
        assert swarm.ended == "rounds"
        swarm.score(examples=1, loss=1)
    assert node.said(Finished) == []
    assert len(node.said(Goodbye)) == 1


@pytest.mark.parametrize("after", ["active", "snapshot"])
def test_a_member_says_what_it_keeps_contributing(node, after):
    with konsil.join("aml", model(), node=node.path, after=after):
        pass
    assert node.said(Finished) == [Finished(after)]


def test_an_exception_in_training_says_goodbye_and_not_finished(node):
    with pytest.raises(ZeroDivisionError), konsil.join("aml", model(), node=node.path) as swarm:
        raise ZeroDivisionError
    assert node.said(Finished) == []
    assert len(node.said(Goodbye)) == 1
    with pytest.raises(StudyError, match="closed"):
        swarm.step(1)


def test_a_nan_is_refused_by_name_before_it_leaves_and_the_model_is_untouched(node):
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        mine["w"][1, 1] = np.nan
        swarm.step(1)
        with pytest.raises(NonFinite, match="'w'"):
            swarm.step(1)
        assert np.all(mine["b"] == 10)
        assert node.said(Update) == []
        mine["w"][1, 1] = 10
        assert swarm.step(1)


def test_a_model_that_changed_its_shape_is_refused_by_name(node):
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        mine["w"] = np.zeros((5, 5), np.float32)
        swarm.step(1)
        with pytest.raises(SchemaMismatch, match=r"'w' has shape \(5, 5\) instead of \(3, 2\)"):
            swarm.step(1)


def test_without_examples_a_due_round_says_what_to_do(node):
    node.settings = StudySettings(name="aml", every_epochs=1)
    with konsil.join("aml", model(), node=node.path) as swarm:
        with pytest.raises(ConfigError, match="no examples"):
            swarm.epoch()
        with pytest.raises(ConfigError, match="-1"):
            swarm.epoch(examples=-1)
        assert swarm.epoch(examples=5)


@pytest.mark.parametrize(
    ("settings", "merges"),
    [
        (StudySettings(name="aml", every_steps=3), [0, 0, 1, 0, 0]),
        (StudySettings(name="aml", every_epochs=1), [0, 1, 0, 1, 0]),
        (StudySettings(name="aml", every_minutes=1e-9), [1, 1, 1, 1, 1]),
    ],
)
def test_a_study_merges_by_steps_epochs_or_minutes(node, settings, merges):
    node.settings = settings
    found = []
    with konsil.join("aml", model(), node=node.path) as swarm:
        for number in range(5):
            merged = swarm.step(1)
            found.append(merged or (number % 2 == 1 and swarm.epoch()))
    assert found == [bool(each) for each in merges]


@pytest.mark.parametrize("kind", [Knock, Join, Update, Finished, Scored])
def test_a_node_that_dies_instead_of_answering_loses_nothing(node, kind):
    node.die_on = (kind, 3)
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        train(mine)
        assert [swarm.step(8), swarm.step(8)] == [False, True]
        assert np.all(mine["b"] == 12)
        swarm.score(examples=1, loss=1)
    assert node.die_on == (kind, 0)
    assert node.accepted == 1
    assert len(set(node.said(Update))) == 1
    assert node.said(Join)[-1].round in (-1, 0, 1)
    assert len(node.said(Finished)) >= 1


def test_a_node_that_restarts_while_training_goes_on_is_joined_again(tmp_path):
    mine = model()
    with FakeNode(tmp_path / "s") as first:
        swarm = konsil.join("aml", mine, node=tmp_path / "s")
    assert not swarm.step(4)
    with FakeNode(tmp_path / "s") as second:
        train(mine)
        assert swarm.step(4)
        assert np.all(mine["b"] == 12)
        assert second.said(Join) == [Join(header=SCHEMA.header, round=0, digest="d0")]
        assert second.said(Update) == [Update(round=1, base="d0", examples=8)]
        swarm.close()
    assert first.said(Update) == []


def test_a_round_that_was_accepted_while_the_node_was_restarting_is_loaded_and_not_trained_again(tmp_path):
    mine = model()
    with FakeNode(tmp_path / "s"):
        swarm = konsil.join("aml", mine, node=tmp_path / "s")
    with FakeNode(tmp_path / "s") as second:
        second.accepted, second.value = 3, 50.0
        assert swarm.step(4)
        assert swarm.round == 4
        assert swarm.last.round == 3
        assert np.all(mine["b"] == 50)
        assert [swarm.step(4), swarm.step(4)] == [False, True]
        assert second.said(Update) == [Update(round=4, base="d3", examples=8)]
        swarm.close()


def test_a_merge_that_comes_unasked_is_loaded_at_the_next_step(node):
    async def without_it(visitor, word, memory):
        if word.round == node.accepted + 1 and node.accepted == 0:
            node.accepted, node.value = 1, 77.0
            with sealed_model(77) as mine:
                await visitor.send(node.merged(), mine.fd)

    node.settings = StudySettings(name="aml", every_steps=1000)
    node.answers[Progress] = without_it
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        until = itertools.count()
        while not swarm.step(1):
            assert next(until) < 900
        assert swarm.round == 2
        assert np.all(mine["b"] == 77)


def test_a_node_that_has_not_yet_seen_the_old_connection_end_is_asked_again(node):
    busy = [Failed(kind="NodeBusy", code="", what="A training process is there.")] * 3

    async def still_busy(visitor, word, memory):
        if node.accepted == 1 and busy:
            await visitor.send(busy.pop())
            return
        await node.answer(visitor, word, memory)

    node.answers[Knock] = still_busy
    with konsil.join("aml", model(), node=node.path) as swarm:
        assert [swarm.step(1), swarm.step(1)] == [False, True]
        node.die_on = (Update, 1)
        assert [swarm.step(1), swarm.step(1)] == [False, True]
    assert busy == []


def test_a_second_session_is_told_at_once_that_the_node_is_busy(node):
    async def busy(visitor, word, memory):
        await visitor.send(Failed(kind="NodeBusy", code="", what="A training process is there."))

    node.answers[Knock] = busy
    with pytest.raises(NodeBusy, match="is there"):
        konsil.join("aml", model(), node=node.path)
    assert len(node.said(Knock)) == 1


def test_a_node_that_dies_at_every_join_is_given_up_in_the_end(node):
    node.die_on = (Join, 1000)
    with pytest.raises(NodeUnreachable, match="broke"):
        konsil.join("aml", model(), node=node.path, timeout_s=0.1)


def test_a_merge_that_this_session_holds_already_is_not_loaded_again(tmp_path):
    sent = threading.Event()

    async def twice(visitor, word, memory):
        if node.accepted == 1:
            with sealed_model(-5) as stale:
                for _ in range(2):
                    await visitor.send(node.merged(), stale.fd)
            sent.set()
        await node.answer(visitor, word, memory)

    async def always_with_a_model(visitor, word, memory):
        joined = Joined(settings=node.settings, round=node.accepted + 1, digest=f"d{node.accepted}")
        with sealed_model(node.value) as mine:
            await visitor.send(joined, mine.fd)

    before = open_descriptors()
    with FakeNode(tmp_path / "s") as node:
        node.settings = StudySettings(name="aml", every_steps=3)
        node.answers |= {Update: twice, Progress: twice, Join: always_with_a_model}
        mine = model()
        with konsil.join("aml", mine, node=node.path) as swarm:
            assert [swarm.step(1) for _ in range(3)] == [False, False, True]
            node.die_on = (Update, 1)
            train(mine)
            assert not swarm.step(1)
            assert sent.wait(5)
            assert [swarm.step(1) for _ in range(2)] == [False, True]
            assert np.all(mine["b"] == 13)
            assert swarm.round == 3
        assert len(node.said(Update)) == 3
    assert open_descriptors() == before


def test_a_node_that_stays_away_is_an_error_and_the_next_call_tries_again(tmp_path):
    mine = model()
    with FakeNode(tmp_path / "s"):
        swarm = konsil.join("aml", mine, node=tmp_path / "s", timeout_s=0.1)
    swarm.step(4)
    with pytest.raises(NodeUnreachable, match="No node answers"):
        swarm.step(4)
    with FakeNode(tmp_path / "s") as again:
        assert swarm.step(4)
        assert again.said(Update) == [Update(round=1, base="d0", examples=12)]
        swarm.close()


def test_no_node_at_all_is_a_clear_error(tmp_path):
    with pytest.raises(NodeUnreachable, match="konsil node start"):
        konsil.join("aml", model(), node=tmp_path / "s", timeout_s=0.05)


def test_a_merge_that_does_not_come_in_time_is_an_error_and_may_still_come(node):
    first = [True]

    async def late(visitor, word, memory):
        if first.pop() if first else False:
            await visitor.send(Waiting(round=1, stage="collecting", missing=("nantes",), until_s=9))
            return
        await node.answer(visitor, word, memory)

    node.answers[Update] = late
    seen = []
    with konsil.join("aml", model(), node=node.path, timeout_s=0.1, on_waiting=seen.append) as swarm:
        swarm.step(1)
        with pytest.raises(StudyError, match="no answer in time"):
            swarm.step(1)
        assert [waiting.missing for waiting in seen] == [("nantes",)]
        assert swarm.step(1)


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        (Failed(kind="StudyError", code="", what="No study 'aml'.", do="Agree to it."), StudyError),
        (Failed(kind="NodeError", code="", what="Wall version 9 is not mine."), NodeError),
        (Failed(kind="Refused", code="not_in_study", what="You are not in it."), Refused),
    ],
)
def test_why_the_node_refuses_is_raised_as_the_error_that_it_is(node, failed, kind):
    async def refuse(visitor, word, memory):
        await visitor.send(failed)

    node.answers[Knock] = refuse
    with pytest.raises(kind, match=failed.what.split()[0]):
        konsil.join("aml", model(), node=node.path)


def a_study_of_another_model():
    return seal_arrays(Schema.of({"v": np.ones(3)}), {"v": np.ones(3)})


def a_cut_model():
    with sealed_model(1) as whole:
        return seal_pieces([bytes(whole.data[:-8])])


def a_stretched_model():
    with sealed_model(1) as whole:
        return seal_pieces([bytes(whole.data) + b"12345678"])


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (a_study_of_another_model, SchemaMismatch),
        (a_cut_model, ParametersError),
        (a_stretched_model, ParametersError),
        (lambda: seal_pieces([b"\xff" * 100]), ParametersError),
        (lambda: seal_pieces([b"1"]), ParametersError),
        (lambda: seal_pieces([(20).to_bytes(8, "little") + b"{}                  "]), ParametersError),
    ],
)
def test_a_merge_that_is_not_what_it_must_be_is_not_loaded_and_leaves_no_descriptor(tmp_path, make, kind):
    async def wrong(visitor, word, memory):
        node.accepted = 1
        with make() as other:
            await visitor.send(node.merged(), other.fd)

    before = open_descriptors()
    with FakeNode(tmp_path / "s") as node:
        node.answers[Update] = wrong
        mine = model()
        with konsil.join("aml", mine, node=node.path) as swarm:
            swarm.step(1)
            with pytest.raises(kind):
                swarm.step(1)
            assert np.all(mine["b"] == 10)
    assert open_descriptors() == before


def test_an_unsealed_merge_is_not_loaded(node):
    async def unsealed(visitor, word, memory):
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(fd, b"0123456789")
        await visitor.send(node.merged(), fd)
        os.close(fd)

    node.answers[Update] = unsealed
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        swarm.step(1)
        with pytest.raises(FrameError, match="can still be changed"):
            swarm.step(1)
        assert np.all(mine["b"] == 10)


def test_a_merge_without_its_descriptor_is_an_error(node):
    async def empty(visitor, word, memory):
        await visitor.send(node.merged())

    node.answers[Update] = empty
    with konsil.join("aml", model(), node=node.path) as swarm:
        swarm.step(1)
        with pytest.raises(NodeError, match="did not hand it over"):
            swarm.step(1)


def test_a_node_whose_ledger_is_behind_is_an_error(tmp_path):
    with FakeNode(tmp_path / "s") as first:
        first.accepted = 5
        swarm = konsil.join("aml", model(), node=tmp_path / "s", timeout_s=1)
    with FakeNode(tmp_path / "s"), pytest.raises(NodeError, match="behind"):
        swarm.step(1)
    swarm.leave()


def test_scores_must_be_finite_and_of_a_merge(node):
    with konsil.join("aml", model(), node=node.path) as swarm:
        with pytest.raises(StudyError, match="no merge to score"):
            swarm.score(examples=5, loss=1)
        swarm.step(1)
        swarm.step(1)
        with pytest.raises(ConfigError, match="auc"):
            swarm.score(examples=5, auc=float("nan"))
        with pytest.raises(ConfigError, match="0 examples"):
            swarm.score(examples=0, loss=1)
    assert node.said(Scored) == []


def test_two_hundred_rounds_leave_no_descriptor_open(tmp_path):
    before = open_descriptors()
    with FakeNode(tmp_path / "s") as node:
        node.settings = StudySettings(name="aml", every_steps=1)
        node.ends_after = 1000
        with konsil.join("aml", model(), node=node.path) as swarm:
            assert all(swarm.step(1) for _ in range(200))
    assert node.accepted == 200
    assert open_descriptors() == before


def test_a_training_process_that_is_killed_leaves_nothing_behind(node, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal, sys, tempfile
        import numpy as np, konsil
        tempfile.tempdir = {str(tmp_path / "tmp")!r}
        model = {{"w": np.zeros((3, 2), np.float32), "b": np.zeros(4)}}
        swarm = konsil.join("aml", model, node={str(node.path)!r}, timeout_s=20)
        swarm.step(1)
        swarm.step(1)
    """)
    (tmp_path / "tmp").mkdir()
    gone = threading.Event()
    pid = []

    async def kill(visitor, word, memory):
        os.kill(visitor.credentials.pid, 9)
        pid.append(visitor.credentials.pid)
        with pytest.raises(ConnectionError):
            await visitor.receive()
        gone.set()
        raise ConnectionResetError

    node.answers[Update] = kill
    done = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert done.returncode == -9
    assert gone.wait(5)
    assert list((tmp_path / "tmp").iterdir()) == []
    with konsil.join("aml", model(), node=node.path) as swarm:
        assert swarm.round == 1


def test_the_socket_is_found_by_argument_environment_or_home(monkeypatch, tmp_path):
    monkeypatch.delenv("KONSIL_SOCKET", raising=False)
    monkeypatch.delenv("KONSIL_DIR", raising=False)
    assert place_module.socket_path() == Path.home() / ".konsil" / "session.sock"
    monkeypatch.setenv("KONSIL_DIR", "/srv/konsil")
    assert place_module.socket_path() == Path("/srv/konsil/session.sock")
    monkeypatch.setenv("KONSIL_SOCKET", "/run/konsil.sock")
    assert place_module.socket_path() == Path("/run/konsil.sock")
    assert place_module.socket_path(tmp_path) == tmp_path / "session.sock"
    assert place_module.socket_path("/other.sock") == Path("/other.sock")


# --- after a merge -------------------------------------------------------------------------------


def test_each_merge_is_evaluated_before_training_goes_on_and_its_scores_go_on_the_ledger(node):
    seen = []

    def evaluate(trained):
        seen.append(float(trained["b"][0]))
        return {"examples": 5, "loss": 0.5, "auc": np.float32(0.75), "f1": None}

    mine = model()
    with konsil.join("aml", mine, node=node.path, evaluate=evaluate) as swarm:
        assert seen == []  # the initial parameters are nobody's merge
        for _ in range(4):
            train(mine)
            swarm.step(1)
    assert seen == [13.0, 16.0]
    assert node.said(Scored) == [Scored(number, 5, 0.5, {"auc": 0.75}) for number in (1, 2)]
    kinds = [type(word) for word in node.heard]
    assert kinds.index(Scored) == kinds.index(Update) + 1


def test_a_merge_that_is_there_at_joining_is_evaluated_unless_it_was_before(node):
    node.accepted = 2
    calls = []

    def evaluate(_):
        calls.append(1)
        return {"examples": 1, "loss": 0.5}

    konsil.join("aml", model(), node=node.path, evaluate=evaluate).close()
    node.scored = {2: {"lyon": ScoreRecord(1, 0.5)}}
    konsil.join("aml", model(), node=node.path, evaluate=evaluate).close()
    assert len(calls) == 1
    assert [word.round for word in node.said(Scored)] == [2]


class Reaching:
    """A learner that reaches into its training, and says when it lets go."""

    def __init__(self):
        self.arrays = {name: array for name, array in model().items() if name != "count"}
        self.ended = 0

    def parameters(self):
        return self.arrays

    def load(self, arrays):
        for name, values in arrays.items():
            np.copyto(self.arrays[name], values)

    def end(self):
        self.ended += 1


def test_a_join_that_fails_lets_the_training_go(node):
    node.accepted = 1
    mine = Reaching()
    with pytest.raises(ZeroDivisionError):
        konsil.join("aml", mine, node=node.path, evaluate=lambda _: 1 / 0)
    assert mine.ended == 1
    assert len(node.said(Goodbye)) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("way", ["close", "leave"])
def test_a_session_that_ends_leaves_no_line_behind(node, monkeypatch, way):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    swarm = konsil.join("aml", model(), node=node.path)
    swarm.step(1)
    assert "training [" in terminal.getvalue().rsplit("\x1b[K", 1)[-1]
    getattr(swarm, way)()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_an_evaluation_that_fails_leaves_the_study_properly(node):
    node.settings = StudySettings(name="aml", every_steps=1)
    with (
        pytest.raises(ZeroDivisionError),
        konsil.join("aml", model(), node=node.path, evaluate=lambda _: 1 / 0) as swarm,
    ):
        swarm.step(1)
    assert len(node.said(Goodbye)) == 1
    assert node.said(Finished) == []


@pytest.mark.parametrize(
    ("gives", "complaint"),
    [
        (0.5, "gave float, not a mapping with `examples`"),
        ({"loss": 0.5}, "not a mapping with `examples`"),
        ({"examples": 5, "loss": float("nan")}, "loss"),
        ({"examples": 0, "loss": 0.5}, "0 examples"),
        ({"examples": 5.5, "loss": 0.5}, "5.5 examples"),
        ({"examples": None, "loss": 0.5}, "not a mapping with `examples`"),
        ({"examples": 5, "auc": "high"}, "no number"),
    ],
)
def test_an_evaluation_that_gives_no_scores_is_named(node, gives, complaint):
    with konsil.join("aml", model(), node=node.path, evaluate=lambda _: gives) as swarm:
        swarm.step(1)
        with pytest.raises(ConfigError, match=complaint):
            swarm.step(1)
    assert node.said(Scored) == []


def test_scores_that_are_not_defined_are_not_said_and_training_goes_on(node):
    gives = iter([{"examples": 5, "loss": None, "auc": None}, {"examples": np.float64(5), "loss": 0.5}])
    with konsil.join("aml", model(), node=node.path, evaluate=lambda _: next(gives)) as swarm:
        assert [swarm.step(1) for _ in range(4)] == [False, True, False, True]
    assert node.said(Scored) == [Scored(2, 5, 0.5)]


def half(_):
    return {"examples": 1, "loss": 0.5}


def test_training_goes_on_while_scores_wait_for_a_node_that_is_away(tmp_path):
    with FakeNode(tmp_path / "s") as first:
        first.die_on = (Scored, 10**6)
        swarm = konsil.join("aml", model(), node=tmp_path / "s", evaluate=half)
        assert [swarm.step(1), swarm.step(1), swarm.step(1)] == [False, True, False]
    with FakeNode(tmp_path / "s") as second:
        second.accepted, second.value = 1, 11.0
        swarm.step(1)
        assert second.said(Scored) == [Scored(1, 1, 0.5), Scored(2, 1, 0.5)]
        swarm.close()


def test_a_step_costs_little_while_scores_wait_for_a_node_that_does_not_answer(node, monkeypatch):
    monkeypatch.setattr(connection_module, "BRIEF_S", 0.05)
    node.settings = StudySettings(name="aml", every_steps=1000)
    node.accepted = 1
    node.die_on = (Scored, 10**6)

    async def nothing(visitor, word, memory):
        return

    swarm = konsil.join("aml", model(), node=node.path, evaluate=half)
    node.answers[Knock] = nothing
    begun_s = time.monotonic()
    assert [swarm.step(1), swarm.step(1)] == [False, False]
    assert time.monotonic() - begun_s < 0.8
    node.answers.clear()
    node.die_on = None
    swarm.step(1)
    assert node.said(Scored)[-1] == Scored(1, 1, 0.5)
    swarm.close()


@pytest.mark.parametrize("last", [Finished, Wanted])
def test_scores_that_still_wait_at_the_end_are_said_before_the_last_words(node, tmp_path, last):
    node.die_on = (Scored, 2)
    with konsil.join("aml", model(), node=node.path, evaluate=half) as swarm:
        assert [swarm.step(1), swarm.step(1)] == [False, True]
        if last is Wanted:
            swarm.save(tmp_path / "aml.safetensors")
    kinds = [type(word) for word in node.heard]
    assert kinds.count(Scored) == 3
    assert Scored not in kinds[kinds.index(last) :]


def test_scores_that_a_script_says_wait_for_the_node_as_long_as_everything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(swarm_module, "SETTLE_S", 0.1)
    with FakeNode(tmp_path / "s"):
        swarm = konsil.join("aml", model(), node=tmp_path / "s")
        assert [swarm.step(1), swarm.step(1)] == [False, True]
    second = FakeNode(tmp_path / "s")
    second.accepted, second.value = 1, 11.0
    back = threading.Timer(0.4, second.__enter__)
    back.start()
    try:
        swarm.score(examples=1, loss=0.5)
    finally:
        back.join()
        swarm.close()
        second.__exit__()
    assert second.said(Scored) == [Scored(1, 1, 0.5)]


def test_a_session_knows_whether_it_has_scored_the_last_merge(node):
    node.accepted, node.scored = 2, {2: {"lyon": ScoreRecord(5, 0.5)}}
    with konsil.join("aml", model(), node=node.path) as swarm:
        assert swarm.scored_last
        assert (swarm.step(1), swarm.step(1)) == (False, True)
        assert not swarm.scored_last
        swarm.score(examples=5, auc=0.75)
        assert swarm.scored_last
    with konsil.join(
        "aml", model(), node=node.path, evaluate=lambda _: {"examples": 5, "auc": 0.75}
    ) as swarm:
        assert (swarm.step(1), swarm.step(1)) == (False, True)
        assert swarm.scored_last


def test_own_scores_take_the_place_of_no_other_figure(node):
    own = {"examples": 5, "round": 91, "members": 92, "absent": 93, "round_s": 94, "mean_loss": 95}
    with konsil.join("aml", model(), node=node.path, evaluate=lambda _: own) as swarm:
        swarm.step(1)
        swarm.step(1)
        assert swarm.figures == {
            "konsil/round": 1,
            "konsil/members": 1,
            "konsil/absent": 1,
            "konsil/examples": 20,
            "konsil/round_s": 2,
            "konsil/own_round": 91,
            "konsil/own_members": 92,
            "konsil/own_absent": 93,
            "konsil/own_round_s": 94,
            "konsil/own_mean_loss": 95,
        }


def test_whoever_follows_the_rounds_is_called_with_figures_after_the_evaluation(node):
    seen, also = [], []
    node.scored = {1: {"lyon": ScoreRecord(5, 0.5), "nantes": ScoreRecord(900, 9.0)}}

    def follow(swarm):
        seen.append((swarm.figures, None if swarm.before is None else swarm.before.means))

    with konsil.join(
        "aml",
        model(),
        node=node.path,
        evaluate=lambda _: {"examples": 5, "auc": 0.75},
        on_round=[follow, lambda swarm: also.append(swarm.last.round)],
    ) as swarm:
        assert swarm.figures == {}
        for _ in range(4):
            swarm.step(1)
    assert also == [1, 2]
    figures = {"members": 1, "absent": 1, "examples": 20, "round_s": 2, "own_auc": 0.75}
    assert seen[0][0] == {f"konsil/{name}": value for name, value in figures.items()} | {"konsil/round": 1}
    assert seen[0][1] is None
    assert seen[1][1] == {"loss": 0.5}  # nantes was not on the roster


def test_the_final_model_is_saved_with_its_card_once_it_is_settled(node, tmp_path):
    node.ends_after, node.unsettled = 1, 2
    seen = []
    with konsil.join("aml", model(), node=node.path, on_waiting=seen.append, progress=False) as swarm:
        swarm.step(1)
        swarm.step(1)
        saved = swarm.save(tmp_path / "aml.safetensors")
    assert (saved.round, saved.final, saved.digest) == (1, True, CARD.digest)
    assert saved.page == tmp_path / "aml.card.md"
    assert len(node.said(Wanted)) == 3
    found = safetensors.numpy.load_file(saved.path)
    assert np.all(found["b"] == node.value)
    assert "| 1 | 0.25 | - |" in saved.page.read_text()  # lyon was not on that roster: no mean


def test_a_final_model_that_is_not_settled_in_time_is_an_error_and_nothing_is_written(node, tmp_path):
    node.ends_after, node.unsettled = 1, 10**9
    with konsil.join("aml", model(), node=node.path, timeout_s=0.1) as swarm:
        swarm.step(1)
        swarm.step(1)
        with pytest.raises(StudyError, match="not settled"):
            swarm.save(tmp_path / "aml.safetensors")
    assert list(tmp_path.glob("aml*")) == []


# --- the local state -----------------------------------------------------------------------------


def local_study(node):
    """The FakeNode's study with 'b' local: its words carry only 'w'."""
    node.settings = StudySettings(name="aml", every_steps=1, local=("b",))
    schema = Schema.of({"w": model()["w"]})

    async def joined(visitor, word, memory):
        done = record(node.accepted, f"d{node.accepted}") if node.accepted else None
        words = Joined(node.settings, node.accepted + 1, f"d{node.accepted}", done)
        with seal_arrays(schema, {"w": np.full((3, 2), node.accepted, np.float32)}) as mine:
            await visitor.send(words, mine.fd)

    async def updated(visitor, word, memory):
        node.accepted += 1
        merged = Merged(node.accepted, f"d{node.accepted}", node.record(node.accepted), node.settings)
        with seal_arrays(schema, {"w": np.full((3, 2), node.accepted, np.float32)}) as mine:
            await visitor.send(merged, mine.fd)

    node.answers |= {Join: joined, Update: updated}


def test_a_script_that_is_started_again_has_its_local_parameters_and_counters(node, tmp_path):
    local_study(node)
    mine = model(5)
    swarm = konsil.join("aml", mine, node=node.path, resume=tmp_path / "state")
    for _ in range(3):
        train(mine)
        mine["count"] += 1
        assert swarm.step(1)
    train(mine)  # what was trained since the last merge is lost with the process
    mine["count"] += 1
    swarm.leave()  # so that the node takes the next one

    again = model(0)
    with konsil.join("aml", again, node=node.path, resume=tmp_path / "state") as swarm:
        assert swarm.round == 4
        assert np.all(again["w"] == 3)
        assert np.all(again["b"] == 8)
        assert again["count"] == 10
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["aml.lyon.resume.safetensors"]
    safetensors.numpy.load_file(
        tmp_path / "state" / "aml.lyon.resume.safetensors"
    )  # no pickle: anybody reads it


def _one_round(node, place, mine):
    with konsil.join("aml", mine, node=node.path, resume=place) as swarm:
        swarm.step(1)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged: its arrays"),
        (lambda _: b"", "damaged"),
        (
            lambda data: data.replace(b'\\"member\\":\\"lyon\\"', b'\\"member\\":\\"lyom\\"'),
            "belongs to member 'lyom'",
        ),
        (lambda data: data.replace(b'\\"round\\":1', b'\\"round\\":9'), "written after round 9"),
        (
            lambda data: data.replace(b'\\"digest\\":\\"d1\\"', b'\\"digest\\":\\"d7\\"'),
            "written after round 1 .d7.",
        ),
        (lambda data: data.replace(b'"held/b"', b'"held/c"'), "'b' is missing"),
    ],
)
def test_a_damaged_or_foreign_local_state_is_named_and_not_written_over(node, tmp_path, spoil, complaint):
    local_study(node)
    place = tmp_path / "mine.safetensors"
    _one_round(node, place, model())
    spoilt = spoil(place.read_bytes())
    assert spoilt != place.read_bytes()
    place.write_bytes(spoilt)
    with pytest.raises(ConfigError, match=complaint):
        _one_round(node, place, model())
    assert place.read_bytes() == spoilt


def test_a_local_state_of_an_earlier_round_is_taken_for_the_study_went_on(node, tmp_path):
    local_study(node)
    place = tmp_path / "mine.safetensors"
    mine = model(1)
    _one_round(node, place, mine)
    node.accepted = 7
    again = model(0)
    with konsil.join("aml", again, node=node.path, resume=place):
        assert np.all(again["w"] == 7)
        assert np.all(again["b"] == 1)


def test_a_disk_that_refuses_the_local_state_says_so(node, tmp_path):
    local_study(node)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be"):
        _one_round(node, tmp_path / "file" / "state", model())


class Unreadable:
    """A learner of a framework that has lost its session."""

    def parameters(self):
        raise RuntimeError("CUDA error: an illegal memory access")

    def load(self, _arrays):
        raise AssertionError


def test_a_learner_whose_parameters_cannot_be_read_is_named_before_anything_is_sent(node):
    with pytest.raises(ConfigError, match="cannot be read: RuntimeError: CUDA error") as caught:
        konsil.join("aml", Unreadable(), node=node.path)
    assert "Unreadable" in caught.value.do
    assert node.said(Join) == []


class Ended:
    """A learner that notes when it is let go."""

    def __init__(self):
        self.arrays, self.ended = model(), 0

    def parameters(self):
        return self.arrays

    def load(self, arrays):
        for name, values in arrays.items():
            np.copyto(self.arrays[name], values)

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("how", ["close", "leave"])
def test_nothing_of_konsil_stays_in_the_training_once_a_session_is_over(node, how):
    learner = Ended()
    swarm = konsil.join("aml", learner, node=node.path)
    assert learner.ended == 0
    getattr(swarm, how)()
    assert learner.ended == 1


class Observed(Ended):
    """A learner with one step of preprocessing, which its first merge fits."""

    seen = 0

    def observe(self, _data, weight):
        self.seen += 1
        return self.seen < 2 and weight == 1


def test_preprocessing_is_fitted_by_merges_in_which_everyone_counts_once(node):
    learner = Observed()
    with konsil.join("aml", learner, node=node.path) as swarm:
        swarm.fit_preprocessing(None)
        assert (swarm.last.round, learner.seen) == (1, 2)
    assert [word.examples for word in node.said(Update)] == [1]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"outer": Outer()}, "would step on sums"),
        ({"rule": "norm_clipping"}, "merges by 'norm_clipping', which limits how far"),
        ({"rule": "bounded", "rule_digest": "a" * 64}, "the rule 'bounded' from a file"),
    ],
    ids=["outer", "around the base", "from a file"],
)
def test_preprocessing_is_not_fitted_where_sums_would_not_be_merged_as_sums(node, settings, complaint):
    node.settings = StudySettings(name="aml", every_steps=2, rounds=5, **settings)
    learner = Observed()
    with (
        konsil.join("aml", learner, node=node.path) as swarm,
        pytest.raises(ConfigError, match=complaint),
    ):
        swarm.fit_preprocessing(None)
    assert learner.seen == 0
    assert node.said(Update) == []


@pytest.mark.parametrize("bad", [3.5, "4", None, -1])
def test_what_is_no_number_of_examples_is_said_and_not_counted(node, bad):
    with konsil.join("aml", model(), node=node.path) as swarm:
        with pytest.raises(ConfigError, match="no whole number"):
            swarm.step(bad)
        assert [swarm.step(np.int64(3)), swarm.step(np.uint8(4))] == [False, True]
    assert node.said(Update)[0].examples == 7


def test_a_study_that_fails_raises_once_its_last_merge_is_loaded(node):
    node.ends_after, node.failed = 1, True
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        train(mine)
        swarm.step(1)
        with pytest.raises(StudyError, match="has failed: rounds"):
            swarm.step(1)
        assert np.all(mine["b"] == 12)
        assert swarm.finished
        assert swarm.step(1) is False
    with pytest.raises(StudyError, match="has failed"):
        konsil.join("aml", model(), node=node.path)


def test_a_second_score_of_a_round_and_a_name_that_is_none_are_said_here(node):
    with konsil.join("aml", model(), node=node.path) as swarm:
        swarm.step(1)
        swarm.step(1)
        with pytest.raises(ConfigError, match="cannot name a metric"):
            swarm.score(examples=3, **{"auc (val)": 0.6})
        swarm.score(examples=3, loss=0.5)
        with pytest.raises(StudyError, match="is scored already"):
            swarm.score(examples=3, auc=0.9)
        assert "konsil/own_auc" not in swarm.figures
        swarm.step(1)
        swarm.step(1)
        swarm.score(examples=3, auc=0.9)
    assert [(word.round, word.loss, word.metrics) for word in node.said(Scored)] == [
        (1, 0.5, {}),
        (2, None, {"auc": 0.9}),
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"after": "snapshots"}, "'snapshot'"), ({"evaluate": 3}, "cannot be called")],
)
def test_what_is_used_at_the_end_is_looked_at_before_the_beginning(node, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        konsil.join("aml", model(), node=node.path, **options)
    assert node.heard == []


def test_a_nan_is_said_with_the_way_back_to_the_last_merge(node):
    mine = model()
    with konsil.join("aml", mine, node=node.path) as swarm:
        mine["b"][1] = np.nan
        swarm.step(1)
        with pytest.raises(NonFinite, match="leave the `with` and join again") as caught:
            swarm.step(1)
    assert caught.value.fields["name"] == "b"
    mine = model()
    with konsil.join("aml", mine, node=node.path):
        assert np.all(mine["b"] == 10)


class Counting(Observed):
    """A learner that says how many rounds its preprocessing takes."""

    needs = 3

    @property
    def rounds_to_fit(self):
        return self.needs - self.seen

    @property
    def fitted(self):
        return self.rounds_to_fit == 0

    def observe(self, _data, _weight):
        if self.fitted:
            return False
        self.seen += 1
        return True


def test_preprocessing_that_takes_more_rounds_than_are_left_is_not_begun(node):
    node.settings = StudySettings(name="aml", every_steps=2, rounds=5)
    node.accepted = 3
    with pytest.raises(StudyError, match="takes 3 rounds more, one for each mean, and the study has 2 left"):
        konsil.join("aml", Counting(), node=node.path, preprocessing=[1])
    assert node.said(Update) == []


def test_preprocessing_may_take_all_rounds_that_are_left(node):
    node.settings = StudySettings(name="aml", every_steps=2, rounds=3)
    node.ends_after = 3
    with konsil.join("aml", Counting(), node=node.path, preprocessing=[1]) as swarm:
        assert (swarm.finished, swarm.last.round) == (True, 3)


def test_a_study_that_ends_before_the_preprocessing_is_fitted_says_so(node):
    node.ends_after = 2
    with pytest.raises(
        StudyError, match="over before the preprocessing was fitted together: rounds"
    ) as caught:
        konsil.join("aml", Counting(), node=node.path, preprocessing=[1])
    assert "cannot be used" in caught.value.safe
    assert len(node.said(Update)) == 2
