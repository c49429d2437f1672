"""Whole swarms of round machines in one process: seeded delays, lost answers, crashes, and one liar."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from konsil.core.digest import bytes_digest, chunk_count, part_range
from konsil.core.round import (
    Advance,
    Advanced,
    Attached,
    Cancel,
    Deliver,
    Detached,
    Done,
    Failed,
    Fetch,
    FinishWanted,
    Found,
    Held,
    Lead,
    Looked,
    NodeRound,
    Offered,
    PartMerged,
    Probe,
    ProgressMade,
    Recompute,
    ScoreReady,
    Submit,
    Suspected,
    UpdateReady,
    stage,
    step,
)
from konsil.core.rules import (
    Agree,
    Genesis,
    Leave,
    MemberRecord,
    Outer,
    Plateau,
    ProposeStudy,
    Score,
    StudySettings,
    apply,
    initial_state,
    settings_digest,
    start_of,
)
from konsil.errors import Refused

BEGIN_S = 1_000_000
DATA_BYTES = 40 * 1024 * 1024
MOST_EVENTS = 6_000
"""Ten times what a quiet run takes: a machine that spins on something shows here."""

SETTINGS = StudySettings(
    name="aml",
    min_members=2,
    quorum=2,
    rounds=4,
    every_steps=1,
    weighting="equal",
    silence_s=20,
    patience_s=300,
    merge_s=10,
    give_up_s=100_000,
)


def digest(text: object) -> str:
    return bytes_digest(str(text).encode(), "test")


def record(name: str) -> MemberRecord:
    return MemberRecord(
        name, f"spiffe://{name}.example/node", digest(f"key {name}"), digest("bundle"), digest("card")
    )


class World:
    """A contract, a clock, and what is to happen when."""

    def __init__(
        self,
        seed: int,
        names: str = "abcd",
        *,
        liar: str = "",
        trouble: float = 0.0,
        wrong: str = "",
        **options,
    ):
        self.random = random.Random(seed)  # noqa: S311 - a test's seed
        self.now_s = float(BEGIN_S)
        self.trouble = trouble
        self.liar = liar
        self.wrong = wrong  # whose outer steps come out otherwise than the others'
        self.dead: set[str] = set()
        self.training_s = 5.0
        self.wrong_round = 1
        self.names = names
        self.todo: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.calls: Counter[str] = Counter()
        self.state = initial_state(
            Genesis("lungs", "local", "a", BEGIN_S, tuple(record(name) for name in names))
        )
        enough = {"min_members": 3, "quorum": 3} if options.get("outer") is not None else {}
        agreed = replace(SETTINGS, **(enough | options))
        self.apply(names[0], ProposeStudy(agreed))
        for name in names[1:]:
            self.apply(name, Agree("aml", settings_digest(agreed)))
        self.members = {name: Member(self, name) for name in names}

    @property
    def study(self):
        return self.state.studies["aml"]

    def apply(self, name, call) -> None:
        sequence = self.state.members[name].sequence + 1
        self.state = apply(self.state, name, sequence, call, int(self.now_s))
        self.calls[type(call).__name__] += 1

    def later(self, act, most_s: float = 0.2) -> None:
        when_s = self.now_s + self.random.uniform(0.001, most_s)
        heapq.heappush(self.todo, (when_s, next(self.number), act))

    def at(self, when_s, act) -> None:
        heapq.heappush(self.todo, (max(when_s, self.now_s), next(self.number), act))

    def unlucky(self) -> bool:
        return self.random.random() < self.trouble

    def tell(self) -> None:
        """The ledger moved: each hears of it in its own time."""
        for member in self.members.values():
            self.later(member.look)

    def run(self) -> None:
        for events in itertools.count():
            over = self.study.phase in {"finished", "failed"}
            if over and all(member.served or member.gone for member in self.members.values()):
                return
            assert self.todo, f"everybody waits for nothing: {self.where()}"
            self.now_s, _, act = heapq.heappop(self.todo)
            act()
            assert events < MOST_EVENTS, f"no end in sight: {self.where()} {self.calls}"

    def step(self, number: int) -> str:
        """The outer state after a round, as whoever computes it rightly has it: a function of what is agreed."""
        if number == 0:
            return digest("state 0")
        record = self.study.history[number - 1]
        return digest(f"{start_of(record)} and {record.digest}")

    def where(self) -> str:
        stages = {name: stage(member.state, self.study) for name, member in self.members.items()}
        return f"{self.study.phase} {stages} {self.study.open}"


class Member:
    """A machine, the shell around it, and its training process."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.contribution = "inactive"
        self.rounds = 10**6
        self.gone = self.served = False
        self.life = 0
        self.pause_s = 0.0
        self.start()
        world.later(self.attach, 2.0)

    def start(self) -> None:
        self.state = NodeRound(me=self.name, study="aml")
        self.seen = self.world.study
        self.wake = 0
        self.under_way: set = set()

    def crash(self) -> None:
        """The node dies and starts again, knowing nothing; its training process joins again."""
        self.life += 1
        self.start()
        self.world.later(self.look, 3.0)
        if not self.gone:
            self.world.later(self.attach, 3.0)

    def die(self) -> None:
        """The node is gone for good, and with it its update."""
        self.gone = True
        self.life += 1
        self.world.dead.add(self.name)

    def attach(self, holds: str = "") -> None:
        self.post(Attached(holds))
        if self.name == self.world.names[0] and not self.world.study.initial:
            self.post(Offered(digest("schema"), digest("model 0"), DATA_BYTES))

    def look(self) -> None:
        if self.name in self.world.dead:
            return
        self.seen = self.world.study
        self.post(Looked())

    def post(self, event) -> None:
        self.state, effects, wake_s = step(self.state, event, self.seen, self.world.now_s)
        if isinstance(event, Done | Failed):
            self.under_way.discard(event.effect)
        for effect in effects:
            if isinstance(effect, Cancel):
                assert effect.effect in self.under_way
                self.under_way.discard(effect.effect)
                continue
            assert effect not in self.under_way, f"{effect} is under way already"
            self.under_way.add(effect)
            self.world.later(self.doing(effect))
        assert set(self.state.doing) == self.under_way
        self.wake += 1
        if wake_s < float("inf"):
            wake, life = self.wake, self.life
            self.world.at(wake_s, lambda: self.woken(wake, life))

    def woken(self, wake: int, life: int) -> None:
        if (wake, life) == (self.wake, self.life):
            self.post(Looked())

    def doing(self, effect):
        life = self.life

        def do() -> None:
            if life != self.life or effect not in self.under_way:
                return
            if self.world.unlucky():
                self.post(Failed(effect))
                return
            getattr(self, type(effect).__name__.lower())(effect)

        return do

    def done(self, effect) -> None:
        if effect in self.under_way:
            self.post(Done(effect))

    # --- effects ---------------------------------------------------------------------------------

    def submit(self, effect) -> None:
        try:
            self.world.apply(self.name, effect.call)
        except Refused as refused:
            wait_s = refused.fields.get("wait_s")
            self.post(Failed(effect, wait_s=wait_s))
            return
        self.world.tell()
        if self.world.unlucky():
            self.post(Failed(effect))  # it was taken, but the answer was lost
            return
        self.seen = self.world.study
        self.done(effect)

    def fetch(self, effect) -> None:
        current = self.seen.open
        candidate = current is not None and current.digest == effect.digest
        wrong = self.wrong_part(current) if candidate else None
        if wrong is not None and self.name != self.world.liar:
            self.post(Suspected(current.number, current.attempt, wrong, self.chunk(current, wrong)))
            self.post(Failed(effect))
            return
        self.post(Held(effect.digest))
        self.done(effect)

    def wrong_part(self, current) -> int | None:
        settled = {d.part for d in current.disputes if d.attempt == current.attempt}
        parts = enumerate(current.parts)
        return next((n for n, p in parts if p.digest == digest("lie") and n not in settled), None)

    def chunk(self, current, part: int) -> int:
        return part_range(part, len(current.parts), chunk_count(DATA_BYTES)).start

    def advance(self, effect) -> None:
        start = effect.start or self.world.step(effect.round)
        if self.name == self.world.wrong and not effect.start and effect.round == self.world.wrong_round:
            start = digest("wrong")
        self.post(Advanced(effect.digest, start, digest(f"model of {start}")))
        self.done(effect)

    def lead(self, effect) -> None:
        lacking = tuple(self.world.dead & set(self.seen.open.roster))
        if lacking:
            self.post(Failed(effect, unreachable=lacking))
            return
        made = "lie" if self.name == self.world.liar else f"{effect.round} {effect.part}"
        self.post(PartMerged(effect.round, effect.attempt, effect.part, digest(made), ""))
        self.done(effect)

    def recompute(self, effect) -> None:
        current = self.seen.open
        lie = current.parts[effect.part].digest == digest("lie")
        self.post(Found(effect, wrong=lie if self.name != self.world.liar else not lie))
        self.done(effect)

    def probe(self, effect) -> None:
        if effect.member in self.world.dead:
            self.post(Failed(effect, unreachable=(effect.member,)))
        else:
            self.done(effect)

    def deliver(self, effect) -> None:
        self.done(effect)
        if self.seen.phase in {"finished", "failed"}:
            self.served = True
            return
        life = self.life
        self.post(ProgressMade(0.0))
        if self.pause_s:
            self.world.at(self.world.now_s + self.pause_s, lambda: self.trained(effect, life))
        else:
            self.world.later(lambda: self.trained(effect, life), self.world.training_s)

    def trained(self, effect, life: int) -> None:
        if life != self.life or self.gone:
            return
        if effect.round >= self.rounds:
            self.gone = True
            self.post(FinishWanted(self.contribution))
            self.world.later(lambda: self.post(Detached(goodbye=True)), 1.0)
            return
        if effect.round:
            self.post(ScoreReady(Score("aml", effect.round, 10, loss=1.0)))
        self.post(ProgressMade(0.5))
        update = digest(f"{self.name} {effect.round + 1}")
        self.post(UpdateReady(effect.round + 1, effect.digest, update, 10))


