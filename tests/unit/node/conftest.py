"""Models, and nodes on a network in memory: real stores, pullers, benches and services without processes."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from konsil.core.digest import group_digest, part_range, root_from
from konsil.core.merge import Rule, merge_chunk, mixing, sum_grams
from konsil.core.merge import gram_chunk as gram_of_chunk
from konsil.core.messages import decode_request
from konsil.core.parameters import Schema, pack
from konsil.core.rules import BUILT_IN_RULES, Commitment, OpenRound, Part, StudySettings
from konsil.node.bench import Bench
from konsil.node.gather import Roster
from konsil.node.peers import Peers
from konsil.node.pull import Puller
from konsil.node.rules import built_in
from konsil.node.service import Service
from konsil.node.store import Assembly, Model, Store, model_of
from konsil.transport.base import PeerAddress, Reply
from konsil.transport.memory import MemoryNetwork, MemoryTransport
from konsil.wall.memory import seal_pieces

ELEMENTS = 2_500_000
"""Three chunks of float32, and a little float64 at their beginning."""


def arrays(seed: float, elements: int = ELEMENTS) -> dict[str, np.ndarray[Any, Any]]:
    values = np.random.default_rng(int(seed * 1000)).standard_normal(2000)
    return {
        "weights": np.resize(values, elements).astype(np.float32) * np.float32(seed),
        "bias": values[:5] + seed,
    }


def schema(elements: int = ELEMENTS) -> Schema:
    return Schema.of(arrays(0, elements))


def model(seed: float, elements: int = ELEMENTS, **changes: Any) -> Model:
    named = arrays(seed, elements)
    for name, (index, value) in changes.items():
        named[name][index] = value
    layout = Schema.of(named)
    data = bytearray(layout.data_bytes)
    pack(layout, named, memoryview(data))
    return model_of(seal_pieces([layout.header, bytes(data)]), layout)


class Hospital:
    """One member's store, puller and service on the network."""

    def __init__(self, name: str, network: MemoryNetwork) -> None:
        self.name = name
        self.store = Store()
        self.bench: Bench | None = None
        self.study: Any = SimpleNamespace(open=None, history=(), ended="")
        self.hidden: set[str] = set()
        self.runner = SimpleNamespace(
            store=self.store, study=self.study, heartbeats=self, may_read=self.may_read, shelf=self
        )
        self.beats: list[Any] = []
        self.cards: dict[str, bytes] = {}
        self.service = Service(name, lambda: {"aml": self.runner}, self.cards.get)
        self.lies: dict[type, bytes] = {}
        self.asked: list[tuple[str, Any]] = []
        self.transport = MemoryTransport(name, self.answer, network)
        self.peers = Peers(self.transport)
        self.service.peers = self.peers
        self.puller = Puller(name, self.peers, "aml")

    async def answer(self, peer: str, message: bytes) -> Reply:
        request = decode_request(message)
        self.asked.append((peer, request))
        reply = await self.service.answer(peer, message)
        lie = self.lies.get(type(request))
        return Reply(reply.message, lie[: len(reply.body)]) if lie is not None and reply.body else reply

    def may_read(self, _peer: str, digest: str) -> bool:
        return digest not in self.hidden

    async def recall(self, _digest: str) -> bool:
        return False  # nothing is on this hospital's disk

    def heard(self, peer: str, beat: Any) -> None:
        self.beats.append((peer, beat))


