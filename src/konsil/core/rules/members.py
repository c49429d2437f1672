"""One member, one vote: who is admitted, who is removed, which settings hold."""

from __future__ import annotations

import re
from collections.abc import Collection

from msgspec.structs import replace

from konsil.core.digest import is_digest
from konsil.core.rules.agreement import (
    FIXED_SETTINGS,
    MAX_TEXT,
    check_study_settings,
    check_swarm_settings,
)
from konsil.core.rules.calls import (
    Announce,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudySettings,
    ProposeSwarmSettings,
    Validate,
    Vote,
)
from konsil.core.rules.refusing import (
    SLUG,
    not_over,
    participant_of,
    refusing_settings,
    require,
    study_named,
)
from konsil.core.rules.rounds import end_study, leave_roster, settle, take_settings
from konsil.core.rules.state import Member, Proposal, State, Study
from konsil.errors import Refused

Subject = ProposeAdmit | ProposeRemove | ProposeSwarmSettings | ProposeStudySettings

MAX_ADDRESSES = 8
MAX_OPEN_PROPOSALS = 16
"""Open votes that one member may have started: nobody can flood the others."""

MAX_RECENT_PROPOSALS = 64
"""Votes that one member may have started whose time is not up, decided ones too. Who takes part in a study
alone decides on its settings alone, and at once; but every vote stays on the ledger."""

_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]{1,255}){1,8}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")
_PORTS = range(1, 65536)


VALIDATED = frozenset({"cometbft"})
"""Engines in which members' nodes decide together on each block."""


def active(state: State) -> tuple[str, ...]:
    """The names of the members that have a vote, sorted."""
    return tuple(sorted(name for name, member in state.members.items() if member.active))


def trainers(state: State) -> tuple[str, ...]:
    """The names of the members that may take part in studies, sorted: all but the witnesses."""
    return tuple(name for name in active(state) if not state.members[name].record.witness)


def validators(state: State) -> tuple[str, ...]:
    """The names of the members whose nodes decide on the ledger's blocks, sorted."""
    return tuple(name for name in active(state) if state.members[name].validates)


def why_not_a_record(record: MemberRecord) -> str:
    """What is wrong with the form of a member's record; "" if nothing is."""
    if SLUG.fullmatch(record.name) is None:
        return "its name must be 1 to 63 lower-case letters, digits and hyphens, not a hyphen first"
    if _SPIFFE_ID.fullmatch(record.spiffe_id) is None:
        return "its SPIFFE ID must look like spiffe://hospital.example/node"
    for field in ("ledger_key", "bundle", "card"):
        if not is_digest(getattr(record, field)):
            return f"its {field} must be 64 lower-case hexadecimal digits"
    return why_not_addresses(record.addresses)


def why_not_addresses(addresses: Collection[str]) -> str:
    """What is wrong with a node's addresses; "" if nothing is."""
    if len(addresses) > MAX_ADDRESSES:
        return f"it has more than {MAX_ADDRESSES} addresses"
    for address in addresses:
        match = _ADDRESS.fullmatch(address)
        if match is None or int(match[2]) not in _PORTS:
            return f"its address {address[:80]!r} is not host:port"
    return ""


# --- proposals -----------------------------------------------------------------------------------


def propose(state: State, caller: str, call: Subject, now_s: int) -> State:
    """Open a vote; the proposer's is yes, where it has one."""
    state = close_votes(state, now_s)
    _check(state, caller, call)
    mine = sum(p.outcome == "open" and p.proposer == caller for p in state.proposals)
    require(
        mine < MAX_OPEN_PROPOSALS,
        "too_many_proposals",
        f"'{caller}' has {mine} open proposals, the most that are allowed.",
        do="Wait until some are decided.",
    )
    recent = sum(p.proposer == caller and now_s < p.closes_s for p in state.proposals)
    require(
        recent < MAX_RECENT_PROPOSALS,
        "too_many_proposals",
        f"'{caller}' has made {recent} proposals while a vote stays open, the most that are allowed.",
        do="Wait until the time of the first is over.",
    )
    proposal = Proposal(
        number=len(state.proposals) + 1,
        proposer=caller,
        subject=call,
        closes_s=now_s + state.settings.proposal_s,
        votes={caller: True} if caller in voters(state, call) else {},
    )
    return close_votes(replace(state, proposals=(*state.proposals, proposal)), now_s)