@pytest.mark.parametrize("seed", range(4))
def test_a_swarm_trains_to_the_end_in_as_few_calls_as_there_must_be(seed):
    world = World(seed)
    world.run()
    assert world.study.phase == "finished"
    assert [set(record.roster) for record in world.study.history[1:]] == [set("abcd")] * 3
    assert all(record.attempt == 1 for record in world.study.history)
    assert world.calls["Accept"] <= 16
    assert world.calls["Publish"] == sum(len(record.parts) for record in world.study.history)
    assert not {"Tick", "Dispute", "Report", "Leave"} & set(world.calls)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    trouble=st.sampled_from([0.0, 0.1, 0.3]),
    names=st.sampled_from(["abc", "abcd"]),
    outer=st.sampled_from([None, Outer()]),
)
def test_whatever_fails_on_the_way_a_swarm_reaches_the_end(seed, trouble, names, outer):
    world = World(seed, names, trouble=trouble, rounds=3, outer=outer)
    world.run()
    assert world.study.phase == "finished"
    assert states(world) == ([world.step(number) for number in range(3)] if outer else [""] * 3)


@pytest.mark.parametrize("seed", range(4))
def test_nodes_that_crash_at_any_moment_do_not_stop_the_swarm(seed):
    world = World(seed, trouble=0.05)
    for name in "bcd":
        for _ in range(2):
            world.later(world.members[name].crash, 25.0)
    world.run()
    assert world.study.phase == "finished"


