"""Random lives of a swarm under the contract; what must always hold is looked at after each step.

Members commit, publish, lie, fall silent, leave, report and dispute in any order. Of the five, 'a', 'b' and
'c' are honest: a majority of every roster that they are all on. After each life the honest ones drive the
open round to its end, whatever state they find.
"""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from konsil.core.digest import bytes_digest, chunk_count, part_range, root_from
from konsil.core.rules import (
    Accept,
    Agree,
    Alive,
    Call,
    Commit,
    Dispute,
    Enter,
    Entry,
    Finish,
    Genesis,
    Initialise,
    Leave,
    MemberRecord,
    OpenRound,
    ProposeRemove,
    ProposeStudy,
    Publish,
    Renew,
    Report,
    SignedCall,
    State,
    Study,
    StudySettings,
    Tick,
    Verdict,
    Vote,
    apply,
    apply_entry,
    effective_quorum,
    encode_signed,
    entry_digest,
    genesis_digest,
    initial_state,
    missing,
    settings_digest,
    state_digest,
)
from konsil.errors import Refused

NAMES = "abcde"
HONEST = "abc"
START_S = 1_000
MAX_TICKS = 60
"""The honest bring a round to its end within this many ticks, from wherever they start."""

names = st.sampled_from(NAMES)
liars = st.sampled_from("de")


def _digest(text: object) -> str:
    return bytes_digest(str(text).encode(), "test")


def _record(name: str) -> MemberRecord:
    keys = [_digest(f"{name} {kind}") for kind in ("key", "bundle", "card")]
    return MemberRecord(name, f"spiffe://{name}.example/node", *keys)


GENESIS = Genesis("lungs", "local", "a", START_S, tuple(map(_record, NAMES)))
SETTINGS = StudySettings(
    name="aml",
    min_members=3,
    quorum=3,
    rounds=1_000,
    every_steps=1,
    silence_s=60,
    patience_s=300,
    merge_s=30,
    # Beyond what a machine lets pass: that a study fails in the end has a story of its own.
    give_up_s=300_000_000,
)


