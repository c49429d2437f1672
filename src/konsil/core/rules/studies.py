"""A study from its proposal to its end: who agrees, enters, leaves and finishes."""

from __future__ import annotations

from msgspec.structs import replace

from konsil.core.rules.agreement import check_study_settings, settings_digest
from konsil.core.rules.calls import Agree, Enter, Finish, Initialise, Leave, ProposeStudy
from konsil.core.rules.members import trainers
from konsil.core.rules.refusing import (
    not_over,
    participant_of,
    refusing_settings,
    require,
    require_digest,
    study_named,
)
from konsil.core.rules.rounds import end_study, expect, open_round, settle
from konsil.core.rules.state import Participant, State, Study
from konsil.core.rules.stopping import nobody_goes_on
from konsil.errors import Refused

MAX_DATA_BYTES = 1 << 50
"""A petabyte of parameters: beyond any model, and far from the end of any integer."""

MAX_STUDIES_PROPOSED = 64
"""Studies that one member may have proposed within a day or, if they have not started, within a month: a
study for one member can be begun and ended by it alone, and stays on the ledger. A proposal that nobody took
up counts no longer then, since nobody can withdraw it: else whoever made many would be shut out for ever."""

_DAY_S = 24 * 3600
_MONTH_S = 30 * _DAY_S


def put(state: State, study: Study) -> State:
    """The state with this study as it is now."""
    return replace(state, studies=state.studies | {study.settings.name: study})


def propose_study(state: State, caller: str, call: ProposeStudy, now_s: int) -> State:
    """Put a study before the members; the proposer is its first participant."""
    settings = call.settings
    with refusing_settings():
        check_study_settings(settings, trainers(state))
    _require_no_witness(state, caller, settings.name)
    require(
        settings.name not in state.studies,
        "name_taken",
        f"There is or was a study '{settings.name}' already.",
        do="Choose another name.",
    )
    _require_invited(caller, settings.members, settings.name)
    mine = sum(
        study.proposer == caller
        and now_s < study.proposed_s + (_MONTH_S if study.phase == "proposed" else _DAY_S)
        for study in state.studies.values()
    )
    require(
        mine < MAX_STUDIES_PROPOSED,
        "too_many_studies",
        f"'{caller}' has proposed {mine} studies that have not started, or today: the most that are allowed.",
        do="Wait until some have started, or are a month old.",
    )
    return put(
        state,
        Study(
            settings=settings,
            settings_digest=settings_digest(settings),
            proposer=caller,
            proposed_s=now_s,
            participants={caller: Participant()},
        ),
    )


def _require_invited(caller: str, invited: tuple[str, ...], name: str) -> None:
    require(
        not invited or caller in invited,
        "not_invited",
        f"Study '{name}' is for {', '.join(invited[:20])}; '{caller}' is not among them.",
    )


def _require_no_witness(state: State, caller: str, name: str) -> None:
    require(
        not state.members[caller].record.witness,
        "witness",
        f"'{caller}' is a witness of this swarm: it helps to keep the ledger, and takes no part in '{name}'.",
        do="To train, be admitted anew with a card that is no witness's.",
    )


def agree(state: State, caller: str, call: Agree, _now_s: int) -> State:
    """Make the caller a participant; of a running study, too."""
    study = not_over(study_named(state, call.study))
    _require_no_witness(state, caller, call.study)
    _require_invited(caller, study.settings.members, call.study)
    require(
        call.settings == study.settings_digest,
        "other_settings",
        f"Study '{call.study}' has other settings than those agreed to.",
        do=f"Read them again: `konsil study status {call.study}`.",
        settings=study.settings_digest,
    )
    if caller in study.participants:
        participant_of(study, caller)
        return state
    from_round = study.open.number + 1 if study.open is not None else 1
    joined = Participant(from_round=from_round)
    return put(state, replace(study, participants=study.participants | {caller: joined}))


def initialise(state: State, caller: str, call: Initialise, _now_s: int) -> State:
    """Put the initial parameters on record, once."""
    study = not_over(study_named(state, call.study))
    require(
        caller == study.proposer,
        "not_proposer",
        f"The initial parameters of study '{call.study}' come from '{study.proposer}', who proposed it.",
    )
    require_digest(call.schema, "schema")
    require_digest(call.digest, "digest of the initial parameters")
    require(1 <= call.data_bytes <= MAX_DATA_BYTES, "bad_size", "`data_bytes` must be from 1 to 2^50.")
    if study.initial:
        require(
            (study.schema, study.initial, study.data_bytes) == (call.schema, call.digest, call.data_bytes),
            "already_initialised",
            f"Study '{call.study}' has other initial parameters already.",
            do="To start from others, propose a new study.",
        )
        return state
    return put(state, replace(study, schema=call.schema, initial=call.digest, data_bytes=call.data_bytes))


def enter(state: State, caller: str, call: Enter, now_s: int) -> State:
    """Note that the caller's training is ready; open round 1 once enough have entered."""
    study = not_over(study_named(state, call.study))
    participant = participant_of(study, caller)
    if not study.initial:
        raise Refused(
            "not_initialised",
            f"Study '{call.study}' has no initial parameters yet; they come from '{study.proposer}'.",
            do="Enter again when they are there.",
        )
    if participant.finished == "inactive":
        raise Refused(
            "finished",
            f"'{caller}' has finished study '{call.study}' and contributes nothing more.",
        )
    current = study.open
    if current is None:
        study = _with(study, caller, replace(participant, present=True))
        there = sum(p.present and not p.struck for p in study.participants.values())
        if there >= study.settings.min_members:
            study = open_round(replace(study, phase="running", started_s=now_s), 1, now_s)
        return put(state, study)
    number = current.number
    untouched = current.phase == "collecting" and not current.commits
    is_in = participant.from_round <= number or untouched or caller in current.commits
    if current.phase == "merging" and caller not in current.commits:
        is_in = False
    from_round = min(participant.from_round, number) if is_in else max(participant.from_round, number + 1)
    study = _with(study, caller, replace(participant, present=True, from_round=from_round))
    if is_in and current.phase == "collecting":
        study = settle(replace(study, open=expect(study, current, caller, now_s)), now_s)
    return put(state, study)


def leave(state: State, caller: str, call: Leave, now_s: int) -> State:
    """Note that the caller's training has stopped; an update that it has committed stays."""
    study = study_named(state, call.study)
    participant = participant_of(study, caller)
    study = _with(study, caller, replace(participant, present=False))
    return put(state, _no_longer_expected(study, caller, "left", now_s))


def finish(state: State, caller: str, call: Finish, now_s: int) -> State:
    """Note that the caller has finished and what it keeps contributing; end the study if none go on."""
    study = study_named(state, call.study)
    participant = participant_of(study, caller)
    study = _with(study, caller, replace(participant, finished=call.contribution))
    if study.phase != "running":
        return put(state, study)
    if call.contribution == "inactive":
        study = _no_longer_expected(study, caller, "finished", now_s)
    if study.phase == "running":
        end = nobody_goes_on(study)
        study = study if end is None else end_study(study, *end, now_s)
    return put(state, study)


def _with(study: Study, name: str, participant: Participant) -> Study:
    return replace(study, participants=study.participants | {name: participant})


def _no_longer_expected(study: Study, name: str, why: str, now_s: int) -> Study:
    current = study.open
    if current is None or name in current.commits:
        return study
    expected = {other: until_s for other, until_s in current.expected.items() if other != name}
    current = replace(current, expected=expected, absent=current.absent | {name: why})
    return settle(replace(study, open=current), now_s)
