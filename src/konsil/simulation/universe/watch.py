"""What must hold in every universe, looked at after every event that could break it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from konsil.core.round import Deliver, Effect, Submit
from konsil.core.rules import Accept, Call, Commit, Finish, Publish, RoundRecord, State, Study, Tick, is_over
from konsil.errors import KonsilError, Refused
from konsil.simulation.calls import sentence
from konsil.simulation.faults import Cut, DialsOut, LedgerHalt, Partition
from konsil.simulation.laws import Violation
from konsil.simulation.universe.ledger import STUDY
from konsil.simulation.universe.models import Content, whole
from konsil.simulation.universe.plan import Plan, Slow

if TYPE_CHECKING:
    from konsil.simulation.universe.node import Node
    from konsil.simulation.universe.world import World


CALLS_AT_ONCE, CALLS_A_SECOND, CALLS_A_MEMBER = 120, 2.0, 5
"""At first, each second, and for each member in each accepted round: more than any universe needs. Without
a bound members that are all well, and cannot reach each other, fill the ledger's disk."""


FAILURES_AT_ONCE, FAILURES_WITHIN_S = 8, 2.0
"""More than this of one effect keep a machine busy for nothing: the third try is a second and a half after
the first, unless what failed was not wanted in between."""


class Watch:
    """Sees all that is said on the ledger and all that is delivered. ``left``: members' snapshots."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.honest = frozenset(world.plan.honest)
        self.left: dict[str, str] = {}
        self._said: dict[tuple[str, ...], str] = {}
        self._failed: dict[tuple[str, Effect], deque[float]] = {}
        self._accepted: dict[int, str] = {}
        self.calls = self._honest_calls = 0
        self._undisturbed = _undisturbed(world.plan)

    # --- what nodes say ----------------------------------------------------------------------------

    def says(self, name: str, call: Call, node: Node) -> None:
        """A node is about to make a call: an honest one must be bound by what it said before."""
        if name not in self.honest:
            return
        match call:
            case Commit(round=number, base=base, digest=digest):
                # Another life knows nothing of what the one before said, or only what the ledger tells.
                self._keeps_its_word((name, f"life {node.life}", "commit", str(number), base), digest)
                self._on_disk(node, base, "the model that it goes on from")
                self._is_its_snapshot(node, digest)
            case Publish(round=number, attempt=attempt, part=part, digest=digest):
                self._keeps_its_word((name, "publish", str(number), str(attempt), str(part)), digest)
                if digest not in node.disk.promises.values():
                    raise Violation("a promise is written before it is said", f"{name}, part {part}")
            case Accept(digest=digest):
                self._on_disk(node, digest, "the merge that it accepts")
            case Finish(contribution="snapshot") if node.state.update is not None:
                self._on_disk(node, node.state.update.digest, "the update that it goes on contributing")
            case _:
                pass

    def failed(self, name: str, effect: Effect, problem: KonsilError, node: Node) -> None:
        """A node did not succeed in something."""
        if name not in self.honest:
            return
        if isinstance(effect, Submit) and isinstance(effect.call, Commit) and isinstance(problem, Refused):
            call = effect.call  # surely not on the ledger: another update may be said
            self._said.pop((name, f"life {node.life}", "commit", str(call.round), call.base), None)
        now_s = self.world.agenda.now_s
        times_s = self._failed.setdefault((name, effect), deque(maxlen=FAILURES_AT_ONCE))
        times_s.append(now_s)
        if len(times_s) == FAILURES_AT_ONCE and now_s - times_s[0] < FAILURES_WITHIN_S:
            raise Violation("what failed is not tried again at once", f"{name}: {problem.what}")

    def _keeps_its_word(self, about: tuple[str, ...], digest: str) -> None:
        if self._said.setdefault(about, digest) != digest:
            raise Violation(
                "one update a round", f"{' '.join(about)} was {self._said[about][:8]}, now {digest[:8]}."
            )

    def _is_its_snapshot(self, node: Node, digest: str) -> None:
        """What training left to be contributed on is what its node contributes, after any crash."""
        left = self.left.get(node.name, digest)
        if node.view.participants[node.name].finished == "snapshot" and left != digest:
            raise Violation("a snapshot stays what it was", f"{node.name} left {left[:8]}, not {digest[:8]}.")

    def _on_disk(self, node: Node, digest: str, what: str) -> None:
        if digest not in node.disk.models:
            raise Violation("what is held is on disk", f"{node.name} lacks {what}, {digest[:8]}.")

    # --- what the ledger takes ---------------------------------------------------------------------

    def taken(self, name: str, call: Call, before: State, after: State) -> None:
        """The ledger took a call."""
        self.calls += 1
        self._honest_calls += name in self.honest
        rounds = len(self._accepted) * CALLS_A_MEMBER * self.world.plan.members
        if self._honest_calls > CALLS_AT_ONCE + rounds + CALLS_A_SECOND * self.world.agenda.now_s:
            raise Violation(
                "the ledger is not flooded", f"{self._honest_calls} calls, the last one {name}'s."
            )
        was, now = before.studies[STUDY], after.studies[STUDY]
        self.world.story(lambda: f"{name} {sentence(call)}: {_about(now)}{_lost(was, now)}")
        if was.history is not now.history:
            self._history_only_grows(was, now)
        for record in now.history[len(was.history) :]:
            self._accept(now, record)
        self._commits_stand(was, now)
        if now.open is not None and not now.open.absent.keys().isdisjoint(now.open.commits):
            raise Violation("who took part is on the ledger", f"absent, with an update: {now.open.absent}")
        if isinstance(call, Commit) and name in self.honest:
            self._lost_what_it_replaces(name, was, now)
        if isinstance(call, Tick) and was.open is not None and after.now_s < was.open.deadline_s:
            raise Violation(
                "nothing happens before its deadline", f"{name} ticked before {was.open.deadline_s}."
            )
        self._stays_accused(name, was, now)
        for member in self.honest:
            participant = now.participants.get(member)
            if participant is not None and participant.struck:
                raise Violation(
                    "no honest member is struck", f"{member} was, by {name}'s {type(call).__name__}."
                )

    def _history_only_grows(self, was: Study, now: Study) -> None:
        """Scores come late; nothing else of an accepted round may change."""
        for old, new in zip(was.history, now.history, strict=False):
            if old is not new and _without_scores(old) != _without_scores(new):
                raise Violation("history only grows", f"round {old.number} is another one now.")

    def _commits_stand(self, was: Study, now: Study) -> None:
        """What is on a roster stays there as it is, or leaves it; nothing is added."""
        at = (was.open.number, was.open.attempt) if was.open is not None and was.open.roster else (0, 0)
        if was.open is None or now.open is None or at != (now.open.number, now.open.attempt):
            return
        if now.open.commits != was.open.commits or now.open.roster != was.open.roster:
            raise Violation("one update a round", f"the roster of round {at} became another one.")

    def _stays_accused(self, name: str, was: Study, now: Study) -> None:
        """Whose part is disputed cannot leave the round by its own word before that is settled."""
        before, after = was.open, now.open
        if before is None or after is None or before.dispute is None or before.dispute.leader != name:
            return
        left = before.number == after.number and name in before.commits and name not in after.commits
        settled = after.disputes[len(before.disputes) :]
        if left and not any(each.leader == name and each.outcome == "wrong" for each in settled):
            raise Violation("nobody slips away from a dispute", f"{name} left, and was not found out.")

    def _lost_what_it_replaces(self, name: str, was: Study, now: Study) -> None:
        """An honest member takes another update in place of one only when it no longer has that."""
        before = was.open.commits.get(name) if was.open is not None else None
        after = now.open.commits.get(name) if now.open is not None else None
        other = before is not None and after is not None and before.digest != after.digest
        if other and before.digest in self.world.nodes[name].models:  # type: ignore[union-attr]
            raise Violation("one update a round", f"{name} replaced an update that it has.")

    def _accept(self, study: Study, record: RoundRecord) -> None:
        self.world.round_begins()
        where = f"round {record.number}"
        if self._accepted.setdefault(record.number, record.digest) != record.digest:
            raise Violation("one merge a round", f"{where} was accepted twice.")
        roster, absent = set(record.roster), set(record.absent)
        if roster | absent != set(study.participants) or roster & absent:
            raise Violation("who took part is on the ledger", f"{where}: {roster} there, {absent} not.")
        if list(record.roster) != sorted(roster) or list(record.weights) != sorted(roster):
            raise Violation(
                "members are merged in the order of their names", f"{where}: {list(record.roster)}"
            )
        if 2 * len(record.accepts) <= len(roster):
            raise Violation("a majority accepts", f"{where} was accepted by {list(record.accepts)} only.")
        missing = [name for name in self._undisturbed if record.absent.get(name, "finished") != "finished"]
        if missing:
            raise Violation("who is there takes part", f"{where} went without {missing}: {record.absent}")
        if 2 * len(roster & self.honest) > len(roster):  # a majority of liars can agree on anything
            self._is_right(study, record)
            self._is_kept(record)

    def _is_right(self, study: Study, record: RoundRecord) -> None:
        updates = [self.world.contents[commit.digest] for commit in record.roster.values()]
        n_parts = len(record.parts)
        chunks, _ = self.world.merges.merged(study.settings.rule, updates, record.weights, n_parts)
        merge = whole(chunks, n_parts)
        where = f"round {record.number}"
        if merge.digest != record.digest:
            raise Violation("a merge is what its commits give", f"{where} is something else.")
        if study.settings.rule == "mean" and not _is_mean(merge, updates, record):
            raise Violation("a merge is what its commits give", f"{where} is not the weighted mean.")

    def _is_kept(self, record: RoundRecord) -> None:
        holders = [name for name in record.accepts if name in self.honest]
        for name in holders:
            if record.digest not in self.world.nodes[name].disk.models:
                raise Violation("what was accepted is on disk", f"{name} lost round {record.number}.")
        if not holders:
            raise Violation("what was accepted is on disk", f"nobody honest holds round {record.number}.")

    # --- what training gets ------------------------------------------------------------------------

    def delivered(self, name: str, effect: Deliver, model: Content) -> None:
        """A training process got a model."""
        if name not in self.honest:
            return
        agreed = self._accepted.get(effect.round, self.world.ledger.study.initial)
        if model.digest != agreed:
            raise Violation("all hold one merge", f"{name} got {model.digest[:8]} for round {effect.round}.")

    # --- the end -----------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """The study is over, and everybody who is there was told so."""
        study = self.world.ledger.study
        if study.phase == "failed":
            raise Violation("rounds end", f"the study failed: {study.ended}")
        latest = study.accepted
        for node in self.world.nodes.values():
            if node.name in self.honest and node.up and node.training is not None and node.training.served:
                has = node.training.has
                if has is None or (has.digest != latest and node.training.at != len(study.history)):
                    raise Violation("all hold one merge", f"{node.name} ended without the last one.")

    def out_of_time(self) -> None:
        """Nothing more happens, or not for a long time."""
        world = self.world
        study = world.ledger.study
        stages = ", ".join(f"{node.name} {node.stage}" for node in world.nodes.values())
        phase = _about(study) if not is_over(study) else "the study is over, but not everybody was told"
        raise Violation("rounds end", f"{phase}; {stages}; it is {world.agenda.now_s:.0f} s.")


def _lost(was: Study, now: Study) -> str:
    """Who has left the roster with this call."""
    if was.open is None or now.open is None or was.open.number != now.open.number:
        return ""
    gone = [name for name in was.open.roster if name not in now.open.commits]
    return "".join(f"; {name} leaves the roster, {now.open.absent.get(name, 'away')}" for name in gone)


def _about(study: Study) -> str:
    current = study.open
    if current is None:
        return f"the study is {study.phase}"
    what = f"round {current.number}.{current.attempt} is {current.phase}"
    if current.phase == "collecting":
        return f"{what}, commits of {_list(current.commits)}"
    if current.dispute is not None:
        return f"{what}, a dispute over chunk {current.dispute.chunk} of {current.dispute.leader}"
    if not current.digest:
        return f"{what}, parts of {_list(part.leader for part in current.parts if part.digest)} published"
    return f"{what}, accepted by {_list(current.accepts)} of {_list(current.roster)}"


def _list(names: object) -> str:
    return ", ".join(sorted(names)) or "nobody"  # type: ignore[call-overload]


def _without_scores(record: RoundRecord) -> RoundRecord:
    return replace(record, scores={})


def _is_mean(merge: Content, updates: Sequence[Content], record: RoundRecord) -> bool:
    """Whether a merge is the mean by the examples that members gave, computed in another way."""
    examples = [commit.examples for commit in record.roster.values()]
    for index, number in enumerate(merge.numbers):
        mean = math.fsum(n * update.numbers[index] for n, update in zip(examples, updates, strict=True))
        if not math.isclose(number, mean / sum(examples), rel_tol=1e-9, abs_tol=1e-9):
            return False
    return True


def _undisturbed(plan: Plan) -> frozenset[str]:
    """Honest members that nothing happens to, so that no round may go without them."""
    if plan.weather.loss or any(isinstance(fault, Partition | LedgerHalt | Cut) for fault in plan.faults):
        return frozenset()
    disturbed = {fault.member for fault in plan.faults if not isinstance(fault, Slow | DialsOut)}  # type: ignore[union-attr]
    hidden = [fault for fault in plan.faults if isinstance(fault, DialsOut)]
    if len(plan.liars) > 1 and disturbed - set(plan.liars):
        return frozenset()  # with an honest member away, two liars are most of another one's peers
    if (hidden and disturbed) or not plan.running:
        return frozenset()  # who relays may be gone; who enters late was not waited for
    return frozenset(plan.honest) - disturbed