@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_dies_for_good_is_left_out_and_the_study_ends(seed):
    world = World(seed)
    world.later(world.members["d"].die, 12.0)
    world.run()
    assert world.study.phase == "finished"
    assert "d" not in world.study.history[-1].roster
    assert {"Tick", "Report"} & set(world.calls)


@pytest.mark.parametrize("seed", range(4))
def test_an_update_that_died_with_its_member_is_reported_by_all_and_left_out_before_the_deadline(seed):
    world = World(seed, merge_s=1000, parts="leader")
    doomed = world.members["d"]
    commit = doomed.submit

    def commit_and_die(effect) -> None:
        commit(effect)
        if type(effect.call).__name__ == "Commit" and effect.call.round == 2:
            doomed.die()

    doomed.submit = commit_and_die
    world.run()
    assert world.study.phase == "finished"
    record = world.study.history[1]
    assert record.absent["d"] == "unreachable" or record.attempt > 1
    if record.absent["d"] == "unreachable":
        assert record.accepted_s - record.opened_s < 100


@pytest.mark.parametrize("seed", range(4))
def test_members_that_train_longer_than_the_silence_are_waited_for_since_they_say_so(seed):
    world = World(seed)
    world.training_s = 90.0
    world.run()
    assert [set(record.roster) for record in world.study.history[1:]] == [set("abcd")] * 3
    assert world.calls["Alive"] > 8


