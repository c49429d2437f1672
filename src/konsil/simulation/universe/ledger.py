"""The history that all agree on, with the real contract: members reach it late, twice, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from konsil.core.digest import bytes_digest
from konsil.core.rules import (
    Agree,
    Call,
    Enter,
    Genesis,
    Initialise,
    MemberRecord,
    ProposeStudy,
    State,
    Study,
    StudySettings,
    apply,
    initial_state,
    is_over,
    settings_digest,
)
from konsil.errors import KonsilError, LedgerUnreachable, Refused
from konsil.simulation.universe.agenda import Agenda
from konsil.simulation.universe.models import SCHEMA, Content, data_bytes, model_of
from konsil.simulation.universe.network import Network
from konsil.simulation.universe.plan import Plan

STUDY = "aml"
BEGIN_S = 1_000_000
"""Ledger time, unix seconds, at which every universe begins."""

SILENCE_S, PATIENCE_S, MERGE_S, GIVE_UP_S = 20, 120, 5, 1_000_000
"""A round is never given up in time: that it ends is to be seen."""

Told = Callable[[KonsilError | None], None]
Lives = Callable[[], bool]
"""Whether the node that made a call is still the same one."""

Watch = Callable[[str, Call, State, State], None]


class Ledger:
    """``study``: as it stands; ``over``: whether it has ended.

    ``watch`` is told of every call that was taken, with the states before and after.
    """

    def __init__(self, plan: Plan, agenda: Agenda, network: Network, watch: Watch) -> None:
        self.state = _begun(plan)
        self.study: Study = self.state.studies[STUDY]
        self.over = False
        self._agenda = agenda
        self._network = network
        self._watch = watch
        self.moved: Callable[[], None] = lambda: None
        self.last: dict[str, tuple[int, Call]] = {}

    def submit(self, member: str, call: Call, told: Told, lives: Lives) -> None:
        """Put a member's call on the ledger, as soon as it gets there; then tell how it went.

        A member that cannot reach the ledger tries on, with a new number where its number is taken. Once its
        node has died nobody does: what was on its way gets there, under the number that it had, or is lost.
        """
        number = self.state.members[member].sequence + 1
        wait_s = self._network.delay_s(1)
        away_s = self._network.ledger_away_until_s(member)
        arrives_s = max(self._agenda.now_s, away_s) + wait_s
        self._agenda.at(arrives_s, self._arrives, member, number, call, told, lives)

    def _arrives(self, member: str, number: int, call: Call, told: Told, lives: Lives) -> None:
        away = self._network.ledger_away_until_s(member) > self._agenda.now_s
        if not lives() and (away or self._network.astray()):
            return
        if away:
            self.submit(member, call, told, lives)
            return
        error: KonsilError | None = None
        try:
            self.take(member, call, 0 if lives() else number)
        except Refused as refused:
            error = refused
        else:
            if self._network.lost():
                error = LedgerUnreachable("The ledger took the call, and its answer was lost.")
        if self._network.quick:
            told(error)
        else:
            self._agenda.after(self._network.delay_s(1), told, error)

    def take(self, member: str, call: Call, sequence: int = 0) -> None:
        """Apply a call now; with a number of its own it is one that was said before.

        Raises:
            Refused: the contract says no.
        """
        before = self.state
        number = sequence or before.members[member].sequence + 1
        self.state = apply(before, member, number, call, BEGIN_S + int(self._agenda.now_s))
        self.last[member] = number, call
        self.study = self.state.studies[STUDY]
        self.over = is_over(self.study)
        self._watch(member, call, before, self.state)
        if self._network.doubled():
            self._again(member, number, call)
        self.moved()

    def _again(self, member: str, number: int, call: Call) -> None:
        try:
            apply(self.state, member, number, call, BEGIN_S + int(self._agenda.now_s))
        except Refused:
            return
        raise AssertionError(f"the ledger took call {number} of {member} twice")


def initial_model(chunks: int) -> Content:
    """What every study of a universe begins with."""
    return model_of([float(index) for index in range(chunks)])


def _settings(plan: Plan) -> StudySettings:
    return StudySettings(
        name=STUDY,
        min_members=plan.quorum,
        quorum=plan.quorum,
        rounds=plan.rounds,
        every_steps=1,
        rule=plan.rule,
        weighting="examples",
        parts=plan.parts,
        audit_fraction=plan.audit,
        silence_s=SILENCE_S,
        patience_s=PATIENCE_S,
        merge_s=MERGE_S,
        give_up_s=GIVE_UP_S,
        stop_minutes=plan.hours * 60,
    )


def _begun(plan: Plan) -> State:
    """The ledger when a universe begins: a study that all agreed to, or its first round just opened."""
    of_members = plan.names, plan.quorum, plan.running
    of_study = plan.rounds, plan.hours, plan.rule, plan.parts, plan.audit, plan.chunks
    key = of_members, of_study
    if key not in _known:
        _known[key] = _first_state(plan.names, _settings(plan), plan.chunks, running=plan.running)
    return _known[key]


_known: dict[tuple[object, ...], State] = {}
"""Most universes begin in one of a few ways."""


def _first_state(names: Sequence[str], settings: StudySettings, chunks: int, *, running: bool) -> State:
    records = tuple(_record(name) for name in names)
    state = initial_state(Genesis("lungs", "local", names[0], BEGIN_S, records))
    calls: list[tuple[str, Call]] = [(names[0], ProposeStudy(settings))]
    calls += [(name, Agree(STUDY, settings_digest(settings))) for name in names[1:]]
    if running:
        model = initial_model(chunks)
        calls.append((names[0], Initialise(STUDY, SCHEMA, model.digest, data_bytes(chunks))))
        calls += [(name, Enter(STUDY)) for name in names]
    for name, call in calls:
        state = apply(state, name, state.members[name].sequence + 1, call, BEGIN_S)
    return state


def _record(name: str) -> MemberRecord:
    key, bundle, card = (
        bytes_digest(f"{what} of {name}".encode(), "universe") for what in ("key", "bundle", "card")
    )
    return MemberRecord(name, f"spiffe://{name}.example/node", key, bundle, card)
