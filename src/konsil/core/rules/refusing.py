"""How a rule says no, and the look-ups that every rule starts with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from konsil.core.digest import is_digest
from konsil.core.rules.state import OpenRound, Participant, State, Study
from konsil.errors import ConfigError, Refused

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""Names of members, studies and swarms: they stand in file names, URLs and host names."""


def require(held: bool, code: str, what: str, *, do: str = "", **fields: object) -> None:
    """Refuse the call unless the condition holds.

    What nearly every call goes through says ``if ...: raise Refused``: its sentence is made only when needed.

    Raises:
        Refused: with this code and these sentences and facts.
    """
    if not held:
        raise Refused(code, what, safe="", do=do, **fields)


def require_digest(text: str, name: str) -> None:
    """Refuse what does not have the form of a digest.

    Raises:
        Refused: "bad_digest".
    """
    if not is_digest(text):
        what = f"The {name} must be 64 lower-case hexadecimal digits."
        raise Refused("bad_digest", what, name=name)


@contextmanager
def refusing_settings() -> Iterator[None]:
    """Turn what is wrong with settings into the contract's refusal.

    Raises:
        Refused: "bad_settings", with the sentences of the ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        raise Refused("bad_settings", error.what, do=error.do) from error


def study_named(state: State, name: str) -> Study:
    """A study by its name.

    Raises:
        Refused: "unknown_study".
    """
    study = state.studies.get(name)
    if study is None:
        raise Refused(
            "unknown_study", f"There is no study '{name[:64]}'.", do="`konsil study list` shows all."
        )
    return study


def not_over(study: Study) -> Study:
    """The study, if it is proposed or running.

    Raises:
        Refused: "study_over".
    """
    if study.phase not in {"proposed", "running"}:
        raise Refused(
            "study_over",
            f"Study '{study.settings.name}' has {study.phase}: {study.ended}",
            safe="",
            do="Its merges stay available; propose a new study to go on.",
        )
    return study


def running(study: Study) -> tuple[Study, OpenRound]:
    """The study and its open round, if it is running.

    Raises:
        Refused: "study_over" or "not_running".
    """
    current = not_over(study).open
    if current is None:
        raise Refused(
            "not_running",
            f"Study '{study.settings.name}' has not started: "
            f"{sum(p.present for p in study.participants.values())} of at least "
            f"{study.settings.min_members} members have entered.",
            do="It starts by itself when enough training processes have joined.",
        )
    return study, current


def participant_of(study: Study, caller: str) -> Participant:
    """The caller's part in the study.

    Raises:
        Refused: "not_participant" or "struck".
    """
    participant = study.participants.get(caller)
    if participant is not None and not participant.struck:
        return participant
    name = study.settings.name
    if participant is None:
        raise Refused(
            "not_participant",
            f"'{caller}' has not agreed to study '{name}'.",
            do=f"`konsil study agree {name}` does so, if the study is open to it.",
        )
    raise Refused(
        "struck",
        f"'{caller}' was struck from study '{name}' for a merge that a majority proved wrong.",
        safe="",
        do="`konsil ledger show` names the round and the chunk.",
    )


def in_open_round(current: OpenRound, number: int, attempt: int | None = None) -> None:
    """See that a call is about the open round (and its present attempt).

    Raises:
        Refused: "round_over", "round_not_open" or "attempt_over"; the fields name what is open.
    """
    if number == current.number and attempt in {None, current.attempt}:
        return
    require(
        number >= current.number,
        "round_over",
        f"Round {number} is over; round {current.number} is open.",
        do="Fetch the last accepted merge and go on from it.",
        open_round=current.number,
    )
    require(
        number == current.number,
        "round_not_open",
        f"Round {number} has not begun; round {current.number} is open.",
        open_round=current.number,
    )
    require(
        attempt is None or attempt == current.attempt,
        "attempt_over",
        f"Round {number} is at attempt {current.attempt}, not {attempt}.",
        do="Look at the parts as they are dealt now.",
        open_round=current.number,
        open_attempt=current.attempt,
    )
