"""What must hold in every universe, whatever happens there: looked at whenever anything is said or done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from konsil.core.digest import Manifest, chunk_count, chunk_range
from konsil.core.merge import merge_whole, rule
from konsil.core.rules import Accept, Alive, Call, Commit, Initialise, Publish, RoundRecord, State, Study
from konsil.simulation.laws import Law
from konsil.simulation.nodes.disk import Disk
from konsil.simulation.nodes.plan import STUDY
from konsil.simulation.nodes.script import SCHEMA, digest_of, initial

MOST_ALIVE, ALIVE_WITHIN_S = 8, 3
"""Of a member's signs of life so many in so many seconds are a flood: half of the silence, 2.5 s, is between
two that are needed."""


ON_DISK: Law = "what was accepted is on disk"


class Invariants:
    """Watches a world.

    Args:
        disks: every member's.
        liars: members of whom nothing is expected.
        broken: told what does not hold.
    """

    def __init__(
        self, disks: Mapping[str, Disk], liars: frozenset[str], broken: Callable[[Law, str], None]
    ) -> None:
        """Nothing has happened yet."""
        self._disks = disks
        self._liars = liars
        self._broken = broken
        self._updates: dict[str, bytes] = {}
        self._merges: dict[str, bytes] = {digest_of(initial()): initial()}
        self._handed: dict[int, bytes] = {}
        self._said: dict[tuple[object, ...], str] = {}
        self._accepted: RoundRecord | None = None
        self._rounds = 0
        self._alive: dict[str, deque[int]] = {}
        self._noted: set[tuple[str, int]] = set()

    # --- what members say ------------------------------------------------------------------------

    def says(self, name: str, call: Call) -> None:
        """A member's node is about to say something to the ledger: it must have kept its promises by now."""
        if name in self._liars:
            return
        match call:
            case Commit():
                self._once(("update", name, call.round, call.base), call.digest)
                self._is_kept(name, call.base, f"commits to round {call.round}")
                if call.start:
                    self._is_on_disk(name, f"{STUDY}.outer", call.start, f"commits to round {call.round}")
            case Publish():
                self._once(("part", name, call.round, call.attempt, call.part), call.digest)
                self._is_promised(name, call)
            case Accept():
                self._is_kept(name, call.digest, f"accepts the merge of round {call.round}")
            case Initialise():
                self._is_kept(name, call.digest, "names the initial parameters")

    def refused(self, name: str, call: Call) -> None:
        """The contract said no: of a commit, that another one may be said in its place."""
        if isinstance(call, Commit):
            self._said.pop(("update", name, call.round, call.base), None)

    def _once(self, what: tuple[object, ...], digest: str) -> None:
        before = self._said.setdefault(what, digest)
        if before != digest:
            self._broken(
                "one update a round",
                f"{what[1]} says {digest[:8]} after {before[:8]}: its {what[0]} of round {what[2]}",
            )

    def _is_promised(self, name: str, call: Publish) -> None:
        noted = self._disks[name].surely(f"journal/{STUDY}.notes") or b""
        if call.digest.encode() not in noted:
            self._broken(
                "a promise is written before it is said",
                f"{name} publishes {call.digest[:8]} before the promise is on its disk",
            )

    def _is_kept(self, name: str, digest: str, when: str, law: Law = "what is held is on disk") -> None:
        self._is_on_disk(name, STUDY, digest, when, law)

    def _is_on_disk(
        self, name: str, folder: str, digest: str, when: str, law: Law = "what is held is on disk"
    ) -> None:
        disk, place = self._disks[name], f"merges/{folder}/{digest}"
        data, manifest = disk.surely(f"{place}.safetensors"), disk.surely(f"{place}.manifest")
        if data is None or manifest is None:
            self._broken(law, f"{name} {when}, but {digest[:8]} would not survive a power cut there")
            return
        known = self._merges.get(digest)
        if Manifest.decode(manifest).digest != digest or (
            known is not None and data != SCHEMA.header + known
        ):
            self._broken(law, f"{name} {when}, but what is on its disk is not {digest[:8]}")

    def serves(self, name: str, peer: str, digest: str, asked: State, answered: State) -> None:
        """A member's node gives a peer what is behind a digest; a relay may take so long that the round
        collects again meanwhile.
        """
        before, after = (_why_not(peer, digest, state) for state in (asked, answered))
        if before is not None and after is not None:
            law, why = after
            self._broken(law, f"{name} gives {peer} {digest[:8]}: {why}")

    # --- what the ledger takes -------------------------------------------------------------------

    def took(self, caller: str, call: Call, before: State, after: State) -> None:
        """The contract took a call."""
        if isinstance(call, Alive) and caller not in self._liars:
            times_s = self._alive.setdefault(caller, deque(maxlen=MOST_ALIVE))
            times_s.append(after.now_s)
            if len(times_s) == MOST_ALIVE and times_s[-1] - times_s[0] <= ALIVE_WITHIN_S:
                self._broken("the ledger is not flooded", f"{caller} floods the ledger with signs of life")
        study = after.studies.get(STUDY)
        if study is None:
            return
        self._rosters_stand(before.studies.get(STUDY), study)
        for name, participant in study.participants.items():
            if participant.struck and name not in self._liars:
                self._broken("no honest member is struck", f"{name}, which is honest, was struck")
        if len(study.history) > self._rounds:
            self._rounds = len(study.history)
            self._accepted = study.history[-1]
            members = set(before.studies[STUDY].participants)
            self._check(study, study.history[-1], members)

    def _rosters_stand(self, was: Study | None, now: Study) -> None:
        """What is on a roster stays there as it is, or the attempt is another one."""
        old, new = was.open if was is not None else None, now.open
        if old is None or new is None or not old.roster:
            return
        if (old.number, old.attempt) == (new.number, new.attempt) and old.commits != new.commits:
            self._broken(
                "one update a round",
                f"the updates of round {new.number}.{new.attempt} changed while they were merged",
            )

    def _check(self, study: Study, record: RoundRecord, members: set[str]) -> None:
        named = set(record.roster) | set(record.absent)
        if named != members or set(record.roster) & set(record.absent):
            self._broken(
                "who took part is on the ledger",
                f"round {record.number} names {sorted(named)} instead of {sorted(members)}",
            )
        expected = self._recomputed(study, record)
        if expected is None:
            return
        digest, data = expected
        self._merges[digest] = data
        if digest != record.digest:
            self._broken(
                "a merge is what its commits give",
                f"round {record.number} was accepted with {record.digest[:8]}, its commits give {digest[:8]}",
            )
            return
        for name in record.accepts:
            if name not in self._liars:
                self._is_kept(name, digest, f"has accepted round {record.number}", ON_DISK)

    def _recomputed(self, study: Study, record: RoundRecord) -> tuple[str, bytes] | None:
        """The merge's digest and data, from the roster's updates alone."""
        updates = []
        for name, commit in record.roster.items():
            data = self._updates.get(commit.digest) or self._merges.get(commit.digest)
            if data is None:
                self._broken(
                    "a merge is what its commits give",
                    f"round {record.number} merges {commit.digest[:8]} of {name}, which nobody made",
                )
                return None
            updates.append(_cut(data))
        out = memoryview(bytearray(SCHEMA.data_bytes))
        whole = merge_whole(
            rule(study.settings.rule, study.settings.rule_options),
            SCHEMA,
            updates,
            [record.weights[name] for name in record.roster],
            len(record.parts),
            out,
            base=_cut(self._merges[record.base]),
        )
        return Manifest(SCHEMA.header, whole.groups).digest, bytes(out)

    # --- what training processes make and are handed ---------------------------------------------

    def made(self, digest: str, data: bytes) -> None:
        """A training process has made an update."""
        self._updates[digest] = data

    def handed(self, name: str, number: int, digest: str, data: bytes, *, outer: bool) -> None:
        """A training process was handed the model of a round."""
        first = self._handed.setdefault(number, data)
        if data != first:
            self._broken(
                "all hold one merge", f"{name} was handed another model of round {number} than others"
            )
        if outer:  # a finished member commits the model that training goes on from
            self._updates[digest_of(data)] = data
        elif self._merges.get(digest) != data:
            self._broken(
                "all hold one merge", f"{name} was handed a model of round {number} that is not {digest[:8]}"
            )

    def noted(self, name: str, number: int) -> None:
        """A member's node has acknowledged the scores of a round."""
        self._noted.add((name, number))

    def unsaid(self, study: Study, gone: frozenset[str]) -> list[str]:
        """Scores that were acknowledged and do not stand on the ledger; whoever is ``gone`` aside."""
        return [
            f"{name}'s of round {number}"
            for name, number in sorted(self._noted)
            if name not in gone | self._liars and name not in study.history[number - 1].scores
        ]

    # --- crashes ---------------------------------------------------------------------------------

    def survives(self, name: str) -> None:
        """A member's disk after a crash: what it accepted last must be there.

        Which update it had committed only the ledger knows now: it may say another one.
        """
        for said in [about for about in self._said if about[:2] == ("update", name)]:
            del self._said[said]
        record = self._accepted
        if record is not None and name in record.accepts and name not in self._liars:
            self._is_kept(name, record.digest, f"comes back after accepting round {record.number}", ON_DISK)


def _why_not(peer: str, digest: str, state: State) -> tuple[Law, str] | None:
    """The law by which a peer may not have what is behind a digest, and why; None if it may."""
    study = state.studies.get(STUDY)
    if study is None or peer not in study.participants:
        return "only members of the study read", "it takes no part"
    current = study.open
    known = {study.accepted, *(record.digest for record in study.history)}
    if current is None or current.phase != "collecting" or digest in known:
        return None
    others = (commit.digest for other, commit in current.commits.items() if other != peer)
    if digest not in others:
        return None
    why = f"an update of round {current.number}, which still collects"
    return "updates are read once the roster is fixed", why


def _cut(data: bytes) -> list[bytes]:
    return [data[slice(*chunk_range(index, len(data)))] for index in range(chunk_count(len(data)))]