@dataclass
class Swarm:
    """Hospitals that all know each other, each with its update of one round."""

    rule: str = "mean"
    elements: int = ELEMENTS
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    hospitals: dict[str, Hospital] = field(default_factory=dict)
    updates: dict[str, Model] = field(default_factory=dict)
    base: Model | None = None
    own_rule: Rule | None = None

    def join(self, *names: str, dial_only: tuple[str, ...] = ()) -> None:
        for name in names:
            self.hospitals[name] = Hospital(name, self.network)
        known = [
            PeerAddress(
                name, f"spiffe://{name}.example/node", () if name in dial_only else (f"{name}:1",), b""
            )
            for name in self.hospitals
        ]
        for hospital in self.hospitals.values():
            hospital.transport.set_peers(known)

    def begin_from(self, base: Model, *names: str) -> None:
        """The model that the round started from, held by these hospitals."""
        self.base = base
        for name in names:
            self.hospitals[name].store.add_model(base)

    def commit(self, name: str, update: Model) -> None:
        self.updates[name] = update
        self.hospitals[name].store.add_model(update)

    def open(self, *, attempt: int = 1, n_parts: int = 0) -> OpenRound:
        names = tuple(sorted(self.updates))
        n_parts = n_parts or min(3, len(names))
        order = names[attempt - 1 :] + names[: attempt - 1]
        opened = OpenRound(
            1, attempt, "merging", self.base.digest if self.base else "0" * 64, 0, 0, 0,
            commits={name: Commitment(self.updates[name].digest, 1 + number, 0) for number, name in enumerate(names)},
            roster=names,
            parts=tuple(Part(order[number % len(names)]) for number in range(n_parts)),
        )  # fmt: skip
        for hospital in self.hospitals.values():
            hospital.study.open = opened
        return opened

    def roster(self, opened: OpenRound, audit_fraction: float = 1.0) -> Roster:
        options = {"f": 1.0} if self.rule == "trimmed_mean" else {}
        rule_digest = "" if self.rule in BUILT_IN_RULES else "ab" * 32
        settings = StudySettings(
            "aml",
            every_steps=1,
            rule=self.rule,
            rule_options=options,
            rule_digest=rule_digest,
            audit_fraction=audit_fraction,
        )
        commits = opened.commits
        return Roster(
            "aml",
            opened.number,
            opened.roster,
            tuple(commits[name].digest for name in opened.roster),
            tuple(commits[name].examples for name in opened.roster),
            settings,
            len(opened.parts),
            opened.base,
        )

    def bench(self, name: str, opened: OpenRound, *, grace_s: float = 0.0, **options: Any) -> Bench:
        hospital = self.hospitals[name]
        roster = self.roster(opened, **options)
        hospital.bench = Bench(
            roster,
            schema(self.elements),
            name,
            hospital.puller,
            hospital.store,
            grace_s=grace_s,
            find_rule=lambda chosen: self.own_rule or built_in(chosen),
        )
        return hospital.bench

    def truth(self, opened: OpenRound) -> tuple[bytes, tuple[str, ...], str]:
        """The merge made in one place: its data, its parts' digests and its own."""
        layout, roster = schema(self.elements), self.roster(opened)
        how = self.own_rule or built_in(roster.settings)
        updates = [self.updates[name] for name in roster.members]
        n_chunks = len(updates[0].manifest.leaves)
        out = bytearray(layout.data_bytes)
        spans = [(index, i * 4 * 1024 * 1024) for index, i in enumerate(range(n_chunks))]
        coefficients = None
        if how.mix is not None:
            grams = []
            for number in range(roster.n_parts):
                chunks = part_range(number, roster.n_parts, n_chunks)
                made = [self._gram(layout, updates, index) for index in chunks]
                grams.append(sum_grams(made))
            coefficients = mixing(how, sum_grams(grams), roster.weights)
        for index, start in spans:
            chunks = [update.chunk(index) for update in updates]
            stop = start + len(chunks[0])
            target = memoryview(out)[start:stop]
            base = self.base.chunk(index) if self.base and how.around_base else None
            merge_chunk(how, layout.runs(start, stop), chunks, roster.weights, target, coefficients, base)
        merged = model_of(seal_pieces([layout.header, bytes(out)]), layout)
        leaves = merged.manifest.leaves
        parts = tuple(
            group_digest([leaves[index] for index in part_range(number, roster.n_parts, n_chunks)])
            for number in range(roster.n_parts)
        )
        merged.memory.close()
        return bytes(out), parts, root_from(layout.digest, parts)

    def _gram(self, layout: Schema, updates: list[Model], index: int) -> Any:
        start = index * 4 * 1024 * 1024
        chunks = [update.chunk(index) for update in updates]
        base = self.base.chunk(index) if self.base and self.rule == "norm_clipping" else None
        return gram_of_chunk(layout.runs(start, start + len(chunks[0])), chunks, base)

    async def close(self) -> None:
        for hospital in self.hospitals.values():
            await hospital.transport.close()
            if hospital.bench is not None:
                hospital.bench.close()
            hospital.store.close()


def open_files() -> int:
    """How many descriptors this process holds; what earlier tests left to the collector is none of them."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class Make:
    """What the tests of this folder build with."""

    open_files = staticmethod(open_files)

    model = staticmethod(model)
    schema = staticmethod(schema)
    Swarm = Swarm
    Assembly = Assembly


@pytest.fixture
def make():
    return Make


@pytest.fixture
async def swarm():
    """Four hospitals on the network; each has committed its update."""
    made = Swarm()
    made.join("a", "b", "c", "d")
    for number, name in enumerate("abcd", start=1):
        made.commit(name, model(number))
    yield made
    await made.close()
