"""Members, honest and not, who do whatever they may and much that they may not, to the rules and the contract."""

from __future__ import annotations

from typing import ClassVar

from contract_cast import EVERYONE, FOUNDERS, GENESIS, LATER, MB, NAMES, STUDIES, digest, record
from contract_twin import Sources, Twin
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from msgspec.structs import replace

from konsil.core.digest import chunk_count, part_range
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Announce,
    Call,
    Commit,
    Dispute,
    Enter,
    Finish,
    Initialise,
    Leave,
    OpenRound,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Publish,
    Renew,
    Report,
    Score,
    Study,
    SwarmSettings,
    Tick,
    Validate,
    Verdict,
    Vote,
    rule_mixes,
    settings_digest,
)

study_names = st.runner().flatmap(lambda both: st.sampled_from(both.studies_to_try()))
members = st.runner().flatmap(lambda both: st.sampled_from(both.members_to_try()))
merging = st.runner().flatmap(lambda both: st.sampled_from(both.studies_to_try("merging")))
some = st.sets(members, max_size=2)
small = st.integers(-1, 6)
rarely = st.sampled_from([False, False, False, False, True])
"""For what would stop most of what follows."""


class Both(RuleBasedStateMachine):
    """Every call goes to both; that they agree is checked by the twin."""

    texts: ClassVar[Sources | None] = None
    seen: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.twin = Twin(GENESIS, self.texts)
        self.twin.accounts |= {name: name.encode().rjust(20, b"\2") for name in LATER}

    def do(self, caller: str, call: Call, sequence: int | None = None) -> bool:
        code = self.twin.do(caller, call, sequence)
        key = f"{type(call).__name__} {code}"
        self.seen[key] = self.seen.get(key, 0) + 1
        return not code

    def studies_to_try(self, phase: str = "") -> list[str]:
        """Most often one that runs (and is in this phase), sometimes one that does not, or is not there."""
        known = self.twin.state.studies
        running = [name for name, study in known.items() if study.phase == "running"]
        wanted = [name for name in running if self.open(name).phase == phase]
        return [*wanted * 40, *running * 12, *list(known) * 2, *NAMES]

    def members_to_try(self) -> list[str]:
        """Most often one that takes part in something."""
        state = self.twin.state
        active = [name for name, member in state.members.items() if member.active]
        return [*active * 5, *EVERYONE]

    def study(self, name: str) -> Study | None:
        return self.twin.state.studies.get(name)

    def open(self, name: str) -> OpenRound:
        """The open round; of a study without one, a round like a first one."""
        study = self.study(name)
        if study is None or study.open is None:
            return OpenRound(1, 1, "collecting", "", 0, 0, 0)
        return study.open

    @initialize(
        name=st.sampled_from(NAMES),
        agreed=st.sampled_from([3, 4, 5, 5, 5]),
        present=st.sampled_from([1, 2, 3, 4, 5, 5]),
        megabytes=st.sampled_from([1, 4, 17, 80]),
        rounds=st.integers(0, 2),
        stage=st.integers(0, 2),
    )
    def begin(self, name: str, agreed: int, present: int, megabytes: int, rounds: int, stage: int) -> None:
        self.propose_study(name, FOUNDERS[0])
        for member in FOUNDERS[1:agreed]:
            self.agree(name, member, wrong=False)
        self.do(FOUNDERS[0], Initialise(name, digest("schema"), digest("initial"), megabytes * MB))
        for member in FOUNDERS[:present]:
            self.do(member, Enter(name))
        for _ in range(rounds):
            self.a_round_goes_well(name)
        if stage:
            self.all_commit(name, set())
        if stage == 2:
            self.all_publish(name, set(), 12)

    @rule(
        seconds=st.sampled_from([0, 1, 10, 29, 30, 31, 60, 61, 100, 300, 500, 5_000, 2 * 86_400, 31 * 86_400])
    )
    def time_passes(self, seconds: int) -> None:
        self.twin.now_s += seconds

    @rule(name=study_names, member=members)
    def time_passes_to_the_deadline(self, name: str, member: str) -> None:
        self.twin.now_s = max(self.twin.now_s, self.open(name).deadline_s)
        self.do(member, Tick(name))

    # --- members ---------------------------------------------------------------------------------

    @rule(member=members, name=members, twin_of=st.sampled_from(["", "", "", "aachen"]))
    def propose_admit(self, member: str, name: str, twin_of: str) -> None:
        self.do(member, ProposeAdmit(record(name, twin_of)))

    @rule(member=members, name=st.sampled_from([*EVERYONE, "nobody"]))
    def propose_remove(self, member: str, name: str) -> None:
        self.do(member, ProposeRemove(name, "it is so ü"))

    @rule(member=members, seconds=st.sampled_from([59, 60, 100, 100, 1_000]))
    def propose_swarm_settings(self, member: str, seconds: int) -> None:
        self.do(member, ProposeSwarmSettings(SwarmSettings(seconds)))

    @rule(
        member=members,
        name=study_names,
        change=st.sampled_from(
            [{"rounds": 2}, {"merge_s": 5}, {"quorum": 2}, {"quorum": 9}, {"min_members": 1}]
        ),
    )
    def propose_study_settings(self, member: str, name: str, change: dict[str, int]) -> None:
        study = self.study(name)
        held = next(each for each in STUDIES if each.name == name) if study is None else study.settings
        self.do(member, ProposeStudySettings(replace(held, **change)))

    @rule(member=members, back=small, yes=st.booleans())
    def vote(self, member: str, back: int, yes: bool) -> None:
        self.do(member, Vote(len(self.twin.state.proposals) - back, yes))

    @rule(others=st.sets(members, min_size=2), yes=st.sampled_from([True, True, False]))
    def all_vote(self, others: set[str], yes: bool) -> None:
        for member in sorted(others):
            self.do(member, Vote(len(self.twin.state.proposals), yes))

    @rule(
        member=members,
        addresses=st.sampled_from([(), ("a:1",), ("a:0",), ("[::1]:65535", "b-c.de:7"), ("a",)]),
    )
    def announce(self, member: str, addresses: tuple[str, ...]) -> None:
        self.do(member, Announce(addresses))

    @rule(member=members, which=st.integers(0, 9), other=members)
    def renew(self, member: str, which: int, other: str) -> None:
        card = digest(f"{other} card") if which == 0 else digest((member, "card", which))
        self.do(member, Renew(digest(("bundle", which % 3)), card))

    @rule(member=members, on=st.booleans())
    def validate(self, member: str, on: bool) -> None:
        self.do(member, Validate(on))

    @rule(member=members, by=st.sampled_from([-1, 0, 2]))
    def call_out_of_turn(self, member: str, by: int) -> None:
        known = self.twin.state.members.get(member)
        self.do(member, Announce(()), (known.sequence if known else 0) + by if by >= 0 else 0)

    # --- studies ---------------------------------------------------------------------------------

    @rule(name=study_names, member=members)
    def propose_study(self, name: str, member: str) -> None:
        self.do(member, ProposeStudy(next(each for each in STUDIES if each.name == name)))

    @rule(name=study_names, member=members, wrong=rarely)
    def agree(self, name: str, member: str, wrong: bool) -> None:
        study = self.study(name)
        held = digest("other") if wrong or study is None else settings_digest(study.settings)
        self.do(member, Agree(name, held))

    @rule(name=study_names, member=members, which=st.integers(0, 1))
    def initialise(self, name: str, member: str, which: int) -> None:
        study = self.study(name)
        member = study.proposer if study is not None and which == 0 else member
        self.do(member, Initialise(name, digest("schema"), digest(("initial", which)), 9 * MB))

    @rule(name=study_names, member=members)
    def enter(self, name: str, member: str) -> None:
        self.do(member, Enter(name))

    @rule(name=study_names, others=st.sets(members))
    def all_enter(self, name: str, others: set[str]) -> None:
        for member in sorted(others):
            self.do(member, Enter(name))

    @rule(name=study_names, member=members)
    def leave(self, name: str, member: str) -> None:
        self.do(member, Leave(name))

    @rule(name=study_names, member=members, how=st.sampled_from(["snapshot", "active", "inactive"]))
    def finish(self, name: str, member: str, how: str) -> None:
        self.do(member, Finish(name, how))

    # --- rounds ----------------------------------------------------------------------------------

    def update(self, name: str, member: str, which: int) -> Commit:
        study, number = self.study(name), self.open(name).number
        base = study.accepted if study is not None else ""
        start = digest("start") if study is not None and study.settings.outer is not None else ""
        return Commit(name, number, base, digest((member, number, which)), 1 + which, start)

    @rule(
        name=study_names,
        member=members,
        which=st.integers(0, 1),
        change=st.sampled_from(
            [{}, {}, {"examples": 0}, {"base": digest("x")}, {"start": digest("y")}, {"round": 2}]
        ),
    )
    def commit(self, name: str, member: str, which: int, change: dict[str, object]) -> None:
        self.do(member, replace(self.update(name, member, which), **change))

    @rule(name=study_names, but=some)
    def all_commit(self, name: str, but: set[str]) -> None:
        for member in FOUNDERS:
            if member not in but:
                self.do(member, self.update(name, member, 0))

    @rule(name=study_names, member=members, progress=st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.1, -0.1]))
    def alive(self, name: str, member: str, progress: float) -> None:
        self.do(member, Alive(name, self.open(name).number, progress))

    def part(self, name: str, index: int, which: int) -> Publish:
        study, current = self.study(name), self.open(name)
        said = digest((current.number, current.roster, index, which))
        mixes = study is not None and rule_mixes(study.settings) is not False
        gram = digest(("gram", which)) if mixes else ""
        return Publish(name, current.number, current.attempt, index, said, gram)

    @rule(name=merging, member=members, index=small, which=st.integers(0, 1), is_leader=st.booleans())
    def publish(self, name: str, member: str, index: int, which: int, is_leader: bool) -> None:
        parts = self.open(name).parts
        if is_leader and parts:
            index %= len(parts)
            member = parts[index].leader
        self.do(member, self.part(name, index, which))

    @rule(name=merging, but=some, odd=st.integers(0, 12))
    def all_publish(self, name: str, but: set[str], odd: int) -> None:
        attempt = self.open(name).attempt
        for index, part in enumerate(self.open(name).parts):
            if part.leader not in but and self.open(name).attempt == attempt:
                self.do(part.leader, self.part(name, index, int(index == odd)))

    @rule(name=merging, member=members, but=some)
    def leaders_are_silent(self, name: str, member: str, but: set[str]) -> None:
        self.all_publish(name, but, 12)
        self.time_passes_to_the_deadline(name, member)

    @rule(name=merging, member=members, but=some)
    def some_do_not_accept(self, name: str, member: str, but: set[str]) -> None:
        self.all_publish(name, set(), 12)
        self.all_accept(name, but)
        self.time_passes_to_the_deadline(name, member)

    @rule(name=merging, member=members, wrong=rarely, old=rarely)
    def accept(self, name: str, member: str, wrong: bool, old: bool) -> None:
        current = self.open(name)
        held = digest("other") if wrong or not current.digest else current.digest
        self.do(member, Accept(name, current.number, current.attempt - old, held))

    @rule(name=merging, but=some)
    def all_accept(self, name: str, but: set[str]) -> None:
        current = self.open(name)
        for member in current.roster:
            if member not in but and current.digest:
                self.do(member, Accept(name, current.number, current.attempt, current.digest))

    @rule(name=study_names)
    def a_round_goes_well(self, name: str) -> None:
        study, number = self.study(name), self.open(name).number
        for member in sorted(study.participants) if study is not None else ():
            if self.open(name).number == number and member in self.open(name).expected:
                self.do(member, self.update(name, member, 0))
        self.all_publish(name, set(), 12)
        self.all_accept(name, set())

    @rule(name=merging, member=members, others=some)
    def report(self, name: str, member: str, others: set[str]) -> None:
        current = self.open(name)
        self.do(member, Report(name, current.number, current.attempt, tuple(others)))

    @rule(name=merging, by=st.sets(members, max_size=5), lost=st.integers(0, 4))
    def several_report(self, name: str, by: set[str], lost: int) -> None:
        current = self.open(name)
        gone = (*current.roster, *EVERYONE)[lost]
        for member in sorted(by):
            self.do(member, Report(name, current.number, current.attempt, (gone,)))

    @rule(
        name=merging, member=members, index=small, off=st.sampled_from([0, 0, 0, 0, -1, 1]), any_part=rarely
    )
    def dispute(self, name: str, member: str, index: int, off: int, any_part: bool) -> None:
        study, current = self.study(name), self.open(name)
        there = [at for at, part in enumerate(current.parts) if part.digest and part.leader != member]
        if there and not any_part:
            index = there[index % len(there)]
        n, chunk = len(current.parts), 0
        if study is not None and 0 <= index < n:
            chunk = part_range(index, n, chunk_count(study.data_bytes)).start + off
        self.do(member, Dispute(name, current.number, current.attempt, index, chunk))

    @rule(name=merging, member=members, index=small, right=some, but=some)
    def a_dispute_is_decided(
        self, name: str, member: str, index: int, right: set[str], but: set[str]
    ) -> None:
        self.all_publish(name, set(), 12)
        self.dispute(name, member, index, 0, any_part=False)
        self.all_judge(name, right, but)

    @rule(name=merging, right=some, but=some)
    def all_judge(self, name: str, right: set[str], but: set[str]) -> None:
        opened = self.open(name).dispute
        index, chunk = (opened.part, opened.chunk) if opened is not None else (0, 0)
        number, attempt = self.open(name).number, self.open(name).attempt
        for member in self.open(name).roster or FOUNDERS[:1]:
            if member not in but and self.open(name).attempt == attempt:
                self.do(member, Verdict(name, number, attempt, index, chunk, member not in right))

    @rule(name=merging, member=members, wrong=st.booleans(), off=st.sampled_from([0, 0, 0, 1]))
    def judge(self, name: str, member: str, wrong: bool, off: int) -> None:
        current, opened = self.open(name), self.open(name).dispute
        index, chunk = (opened.part, opened.chunk + off) if opened is not None else (0, 0)
        self.do(member, Verdict(name, current.number, current.attempt, index, chunk, wrong))

    @rule(name=study_names, member=members)
    def tick(self, name: str, member: str) -> None:
        self.do(member, Tick(name))

    @rule(
        name=study_names,
        member=members,
        back=st.integers(0, 3),
        loss=st.sampled_from([None, 0.25, -1e30, 1.1e30, -0.0]),
        metrics=st.dictionaries(
            st.sampled_from(["auc", "f1", "auc@5", "loss", "ä", "a" * 64, "a" * 65, "a" * 33]),
            st.sampled_from([0.5, 1e-310, 2e30]),
            max_size=3,
        ),
    )
    def score(self, name: str, member: str, back: int, loss: float | None, metrics: dict[str, float]) -> None:
        study = self.study(name)
        rounds = len(study.history) if study is not None else 0
        self.do(member, Score(name, rounds - back, 7, loss, metrics))


def drive(examples: int, steps: int, texts: Sources | None = None, *, shrink: bool = True) -> None:
    """Let both go through so many lives.

    Raises:
        AssertionError: they differed somewhere.
    """
    Both.texts = texts
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        Both,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
