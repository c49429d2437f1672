"""The same part, read from the contract. Who asks it is given: by JSON-RPC, or in a test's own machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

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
from konsil.ledger.ethereum.settings_words import N_NUMBERS
from konsil.ledger.ethereum.words import Words, encode, name_from, selector

Ask = Callable[[bytes], bytes]
"""Asks the contract something (eth_call): the call's data -> the answer. Nothing of it stays."""

SWARM = "swarm()"
MEMBER = "member(uint256)"
PROPOSAL = "proposal(uint256)"
ADMISSION = "admission(uint256)"
STUDY = "study(uint256)"
STANDING = "standing(uint256,uint256)"
PART = "part(uint256,uint256)"
RECORD = "record(uint256,uint256)"
QUESTIONS: Final = (SWARM, MEMBER, PROPOSAL, ADMISSION, STUDY, STANDING, PART, RECORD)

_KINDS: Final = ("", "admit", "remove", "swarm", "study")
_OUTCOMES: Final = ("open", "passed", "failed", "expired")
_STUDY_PHASES: Final = ("", "proposed", "running", "finished", "failed")
_ROUND_PHASES: Final = ("", "collecting", "merging")
_WHY: Final = ("", "all rounds", "time", "all finished", "too few left", "given up", "proposer removed")
_REASONS: Final = (
    "", "silent", "unreachable", "disputed", "left", "too slow", "finished", "removed", "struck"
)  # fmt: skip

# Where each of a study's values begins in the answer.
_SETTINGS, _PEOPLE, _ROUND, _DISPUTE = 17, 33, 39, 56


def _asked(ask: Ask, question: str, *numbers: int) -> Words:
    return Words(ask(selector(question) + encode(numbers)))


def refresh(directory: Directory, ask: Ask) -> Directory:
    """The directory as it is now: new members and studies, and the settings that each study has."""
    swarm = _asked(ask, SWARM)
    n_members, n_studies = swarm.number(3), swarm.number(5)
    members = list(directory.members)
    for number in range(len(members), n_members):
        member = _asked(ask, MEMBER, number)
        members.append(name_from(member.number(0), member.number(1)))
    studies, settings = list(directory.studies), {}
    for number in range(1, n_studies + 1):
        study = _asked(ask, STUDY, number)
        if number > len(studies):
            studies.append(name_from(study.number(0), study.number(1)))
        settings[studies[number - 1]] = study.raw(15)
    return replace(directory, members=tuple(members), studies=tuple(studies), settings=settings)


def seen_on_chain(ask: Ask, directory: Directory) -> Seen:
    """What the contract shows now."""
    swarm = _asked(ask, SWARM)
    active = swarm.number(6)
    return Seen(
        height=swarm.number(0),
        now_s=swarm.number(1),
        proposal_s=swarm.number(2),
        members={
            name: _member(_asked(ask, MEMBER, number), is_active=bool(active >> number & 1))
            for number, name in enumerate(directory.members)
        },
        proposals=tuple(_proposal(ask, number, directory) for number in range(1, swarm.number(4) + 1)),
        studies={name: _study(ask, number, directory) for number, name in enumerate(directory.studies, 1)},
    )


def _member(words: Words, *, is_active: bool) -> MemberSeen:
    spiffe, key, bundle, card, addresses = (words.raw(at).hex() for at in range(4, 9))
    return MemberSeen(
        words.number(3), is_active, spiffe, key, bundle, card, addresses, witness=words.truth(9)
    )


def _proposal(ask: Ask, number: int, directory: Directory) -> ProposalSeen:
    words = _asked(ask, PROPOSAL, number)
    kind = _KINDS[words.number(0)]
    about = words.number(6)
    if kind == "remove":
        subject = directory.members[about]
    elif kind == "study":
        subject = directory.studies[about - 1]
    elif kind == "admit":
        admitted = _asked(ask, ADMISSION, number)
        subject = name_from(admitted.number(0), admitted.number(1))
    else:
        subject = str(about)
    return ProposalSeen(
        kind=kind,
        proposer=directory.members[words.number(1)],
        closes_s=words.number(2),
        votes=_votes(words.number(3), words.number(4), directory),
        outcome=_OUTCOMES[words.number(5)],
        subject=subject,
    )


def _votes(yes: int, no: int, directory: Directory) -> dict[str, bool]:
    return dict.fromkeys(directory.names(yes), True) | dict.fromkeys(directory.names(no), False)