def vote(state: State, caller: str, call: Vote, now_s: int) -> State:
    """Count a member's vote."""
    state = close_votes(state, now_s)
    number = call.proposal
    require(0 < number <= len(state.proposals), "unknown_proposal", f"There is no proposal {number}.")
    proposal = state.proposals[number - 1]
    require(
        proposal.outcome == "open",
        "proposal_closed",
        f"Proposal {number} has {proposal.outcome}.",
        outcome=proposal.outcome,
    )
    require(
        caller in voters(state, proposal.subject), "no_vote", f"'{caller}' has no vote on proposal {number}."
    )
    if caller in proposal.votes:
        before = "yes" if proposal.votes[caller] else "no"
        raise Refused("second_vote", f"'{caller}' has voted {before} on proposal {number} already.")
    proposal = replace(proposal, votes=proposal.votes | {caller: call.yes})
    return close_votes(_with(state, proposal), now_s)


def announce(state: State, caller: str, call: Announce, _now_s: int) -> State:
    """Change the addresses at which the caller's node listens."""
    why = why_not_addresses(call.addresses)
    require(not why, "bad_addresses", f"'{caller}' cannot announce this: {why}.")
    member = state.members[caller]
    member = replace(member, record=replace(member.record, addresses=call.addresses))
    return replace(state, members=state.members | {caller: member})


def validate(state: State, caller: str, call: Validate, _now_s: int) -> State:
    """Let the caller's node decide on the ledger's blocks with the others, or no longer."""
    require(
        state.engine in VALIDATED,
        "no_validators",
        f"Nobody decides on blocks of a ledger that is kept by the {state.engine} engine.",
    )
    member = state.members[caller]
    if member.validates == call.on:
        return state
    require(
        call.on or len(validators(state)) > 1,
        "last_validator",
        f"Without '{caller}' nobody would keep this ledger.",
        do="Let another member's node validate first.",
    )
    changed = replace(member, validates=call.on)
    return replace(state, members=state.members | {caller: changed})


def may_fail(keepers: int) -> int:
    """How many of so many members that decide on blocks may fail or lie: less than a third."""
    return (keepers - 1) // 3


def voters(state: State, subject: Subject) -> frozenset[str]:
    """Who has a vote on this subject now."""
    members = frozenset(active(state))
    if isinstance(subject, ProposeRemove):
        return members - {subject.member}
    if isinstance(subject, ProposeStudySettings):
        study = state.studies[subject.settings.name]
        return members & {name for name, p in study.participants.items() if not p.struck}
    return members


def proposals_at(state: State, now_s: int) -> tuple[Proposal, ...]:
    """All proposals as they are at this time: those whose time is up show as expired."""
    return tuple(
        replace(p, outcome="expired") if p.outcome == "open" and now_s >= p.closes_s else p
        for p in state.proposals
    )


def close_votes(state: State, now_s: int) -> State:
    """Close every vote that is decided or whose time is up, and do what was decided.

    A decision changes who has a vote, so the others are looked at again until nothing changes.
    """
    decided = True
    while decided:
        decided = False
        for proposal in state.proposals:
            if proposal.outcome == "open":
                state, decided = _decide(state, proposal, now_s)
            if decided:
                break
    return state


def _decide(state: State, proposal: Proposal, now_s: int) -> tuple[State, bool]:
    if now_s >= proposal.closes_s:
        return _with(state, replace(proposal, outcome="expired")), True
    allowed = voters(state, proposal.subject)
    yes = sum(is_yes for name, is_yes in proposal.votes.items() if name in allowed)
    no = sum(not is_yes for name, is_yes in proposal.votes.items() if name in allowed)
    if 2 * yes > len(allowed):
        return _carry_out(state, proposal, now_s), True
    if 2 * no >= len(allowed):
        return _with(state, replace(proposal, outcome="failed")), True
    return state, False


def _with(state: State, proposal: Proposal) -> State:
    at = proposal.number - 1
    return replace(state, proposals=(*state.proposals[:at], proposal, *state.proposals[at + 1 :]))


def _carry_out(state: State, proposal: Proposal, now_s: int) -> State:
    subject = proposal.subject
    try:  # an earlier decision may have taken the ground from under this one
        _check(state, proposal.proposer, subject)
    except Refused:
        return _with(state, replace(proposal, outcome="failed"))
    state = _with(state, replace(proposal, outcome="passed"))
    match subject:
        case ProposeAdmit(member=record):
            before = state.members.get(record.name)
            # The sequence goes on where it was, so that calls of before a removal cannot be replayed.
            admitted = Member(record=record, sequence=before.sequence if before is not None else 0)
            return replace(state, members=state.members | {record.name: admitted})
        case ProposeRemove(member=name):
            return _remove(state, name, now_s)
        case ProposeSwarmSettings(settings=settings):
            return replace(state, settings=settings)
        case ProposeStudySettings(settings=changed):
            study = replace(state.studies[changed.name], pending=changed)
            study = take_settings(study) if study.phase == "proposed" else study
            return replace(state, studies=state.studies | {changed.name: study})


