"""A swarm of four under the contract, and short words for what its members do."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Accept,
    Agree,
    Call,
    Commit,
    Enter,
    Genesis,
    Initialise,
    MemberRecord,
    OpenRound,
    ProposeStudy,
    Publish,
    State,
    Study,
    StudySettings,
    SwarmSettings,
    Tick,
    apply,
    initial_state,
    settings_digest,
    state_digest,
)
from konsil.errors import Refused

START_S = 1_000_000
MIB = 1024 * 1024


def digest(text: object) -> str:
    return bytes_digest(str(text).encode(), "test")


def record(name: str) -> MemberRecord:
    return MemberRecord(
        name=name,
        spiffe_id=f"spiffe://{name}.example/node",
        ledger_key=digest(f"key {name}"),
        bundle=digest(f"bundle {name}"),
        card=digest(f"card {name}"),
        addresses=(f"{name}.example:7400",),
    )


def genesis(names: str = "abcd") -> Genesis:
    return Genesis(
        swarm="lungs",
        engine="local",
        operator=names[0],
        created_s=START_S,
        members=tuple(record(name) for name in names),
        settings=SwarmSettings(proposal_s=3600),
    )


SETTINGS = StudySettings(
    name="aml",
    min_members=3,
    quorum=2,
    rounds=3,
    every_steps=10,
    silence_s=60,
    patience_s=600,
    merge_s=30,
    give_up_s=1000,
)


class Swarm:
    """The ledger's state, its clock, and the four members 'a' to 'd'."""

    digest = staticmethod(digest)
    record = staticmethod(record)
    genesis = staticmethod(genesis)

    def __init__(self, names: str = "abcd", **changes):
        self.names = names
        self.state: State = initial_state(genesis(names))
        self.settings = replace(SETTINGS, **changes)
        self.now_s = START_S

    @property
    def study(self) -> Study:
        return self.state.studies["aml"]

    @property
    def open(self) -> OpenRound:
        assert self.study.open is not None
        return self.study.open

    def do(self, caller: str, call: Call, after_s: int = 0) -> None:
        self.now_s += after_s
        member = self.state.members.get(caller)
        sequence = member.sequence + 1 if member else 1
        self.state = apply(self.state, caller, sequence, call, self.now_s)

    def refused(self, caller: str, call: Call, after_s: int = 0) -> Refused:
        before = state_digest(self.state)
        with pytest.raises(Refused) as caught:
            self.do(caller, call, after_s)
        assert state_digest(self.state) == before
        return caught.value

    def propose(self) -> None:
        self.do(self.names[0], ProposeStudy(self.settings))
        for name in self.names[1:]:
            self.do(name, Agree("aml", settings_digest(self.settings)))

    def initialise(self) -> None:
        self.do(self.names[0], Initialise("aml", digest("schema"), digest("round 0"), 100 * MIB))

    def start(self, names: str | None = None) -> Swarm:
        self.propose()
        self.initialise()
        for name in names or self.names:
            self.do(name, Enter("aml"))
        return self

    def update(self, name: str, **changes) -> Commit:
        number = self.open.number
        commit = Commit("aml", number, self.study.accepted, digest(f"{name} {number}"), 10)
        return replace(commit, **changes)

    def commit(self, names: str | None = None) -> Swarm:
        for name in names or self.names:
            self.do(name, self.update(name))
        return self

    def part(self, index: int, **changes) -> Publish:
        opened = self.open
        said = Publish("aml", opened.number, opened.attempt, index, digest(f"part {index}"))
        return replace(said, **changes)

    def publish(self, but: str = "") -> Swarm:
        for index, part in enumerate(self.open.parts):
            if not part.digest and part.leader not in but:
                self.do(part.leader, self.part(index))
        return self

    def held(self) -> Accept:
        return Accept("aml", self.open.number, self.open.attempt, self.open.digest)

    def accept(self, names: str | None = None) -> Swarm:
        held = self.held()
        for name in names or self.open.roster:
            self.do(name, held)
        return self

    def round(self) -> Swarm:
        return self.commit().publish().accept()

    def tick(self, caller: str = "a") -> Swarm:
        self.now_s = max(self.now_s, self.open.deadline_s)
        self.do(caller, Tick("aml"))
        return self

    def part_of(self, leader: str) -> int:
        return [part.leader for part in self.open.parts].index(leader)


@pytest.fixture
def swarm():
    return Swarm
