"""What of the rules' state stands on the contract too: one shape, had from either, to be compared.

What is missing here decides nothing on the contract, and follows from the calls: texts, settings that only
nodes follow, and of accepted rounds what their members can compute again.
"""

from __future__ import annotations

import msgspec


class _Seen(msgspec.Struct, frozen=True):
    """A value to be compared."""


class MemberSeen(_Seen, frozen=True):
    """A member. ``spiffe``, ``addresses``: keccak digests."""

    sequence: int
    active: bool
    spiffe: str
    key: str
    bundle: str
    card: str
    addresses: str
    witness: bool


class ProposalSeen(_Seen, frozen=True):
    """A vote. ``subject``: the member, the study, or ``proposal_s``."""

    kind: str
    proposer: str
    closes_s: int
    votes: dict[str, bool]
    outcome: str
    subject: str


class ParticipantSeen(_Seen, frozen=True):
    """A participant, as in the rules' state."""

    present: bool
    from_round: int
    finished: str | None
    struck: bool


class DisputeSeen(_Seen, frozen=True):
    """The open dispute, as in the rules' state."""

    by: str
    leader: str
    attempt: int
    part: int
    chunk: int
    closes_s: int
    verdicts: dict[str, bool]


class RoundSeen(_Seen, frozen=True):
    """The open round, as in the rules' state. ``closed``, ``trail``: how many disputes are closed, and a
    digest chained over them.
    """

    number: int
    attempt: int
    phase: str
    opened_s: int
    phase_since_s: int
    deadline_s: int
    expected: dict[str, int]
    commits: dict[str, tuple[str, int, int, str]]
    absent: dict[str, str]
    roster: tuple[str, ...]
    parts: tuple[tuple[str, str, str], ...]
    reports: dict[str, tuple[str, ...]]
    digest: str
    accepts: tuple[str, ...]
    silent: tuple[str, ...]
    struck: tuple[str, ...]
    dispute: DisputeSeen | None
    closed: int
    trail: str


class RecordSeen(_Seen, frozen=True):
    """An accepted round. ``scores``: who has scored it, and whether too late."""

    digest: str
    attempt: int
    roster: tuple[str, ...]
    accepts: tuple[str, ...]
    merging_s: int
    accepted_s: int
    scores: dict[str, bool]


class StudySeen(_Seen, frozen=True):
    """A study. ``numbers``, ``fixed``, ``free``: its settings; the last two as keccak digests."""

    proposer: str
    proposed_s: int
    phase: str
    started_s: int
    ended_s: int
    why: str
    schema: str
    initial: str
    data_bytes: int
    accepted: str
    pending: bool
    numbers: tuple[int, ...]
    fixed: str
    free: str
    participants: dict[str, ParticipantSeen]
    open: RoundSeen | None
    history: tuple[RecordSeen, ...]


class Seen(_Seen, frozen=True):
    """All of it."""

    height: int
    now_s: int
    proposal_s: int
    members: dict[str, MemberSeen]
    proposals: tuple[ProposalSeen, ...]
    studies: dict[str, StudySeen]