# --- what may be proposed ------------------------------------------------------------------------


def _check(state: State, proposer: str, subject: Subject) -> None:
    match subject:
        case ProposeAdmit(member=record):
            _check_admission(state, record)
        case ProposeRemove(member=name, reason=reason):
            _check_removal(state, name, reason)
        case ProposeSwarmSettings(settings=swarm):
            with refusing_settings():
                check_swarm_settings(swarm)
        case ProposeStudySettings(settings=study):
            _check_change(state, proposer, subject)
            with refusing_settings():
                check_study_settings(study, _possible(state, study.members))


def _check_admission(state: State, record: MemberRecord) -> None:
    why = why_not_a_record(record)
    require(not why, "bad_member", f"'{record.name[:64]}' cannot be admitted: {why}.")
    before = state.members.get(record.name)
    require(before is None or not before.active, "name_taken", f"There is a member '{record.name}' already.")
    for name, member in state.members.items():
        if name == record.name or not member.active:
            continue
        same = [
            field
            for field in ("spiffe_id", "ledger_key")
            if getattr(member.record, field) == getattr(record, field)
        ]
        require(
            not same,
            "identity_taken",
            f"'{record.name}' cannot be admitted: '{name}' has the same {' and '.join(same)}.",
            do="Each member makes keys of its own: `konsil node init`.",
        )


def _check_removal(state: State, name: str, reason: str) -> None:
    require(len(reason) <= MAX_TEXT, "bad_reason", f"The reason is over {MAX_TEXT} characters.")
    member = state.members.get(name)
    require(
        member is not None and member.active, "unknown_member", f"There is no active member '{name[:64]}'."
    )
    require(
        name != state.operator,
        "operator_stays",
        f"'{name}' operates this ledger: without it there would be none.",
        do="Found a new swarm with another operator, or with an engine that needs none.",
    )
    require(len(active(state)) > 1, "last_member", f"'{name}' is the last member.")
    require(
        validators(state) != (name,),
        "last_validator",
        f"'{name}' is the only one that keeps this ledger: without it there would be none.",
        do="Let another member's node validate first.",
    )


def _check_change(state: State, proposer: str, subject: ProposeStudySettings) -> None:
    study = not_over(study_named(state, subject.settings.name))
    participant_of(study, proposer)
    fixed = [
        name for name in FIXED_SETTINGS if getattr(subject.settings, name) != getattr(study.settings, name)
    ]
    require(
        not fixed,
        "fixed_setting",
        f"`{'`, `'.join(fixed)}` of a study cannot be changed.",
        do="Propose a new study.",
    )


def _possible(state: State, named: Collection[str]) -> frozenset[str]:
    """Members for the check of a change: a removed one may stay named, since the list cannot be changed."""
    return frozenset(trainers(state)) | frozenset(named)


# --- removal -------------------------------------------------------------------------------------


def _remove(state: State, name: str, now_s: int) -> State:
    studies = {
        key: _without(study, name, now_s)
        for key, study in state.studies.items()
        if name in study.participants and study.phase in {"proposed", "running"}
    }
    member = replace(state.members[name], active=False, validates=False)
    return replace(state, members=state.members | {name: member}, studies=state.studies | studies)


def _without(study: Study, name: str, now_s: int) -> Study:
    # A member that was struck stays on the list: being admitted again must not clear it.
    if not study.participants[name].struck:
        study = replace(study, participants={n: p for n, p in study.participants.items() if n != name})
    current = study.open
    if current is None:
        if study.proposer == name and not study.initial:
            why = f"'{name}', who proposed it, was removed before it gave the initial parameters."
            return end_study(study, "failed", why, now_s)
        return study
    if name in current.roster:
        return leave_roster(study, current, {name}, "removed", now_s)
    current = replace(
        current,
        commits={n: commit for n, commit in current.commits.items() if n != name},
        expected={n: until_s for n, until_s in current.expected.items() if n != name},
        absent=current.absent | {name: "removed"},
    )
    return settle(replace(study, open=current), now_s)
