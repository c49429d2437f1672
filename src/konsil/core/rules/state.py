"""The contract's state: values only. Every change makes a new value that shares what did not change."""

from __future__ import annotations

from typing import Literal

import msgspec

from konsil.core.rules.calls import (
    Contribution,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudySettings,
    ProposeSwarmSettings,
)
from konsil.core.rules.settings import StudySettings, SwarmSettings

StudyPhase = Literal["proposed", "running", "finished", "failed"]
RoundPhase = Literal["collecting", "merging"]


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen value of the state."""


class Genesis(_Value, frozen=True):
    """What the founding members agreed on before there was a ledger.

    ``engine``: who keeps the ledger; ``operator``: for the local engine, the member whose node serves it.
    ``members``: sorted by name. ``created_s``: unix time; the ledger's time starts here.
    """

    swarm: str
    engine: Literal["local", "cometbft", "ethereum"]
    operator: str
    created_s: int
    members: tuple[MemberRecord, ...]
    settings: SwarmSettings = SwarmSettings()
    version: int = 1


class Member(_Value, frozen=True):
    """A member as the contract knows it. ``sequence``: of its last call. ``active``: False once removed.
    ``validates``: its node is one of those that decide on the ledger's blocks, where an engine has such.

    ``renewed_s``: when it put its present card on the ledger by itself; 0 if it was admitted with it.
    ``renewals``: how many such changes count against it at that time.
    """

    record: MemberRecord
    sequence: int = 0
    active: bool = True
    validates: bool = False
    renewed_s: int = 0
    renewals: int = 0


class Proposal(_Value, frozen=True):
    """An open or closed vote."""

    number: int
    proposer: str
    subject: ProposeAdmit | ProposeRemove | ProposeSwarmSettings | ProposeStudySettings
    closes_s: int
    votes: dict[str, bool]
    outcome: Literal["open", "passed", "failed", "expired"] = "open"


class Participant(_Value, frozen=True):
    """A member that agreed to a study.

    ``present``: its training has entered. ``from_round``: the first round that waits for it.
    ``finished``: what it keeps contributing once it has finished. ``struck``: proven to have published a
    wrong merge; it takes no further part.
    """

    present: bool = False
    from_round: int = 1
    finished: Contribution | None = None
    struck: bool = False


class Commitment(_Value, frozen=True):
    """An update on record. ``start``: as in ``Commit``."""

    digest: str
    examples: int
    at_s: int
    start: str = ""


class Part(_Value, frozen=True):
    """A part of the open round: who leads it and, once published, its digest."""

    leader: str
    digest: str = ""
    gram: str = ""


class DisputeRecord(_Value, frozen=True):
    """A disputed chunk of a part and what the roster found. ``verdicts``: member -> wrong?

    ``outcome``: "open", "wrong" (the leader left the roster; more than half of all participants strike it
    for good), "right", or "undecided" when time ran out.
    """

    by: str
    leader: str
    attempt: int
    part: int
    chunk: int
    closes_s: int
    verdicts: dict[str, bool]
    outcome: Literal["open", "wrong", "right", "undecided"] = "open"


class OpenRound(_Value, frozen=True):
    """The round that is being made.

    ``base``: digest of the merge it starts from. ``expected``: member that the round waits for ->
    ledger time until which it does. ``absent``: member -> why it is not in this round.
    ``deadline_s``: the next moment at which a tick has consequences.
    ``roster`` (sorted), ``parts`` and ``reports`` are empty while collecting. ``digest``: of the merge once
    all parts are published; then ``accepts`` (sorted) are the members of the roster that hold it all.
    ``dispute``: the open one, if any; ``disputes``: closed ones of this round; ``struck``: cheats proven.
    ``phase_since_s``: start of the phase or, while merging, of this attempt. ``silent``: leaders that let a
    deadline of this round pass; parts are dealt to others while there are any. ``interval``: how many times
    the set interval members train before they commit.
    """

    number: int
    attempt: int
    phase: RoundPhase
    base: str
    opened_s: int
    phase_since_s: int
    deadline_s: int
    expected: dict[str, int] = {}
    commits: dict[str, Commitment] = {}
    absent: dict[str, str] = {}
    roster: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    reports: dict[str, tuple[str, ...]] = {}
    digest: str = ""
    accepts: tuple[str, ...] = ()
    dispute: DisputeRecord | None = None
    disputes: tuple[DisputeRecord, ...] = ()
    struck: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    interval: int = 1


class ScoreRecord(_Value, frozen=True):
    """One member's scores of a merge, and on how many examples it says that it measured them.

    ``late``: too late to decide anything: which merge is best, when the study stops, how long members train.
    """

    examples: int
    loss: float | None = None
    metrics: dict[str, float] = {}
    late: bool = False


class RoundRecord(_Value, frozen=True, weakref=True):
    """An accepted round: who took part, who did not and why, and what came out.

    ``roster``: member -> its commitment. ``weights``: member -> integer merge weight.
    ``parts``: leader and digest of each. ``absent``: member -> why. ``disputes``: those raised on the way.
    ``struck``: cheats proven in this round. ``interval``: as in ``OpenRound``.
    """

    number: int
    attempt: int
    base: str
    digest: str
    roster: dict[str, Commitment]
    weights: dict[str, int]
    parts: tuple[Part, ...]
    absent: dict[str, str]
    opened_s: int
    merging_s: int
    accepted_s: int
    scores: dict[str, ScoreRecord] = {}
    accepts: tuple[str, ...] = ()
    disputes: tuple[DisputeRecord, ...] = ()
    struck: tuple[str, ...] = ()
    interval: int = 1


class Study(_Value, frozen=True):
    """A study: its settings, who takes part, the open round and every accepted one.

    ``accepted``: digest of the last accepted merge (the initial parameters before round 1 ends).
    ``ended``: why it finished or failed. ``pending``: settings voted for, which hold from the next round on.
    ``best``: the round whose merge has the best score so far, where the settings ask for it; 0 for none.
    ``best_of_old``: the same among the rounds whose scores cannot change any more.
    """

    settings: StudySettings
    settings_digest: str
    proposer: str
    proposed_s: int
    phase: StudyPhase = "proposed"
    participants: dict[str, Participant] = {}
    schema: str = ""
    initial: str = ""
    data_bytes: int = 0
    open: OpenRound | None = None
    history: tuple[RoundRecord, ...] = ()
    ended: str = ""
    started_s: int = 0
    ended_s: int = 0
    pending: StudySettings | None = None
    best: int = 0
    best_of_old: int = 0

    @property
    def accepted(self) -> str:
        """Digest of the last accepted merge; of the initial parameters before that; "" without either."""
        return self.history[-1].digest if self.history else self.initial


class State(_Value, frozen=True):
    """Everything the contract knows. ``height``: calls applied; ``now_s``: ledger time of the last one."""

    genesis: str
    engine: str
    operator: str
    settings: SwarmSettings
    members: dict[str, Member]
    proposals: tuple[Proposal, ...] = ()
    studies: dict[str, Study] = {}
    height: int = 0
    now_s: int = 0