@pytest.mark.parametrize("seed", range(4))
def test_a_lying_leader_is_struck_and_the_round_merges_again(seed):
    world = World(seed, liar="c")
    world.run()
    assert world.study.phase == "finished"
    assert world.study.participants["c"].struck
    first = world.study.history[0]
    assert set(first.roster) == {"a", "b", "d"} or "c" not in world.study.history[-1].roster
    assert world.calls["Dispute"] <= 3
    assert digest("lie") not in {part.digest for record in world.study.history for part in record.parts}


@pytest.mark.parametrize("contribution", ["snapshot", "active", "inactive"])
def test_a_member_that_finishes_first_contributes_what_it_chose(contribution):
    world = World(7)
    world.members["d"].rounds, world.members["d"].contribution = 2, contribution
    world.run()
    assert world.study.phase == "finished"
    last = world.study.history[-1]
    if contribution == "inactive":
        assert last.absent["d"] == "finished"
    else:
        expected = digest("d 2") if contribution == "snapshot" else last.base
        assert last.roster["d"].digest == expected
    assert Leave.__name__ not in world.calls


def states(world) -> list[str]:
    """The outer state that each round of a study was trained from, where all of its roster had the same."""
    return [
        start for record in world.study.history for start in {each.start for each in record.roster.values()}
    ]


@pytest.mark.parametrize("seed", range(4))
def test_with_an_outer_optimiser_all_train_from_the_same_state_in_as_few_calls(seed):
    world = World(seed, outer=Outer())
    world.run()
    assert world.study.phase == "finished"
    assert states(world) == [world.step(number) for number in range(4)]
    assert [set(record.roster) for record in world.study.history[1:]] == [set("abcd")] * 3
    assert not {"Tick", "Dispute", "Report", "Leave"} & set(world.calls)


