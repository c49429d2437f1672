"""The part of the rules' state that stands on the contract too."""

from __future__ import annotations

from typing import Final

from konsil.core.rules import (
    DisputeRecord,
    Member,
    OpenRound,
    Proposal,
    ProposeAdmit,
    ProposeRemove,
    ProposeSwarmSettings,
    RoundRecord,
    State,
    Study,
)
from konsil.ledger.ethereum import settings_words
from konsil.ledger.ethereum.directory import Directory
from konsil.ledger.ethereum.seen import (
    DisputeSeen,
    MemberSeen,
    ParticipantSeen,
    ProposalSeen,
    RecordSeen,
    RoundSeen,
    Seen,
    StudySeen,
)
from konsil.ledger.ethereum.words import NO_DIGEST, encode, keccak

_ENDS: Final = (
    ("All who took part", "all finished"),
    ("All ", "all rounds"),
    ("Its ", "time"),
    ("Finished:", "too few left"),
    ("Round ", "given up"),
    ("'", "proposer removed"),
)
"""How the sentences begin that say why a study ended; the contract has a number for each."""

OUTCOMES: Final = ("", "wrong", "right", "undecided")


def seen_in_state(state: State, directory: Directory) -> Seen:
    """What the contract must show for this state."""
    return Seen(
        height=state.height,
        now_s=state.now_s,
        proposal_s=state.settings.proposal_s,
        members={name: _member(member) for name, member in state.members.items()},
        proposals=tuple(map(_proposal, state.proposals)),
        studies={name: _study(study, directory) for name, study in state.studies.items()},
    )


def _member(member: Member) -> MemberSeen:
    record = member.record
    addresses = "".join(f"{address}\n" for address in record.addresses)
    return MemberSeen(
        sequence=member.sequence,
        active=member.active,
        spiffe=keccak(record.spiffe_id.encode()).hex(),
        key=record.ledger_key,
        bundle=record.bundle,
        card=record.card,
        addresses=keccak(addresses.encode()).hex(),
        witness=record.witness,
    )


def _proposal(proposal: Proposal) -> ProposalSeen:
    subject = proposal.subject
    if isinstance(subject, ProposeAdmit):
        kind, about = "admit", subject.member.name
    elif isinstance(subject, ProposeRemove):
        kind, about = "remove", subject.member
    elif isinstance(subject, ProposeSwarmSettings):
        kind, about = "swarm", str(subject.settings.proposal_s)
    else:
        kind, about = "study", subject.settings.name
    return ProposalSeen(kind, proposal.proposer, proposal.closes_s, proposal.votes, proposal.outcome, about)


def _study(study: Study, directory: Directory) -> StudySeen:
    settings = study.settings
    fixed, free = settings_words.texts_of(settings)
    return StudySeen(
        proposer=study.proposer,
        proposed_s=study.proposed_s,
        phase=study.phase,
        started_s=study.started_s,
        ended_s=study.ended_s,
        why=next((why for begins, why in _ENDS if study.ended.startswith(begins)), ""),
        schema=study.schema,
        initial=study.initial,
        data_bytes=study.data_bytes,
        accepted=study.accepted,
        pending=study.pending is not None,
        numbers=settings_words.numbers_of(settings, directory.mask(settings.members)),
        fixed=keccak(fixed.encode()).hex(),
        free=keccak(free.encode()).hex(),
        participants={
            name: ParticipantSeen(p.present, p.from_round, p.finished, p.struck)
            for name, p in study.participants.items()
        },
        open=None if study.open is None else _round(study.open, directory),
        history=tuple(map(_record, study.history)),
    )


def _round(current: OpenRound, directory: Directory) -> RoundSeen:
    dispute = current.dispute
    return RoundSeen(
        number=current.number,
        attempt=current.attempt,
        phase=current.phase,
        opened_s=current.opened_s,
        phase_since_s=current.phase_since_s,
        deadline_s=current.deadline_s,
        expected=current.expected,
        commits={name: (c.digest, c.examples, c.at_s, c.start) for name, c in current.commits.items()},
        absent=current.absent,
        roster=current.roster,
        parts=tuple((part.leader, part.digest, part.gram) for part in current.parts),
        reports=current.reports,
        digest=current.digest,
        accepts=current.accepts,
        silent=current.silent,
        struck=tuple(sorted(current.struck)),
        dispute=None
        if dispute is None
        else DisputeSeen(
            dispute.by, dispute.leader, dispute.attempt, dispute.part, dispute.chunk, dispute.closes_s,
            dispute.verdicts,
        ),
        closed=len(current.disputes),
        trail=_trail(current.disputes, directory),
    )  # fmt: skip


def _trail(disputes: tuple[DisputeRecord, ...], directory: Directory) -> str:
    trail = NO_DIGEST
    for closed in disputes:
        wrong = directory.mask(name for name, is_wrong in closed.verdicts.items() if is_wrong)
        right = directory.mask(name for name, is_wrong in closed.verdicts.items() if not is_wrong)
        numbers = [directory.member(closed.by), directory.member(closed.leader), closed.attempt, closed.part]
        rest = [closed.chunk, closed.closes_s, wrong, right, OUTCOMES.index(closed.outcome)]
        trail = keccak(encode([trail, *numbers, *rest]))
    return "" if trail == NO_DIGEST else trail.hex()


def _record(record: RoundRecord) -> RecordSeen:
    return RecordSeen(
        digest=record.digest,
        attempt=record.attempt,
        roster=tuple(sorted(record.roster)),
        accepts=record.accepts,
        merging_s=record.merging_s,
        accepted_s=record.accepted_s,
        scores={name: score.late for name, score in record.scores.items()},
    )