class Contract(RuleBasedStateMachine):
    """The contract, driven by five members of whom three are honest."""

    def __init__(self) -> None:
        super().__init__()
        self.state = initial_state(GENESIS)
        self.now_s = START_S
        self.entries: list[Entry] = []
        self.known: list[tuple[int, str]] = []
        self.commits: dict[tuple[int, int, str], str] = {}

    # --- acting ----------------------------------------------------------------------------------

    def do(self, caller: str, call: Call) -> bool:
        """Make a call; whether the contract took it. A refusal must change nothing."""
        before = state_digest(self.state)
        sequence = self.state.members[caller].sequence + 1
        try:
            after = apply(self.state, caller, sequence, call, self.now_s)
        except Refused:
            assert state_digest(self.state) == before
            return False
        previous = entry_digest(self.entries[-1]) if self.entries else genesis_digest(GENESIS)
        signed = encode_signed(SignedCall(self.state.genesis, caller, sequence, call, bytes(64)))
        self.no_honest_member_is_struck_by_a_minority(after)
        self.entries.append(Entry(after.height, self.now_s, signed, previous, state_digest(after)))
        self.state = after
        return True

    def no_honest_member_is_struck_by_a_minority(self, after: State) -> None:
        """Reports can take honest members off a roster; where they are its majority none is struck."""
        if not self.is_merging() or 2 * len(set(self.open.roster) & set(HONEST)) <= len(self.open.roster):
            return
        for name in HONEST:
            was = self.study.participants[name].struck
            assert after.studies["aml"].participants[name].struck == was

    @property
    def study(self) -> Study:
        return self.state.studies["aml"]

    @property
    def open(self) -> OpenRound:
        assert self.study.open is not None
        return self.study.open

    def is_open(self) -> bool:
        return "aml" in self.state.studies and self.study.open is not None

    def is_merging(self) -> bool:
        return self.is_open() and self.open.phase == "merging"

    def honest_part(self, index: int) -> Publish:
        digest = _digest((self.open.roster, self.open.number, index))
        return Publish("aml", self.open.number, self.open.attempt, index, digest)

    def is_wrong(self, index: int) -> bool:
        return self.open.parts[index].digest != self.honest_part(index).digest

    @initialize()
    def begin(self) -> None:
        self.do("a", ProposeStudy(SETTINGS))
        for name in NAMES[1:]:
            self.do(name, Agree("aml", settings_digest(SETTINGS)))
        self.do("a", Initialise("aml", _digest("schema"), _digest("initial"), 40 << 20))
        for name in NAMES[:4]:
            self.do(name, Enter("aml"))

    @rule(seconds=st.sampled_from([0, 1, 10, 40, 70, 400]))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(name=names)
    def enter(self, name: str) -> None:
        self.do(name, Enter("aml"))

    @rule(name=names)
    def leave(self, name: str) -> None:
        self.do(name, Leave("aml"))

    @rule(name=names, which=st.integers(0, 3), other=names)
    def renew(self, name: str, which: int, other: str) -> None:
        """Now and then by another member's card, which is not its own to give."""
        card = _digest((name, which, "new card")) if which else self.state.members[other].record.card
        self.do(name, Renew(_digest((name, which, "new bundle")), card))

    @precondition(is_open)
    @rule(name=names, which=st.integers(0, 1))
    def commit(self, name: str, which: int) -> None:
        number = self.open.number
        self.do(name, Commit("aml", number, self.study.accepted, _digest((name, number, which)), 1 + which))

    @precondition(is_open)
    @rule(name=names)
    def alive(self, name: str) -> None:
        self.do(name, Alive("aml", self.open.number, 0.5))

    @precondition(is_open)
    @rule(name=names)
    def tick(self, name: str) -> None:
        self.do(name, Tick("aml"))

    @precondition(is_merging)
    @rule(index=st.integers(0, 4), lies=st.booleans())
    def publish(self, index: int, lies: bool) -> None:
        index %= len(self.open.parts)
        leader = self.open.parts[index].leader
        said = self.honest_part(index)
        if lies and leader not in HONEST:
            said = replace(said, digest=_digest("a lie"))
        self.do(leader, said)

    @precondition(is_merging)
    @rule(name=names)
    def accept(self, name: str) -> None:
        audits = name in HONEST and any(self.is_wrong(index) for index in range(len(self.open.parts)))
        if not audits:
            self.do(name, Accept("aml", self.open.number, self.open.attempt, self.open.digest))

    @precondition(is_merging)
    @rule(name=names, others=st.sets(names, max_size=2))
    def report(self, name: str, others: set[str]) -> None:
        self.do(name, Report("aml", self.open.number, self.open.attempt, tuple(others)))

    @precondition(is_merging)
    @rule(name=names, index=st.integers(0, 4))
    def dispute(self, name: str, index: int) -> None:
        index %= len(self.open.parts)
        if name in HONEST and not self.is_wrong(index):
            return
        chunk = part_range(index, len(self.open.parts), chunk_count(self.study.data_bytes)).start
        self.do(name, Dispute("aml", self.open.number, self.open.attempt, index, chunk))

    @precondition(is_merging)
    @rule(name=names)
    def verdict(self, name: str) -> None:
        opened = self.open.dispute
        if opened is not None:
            truth = self.is_wrong(opened.part)
            wrong = truth if name in HONEST else not truth
            said = Verdict("aml", self.open.number, self.open.attempt, opened.part, opened.chunk, wrong)
            self.do(name, said)

    @rule(name=liars)
    def finish(self, name: str) -> None:
        self.do(name, Finish("aml"))

    @rule(name=liars, proposer=names, yes=st.sets(names))
    def remove(self, name: str, proposer: str, yes: set[str]) -> None:
        if self.state.members[proposer].active and self.do(proposer, ProposeRemove(name)):
            for voter in sorted(yes):
                self.do(voter, Vote(len(self.state.proposals), yes=True))

    # --- what must always hold -------------------------------------------------------------------

    @invariant()
    def whoever_has_another_card_is_still_who_was_admitted(self) -> None:
        records = {name: member.record for name, member in self.state.members.items()}
        for name, record in records.items():
            was = _record(name)
            assert (record.name, record.spiffe_id, record.ledger_key) == (
                was.name,
                was.spiffe_id,
                was.ledger_key,
            )
        assert len({record.card for record in records.values()}) == len(NAMES)

    @invariant()
    def accepted_history_never_changes(self) -> None:
        if "aml" in self.state.studies:
            now = [(record.number, record.digest) for record in self.study.history]
            assert now[: len(self.known)] == self.known
            assert [number for number, _ in now] == list(range(1, len(now) + 1))
            self.known = now

    @invariant()
    def a_merge_is_the_root_over_its_parts_and_held_by_a_majority(self) -> None:
        for record in self.study.history[-1:] if "aml" in self.state.studies else ():
            assert record.digest == root_from(self.study.schema, [part.digest for part in record.parts])
            assert 2 * len(record.accepts) > len(record.roster)
            assert set(record.accepts) <= set(record.roster)
            assert len(record.roster) >= effective_quorum(self.study.settings)
            assert not set(record.roster) & set(record.absent)
            assert set(record.weights) == set(record.roster)
            everyone = set(record.roster) | set(record.absent)
            assert all(name in everyone for name in self.study.participants)

    @invariant()
    def a_member_has_one_update_in_a_roster(self) -> None:
        if self.is_open() and self.open.roster:
            for name, commit in self.open.commits.items():
                at = (self.open.number, self.open.attempt, name)
                assert self.commits.setdefault(at, commit.digest) == commit.digest

    @invariant()
    def the_open_round_is_sound(self) -> None:
        if not self.is_open():
            return
        current = self.open
        assert current.base == self.study.accepted
        if current.phase == "collecting":
            assert (current.roster, current.parts, current.digest) == ((), (), "")
            ready = len(current.commits) >= effective_quorum(self.study.settings) and not missing(current)
            assert not ready, "a round that lacks nothing must merge"
            return
        assert set(current.roster) == set(current.commits)
        assert len(current.roster) >= effective_quorum(self.study.settings)
        assert {part.leader for part in current.parts} <= set(current.roster)
        assert not {n for n, p in self.study.participants.items() if p.struck} & set(current.roster)
        if current.digest:
            assert current.digest == root_from(self.study.schema, [part.digest for part in current.parts])

    @invariant()
    def a_deadline_is_ahead_or_a_tick_does_something(self) -> None:
        if self.is_open() and self.now_s >= self.open.deadline_s:
            before = self.study
            after = apply(self.state, "a", self.state.members["a"].sequence + 1, Tick("aml"), self.now_s)
            assert after.studies["aml"] != before

    # --- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        if "aml" not in self.state.studies:
            return
        self.honest_bring_the_round_to_its_end()
        self.history_replays()

    def honest_bring_the_round_to_its_end(self) -> None:
        if self.study.phase != "running" or any(self.study.participants[name].struck for name in HONEST):
            return
        number = self.open.number
        for _ in range(MAX_TICKS):
            self.honest_act()
            if len(self.study.history) >= number:
                return
            self.now_s = max(self.now_s, self.open.deadline_s)
            assert self.do("a", Tick("aml"))
        raise AssertionError(f"Round {number} is stuck: {self.open}")

    def honest_act(self) -> None:
        number = self.open.number
        acted = True
        while acted and len(self.study.history) < number:
            heights = len(self.entries)
            study = self.study
            for name in HONEST:
                if len(self.study.history) < number:
                    self.honest_member_acts(name, number)
            acted = len(self.entries) > heights and self.study != study

    def honest_member_acts(self, name: str, number: int) -> None:
        if not self.study.participants[name].present:
            self.do(name, Enter("aml"))
        current = self.open
        if current.phase == "collecting":
            if name not in current.commits:
                self.do(name, Commit("aml", number, current.base, _digest((name, number)), 5))
            return
        if name in current.roster:
            self.honest_member_merges(name, current)

    def honest_member_merges(self, name: str, current: OpenRound) -> None:
        for index, part in enumerate(current.parts):
            if part.leader == name and not part.digest and self.open.attempt == current.attempt:
                self.do(name, self.honest_part(index))
        if self.open.attempt != current.attempt:
            return
        wrong = [index for index, part in enumerate(self.open.parts) if part.digest and self.is_wrong(index)]
        if self.open.dispute is not None:
            self.verdict_of(name)
        elif wrong:
            chunk = part_range(wrong[0], len(current.parts), chunk_count(self.study.data_bytes)).start
            self.do(name, Dispute("aml", current.number, current.attempt, wrong[0], chunk))
        elif self.open.digest and name not in self.open.accepts:
            self.do(name, Accept("aml", current.number, current.attempt, self.open.digest))

    def verdict_of(self, name: str) -> None:
        opened = self.open.dispute
        if opened is not None and name not in opened.verdicts:
            wrong = self.is_wrong(opened.part)
            said = Verdict("aml", self.open.number, self.open.attempt, opened.part, opened.chunk, wrong)
            self.do(name, said)

    def history_replays(self) -> None:
        state, previous = initial_state(GENESIS), genesis_digest(GENESIS)
        for entry in self.entries:
            state = apply_entry(state, entry, previous)
            previous = entry_digest(entry)
        assert state_digest(state) == state_digest(self.state)


ContractMachine = Contract.TestCase
ContractMachine.settings = settings(
    max_examples=8,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,  # the suite's outcome is the code's, not the day's; longer runs take other seeds
    suppress_health_check=[HealthCheck.too_slow],
)