@pytest.mark.parametrize("seed", range(6))
def test_with_an_outer_optimiser_crashes_and_lost_answers_leave_all_at_the_same_state(seed):
    world = World(seed, trouble=0.1, outer=Outer("yogi"))
    for name in "bcd":
        for _ in range(2):
            world.later(world.members[name].crash, 25.0)
    world.run()
    assert world.study.phase == "finished"
    assert states(world) == [world.step(number) for number in range(4)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_member_whose_step_came_out_otherwise_goes_on_from_the_state_of_the_others(seed, last):
    world = World(seed, wrong="c", outer=Outer(), rounds=6)
    world.members["c"].pause_s = 8.0 if last else 0.1
    world.run()
    assert world.study.phase == "finished"
    second, *later = world.study.history[1:]
    right = {world.step(1)}
    assert {each.start for name, each in second.roster.items() if name != "c"} == right
    if last:  # all others had said otherwise, so it sat the round out, and nobody waited for it
        assert second.absent["c"] == "left"
        assert "Tick" not in world.calls
    else:
        assert second.roster["c"].start == digest("wrong")
    for record in later:
        assert {each.start for each in record.roster.values()} == {world.step(record.number - 1)}
    assert "c" in later[-1].roster


@pytest.mark.parametrize("contribution", ["snapshot", "active"])
def test_a_finished_member_contributes_to_a_study_with_an_outer_optimiser(contribution):
    world = World(7, outer=Outer())
    world.members["d"].rounds, world.members["d"].contribution = 2, contribution
    world.run()
    assert world.study.phase == "finished"
    unchanged = digest(f"model of {world.step(3)}")
    last = world.study.history[-1].roster["d"]
    assert last.digest == (digest("d 2") if contribution == "snapshot" else unchanged)
    assert last.start == world.step(3)


def test_a_plateau_ends_a_study_for_all():
    world = World(3, rounds=30, plateau=Plateau(rounds=2, metric="loss"))
    world.run()
    assert world.study.phase == "finished"
    assert "not improved" in world.study.ended
    assert len(world.study.history) < 8


EVENTS = st.one_of(
    st.just(Looked()),
    st.sampled_from(["", digest("model 0")]).map(Attached),
    st.booleans().map(Detached),
    st.builds(UpdateReady, st.integers(0, 3), st.just(digest("model 0")), st.just(digest("u")), st.just(10)),
    st.floats(0, 1).map(ProgressMade),
    st.sampled_from(["snapshot", "active", "inactive"]).map(FinishWanted),
    st.builds(ScoreReady, st.builds(Score, st.just("aml"), st.integers(0, 3), st.just(1), st.just(0.5))),
    st.sampled_from([digest("model 0"), digest("u")]).map(Held),
    st.builds(
        Advanced, st.just(digest("model 0")), st.sampled_from([digest("s"), digest("state 0")]), st.just("")
    ),
    st.builds(
        PartMerged, st.integers(1, 2), st.integers(1, 2), st.integers(0, 3), st.just(digest("p")), st.just("")
    ),
    st.builds(Suspected, st.integers(1, 2), st.integers(1, 2), st.integers(0, 3), st.integers(0, 9)),
    st.builds(
        Found,
        st.builds(Recompute, st.integers(1, 2), st.integers(1, 2), st.integers(0, 3), st.integers(0, 9)),
        st.booleans(),
    ),
    st.sampled_from(["done", "failed", "unreachable"]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(events=st.lists(st.tuples(EVENTS, st.integers(0, 40)), max_size=25), moment=st.integers(0, 30))
def test_no_order_of_events_breaks_a_machine_or_starts_an_effect_twice(moments, events, moment):
    study = moments[moment % len(moments)]
    state, now_s = NodeRound(me="b", study="aml"), float(BEGIN_S)
    under_way: list = []
    for event, pause_s in events:
        now_s += pause_s
        if isinstance(event, str):
            if not under_way:
                continue
            effect = under_way.pop(0)
            names = ("a", "z") if event == "unreachable" else ()
            event = Done(effect) if event == "done" else Failed(effect, unreachable=names)  # noqa: PLW2901 - now known
        state, effects, wake_s = step(state, event, study, now_s)
        for effect in effects:
            if isinstance(effect, Cancel):
                under_way.remove(effect.effect)
            else:
                assert effect not in under_way
                assert isinstance(effect, Submit | Fetch | Lead | Recompute | Probe | Advance | Deliver)
                under_way.append(effect)
        assert set(state.doing) == set(under_way)
        assert wake_s > now_s
        # Nothing new is wanted when nothing happened, so a node never spins.
        assert step(state, Looked(), study, now_s)[1] == ()
        assert replace(state) == state


@pytest.fixture(scope="module")
def moments():
    """Studies as they stand on the ledger at different moments of their lives."""
    return [*_moments(World(1)), *_moments(World(1, outer=Outer()))]


def _moments(world):
    seen = [world.study]
    phases = {(world.study.phase, None)}
    for _ in range(MOST_EVENTS):
        if not world.todo or world.study.phase == "finished":
            break
        world.now_s, _, act = heapq.heappop(world.todo)
        act()
        current = world.study.open
        key = (world.study.phase, current and (current.phase, bool(current.digest), len(current.commits) > 1))
        if key not in phases:
            phases.add(key)
            seen.append(world.study)
    return [*seen, world.study]