def _study(ask: Ask, number: int, directory: Directory) -> StudySeen:
    words = _asked(ask, STUDY, number)
    rounds = words.number(12)
    return StudySeen(
        proposer=directory.members[words.number(2)],
        proposed_s=words.number(3),
        phase=_STUDY_PHASES[words.number(4)],
        started_s=words.number(5),
        ended_s=words.number(6),
        why=_WHY[words.number(7)],
        schema=words.digest(8),
        initial=words.digest(9),
        data_bytes=words.number(10),
        accepted=words.digest(11),
        pending=words.truth(14),
        numbers=tuple(words.number(_SETTINGS + i) for i in range(N_NUMBERS)),
        fixed=words.raw(_SETTINGS + N_NUMBERS).hex(),
        free=words.raw(_SETTINGS + N_NUMBERS + 1).hex(),
        participants=_participants(ask, number, words, directory),
        open=_round(ask, number, words, directory) if words.truth(_ROUND) else None,
        history=tuple(_record(_asked(ask, RECORD, number, i), directory) for i in range(1, rounds + 1)),
    )


def _participants(ask: Ask, study: int, words: Words, directory: Directory) -> dict[str, ParticipantSeen]:
    who, present, struck, snapshot, active, inactive = (
        set(directory.names(words.number(_PEOPLE + i))) for i in range(6)
    )
    finished = {
        **dict.fromkeys(snapshot, "snapshot"),
        **dict.fromkeys(active, "active"),
        **dict.fromkeys(inactive, "inactive"),
    }
    found = {}
    for name in who:
        from_round = _asked(ask, STANDING, study, directory.member(name)).number(0)
        found[name] = ParticipantSeen(name in present, from_round, finished.get(name), name in struck)
    return found


def _round(ask: Ask, study: int, words: Words, directory: Directory) -> RoundSeen:
    def names(at: int) -> tuple[str, ...]:
        return directory.names(words.number(_ROUND + at))

    standing = {name: _asked(ask, STANDING, study, number) for number, name in enumerate(directory.members)}
    published = words.number(_ROUND + 11)
    parts = []
    for part in range(words.number(_ROUND + 10)):
        said = _asked(ask, PART, study, part)
        there = published >> part & 1
        digests = (said.digest(1), said.digest(2)) if there else ("", "")
        parts.append((directory.members[said.number(0)], *digests))
    return RoundSeen(
        number=words.number(_ROUND + 1),
        attempt=words.number(_ROUND + 2),
        phase=_ROUND_PHASES[words.number(_ROUND)],
        opened_s=words.number(_ROUND + 3),
        phase_since_s=words.number(_ROUND + 4),
        deadline_s=words.number(_ROUND + 5),
        expected={name: standing[name].number(1) for name in names(6)},
        commits={
            name: (
                standing[name].digest(4), standing[name].number(5), standing[name].number(6),
                standing[name].digest(7),
            )
            for name in names(7)
        },
        absent={name: _REASONS[standing[name].number(2)] for name in names(8)},
        roster=names(9),
        parts=tuple(parts),
        reports={name: directory.names(standing[name].number(3)) for name in names(12)},
        digest=words.digest(_ROUND + 13),
        accepts=names(14),
        silent=names(15),
        struck=names(16),
        dispute=_dispute(words, directory),
        closed=words.number(_DISPUTE + 11),
        trail=words.digest(_DISPUTE + 12),
    )  # fmt: skip


def _dispute(words: Words, directory: Directory) -> DisputeSeen | None:
    if not words.truth(_DISPUTE):
        return None
    return DisputeSeen(
        by=directory.members[words.number(_DISPUTE + 1)],
        leader=directory.members[words.number(_DISPUTE + 2)],
        attempt=words.number(_DISPUTE + 3),
        part=words.number(_DISPUTE + 4),
        chunk=words.number(_DISPUTE + 5),
        closes_s=words.number(_DISPUTE + 6),
        verdicts=_votes(words.number(_DISPUTE + 7), words.number(_DISPUTE + 8), directory),
    )


def _record(words: Words, directory: Directory) -> RecordSeen:
    late = set(directory.names(words.number(7)))
    return RecordSeen(
        digest=words.digest(0),
        attempt=words.number(1),
        roster=directory.names(words.number(2)),
        accepts=directory.names(words.number(3)),
        merging_s=words.number(4),
        accepted_s=words.number(5),
        scores={name: name in late for name in directory.names(words.number(6))},
    )
