"""A model's card against a ledger: whether it says anything that the ledger does not.

A card alone proves nothing: whoever makes arrays can make a card that agrees with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from konsil.core.model_card import ModelCard, card_round
from konsil.core.rules import (
    FIXED_SETTINGS,
    ProposeStudySettings,
    RoundRecord,
    State,
    Study,
    asked_for,
    best_of_all,
    final_round,
    settings_digest,
    state_digest,
)
from konsil.errors import DigestMismatch

_SAME = ("schema", "initial", "proposer", "data_bytes")
"""Facts of a study that never change once there is a model."""


@dataclass(frozen=True)
class Compared:
    """How much of a card is on the ledger.

    ``model``: the digest of the file's parameters; else only that of the merge, from which an outer optimiser
    made a step. ``settings``: all of them; else only those that never change, since others were changed by
    vote after the card was written.
    """

    model: bool
    settings: bool


def compare_card(state: State, card: ModelCard, now_s: float) -> Compared:
    """See that a card says what a ledger says, as far as the height at which it was written.

    Args:
        state: the ledger's.
        card: that agrees with itself (``decode_card``).
        now_s: unix time.

    Raises:
        DigestMismatch: it says something else, or something that only a longer ledger could.
    """
    study = state.studies.get(card.study)
    if study is None or state.genesis != card.swarm:
        raise _other("it is of another swarm, or of a study that is not on this ledger")
    if card.height > state.height:
        raise _other(f"it was written at height {card.height}, and this ledger is at {state.height}")
    if card.height == state.height and card.state != state_digest(state):
        raise _other("the ledger's state at its height is another")
    exact = _same_settings(state, study, card)
    differing = [name for name in _SAME if getattr(card, name) != getattr(study, name)]
    if card.rounds and card.started_s != study.started_s:
        differing.append("started_s")
    if differing:
        raise _other(f"it has another `{'`, `'.join(differing)}`")
    _same_rounds(study, card)
    model = study.settings.outer is None or not card.round
    if model and card.digest != card.merge:
        raise _other(f"it has another digest than round {card.round}")
    _same_choice(study, card, now_s)
    return Compared(model, exact)


def _same_settings(state: State, study: Study, card: ModelCard) -> bool:
    fixed = [name for name in FIXED_SETTINGS if getattr(card.settings, name) != getattr(study.settings, name)]
    if fixed:
        raise _other(f"it has another `{'`, `'.join(fixed)}` in its settings")
    passed = [
        proposal.subject.settings
        for proposal in state.proposals
        if proposal.outcome == "passed"
        and isinstance(proposal.subject, ProposeStudySettings)
        and proposal.subject.settings.name == card.study
    ]
    if card.settings_digest in {study.settings_digest, *map(settings_digest, passed)}:
        return True
    if not passed:
        raise _other("it has other settings than the study")
    return False


def _same_rounds(study: Study, card: ModelCard) -> None:
    if len(card.rounds) > len(study.history):
        raise _other(f"it tells of {len(card.rounds)} rounds, of which {len(study.history)} are accepted")
    for each, record in zip(card.rounds, study.history, strict=False):
        if replace(each, scores={}) != replace(card_round(record), scores={}):
            raise _other(f"its round {each.number} is another")
        if any(record.scores.get(name) != score for name, score in each.scores.items()):
            raise _other(f"its scores of round {each.number} are others")


def _same_choice(study: Study, card: ModelCard, now_s: float) -> None:
    """The study as it was when the card was written must give the card's choice, and its reason."""
    rounds = tuple(
        replace(record, scores=each.scores) for record, each in zip(study.history, card.rounds, strict=False)
    )
    going = "proposed" if card.phase == "proposed" and not rounds else "running"
    then = replace(study, history=rounds, phase=going, ended="", ended_s=0)
    if card.phase in {"finished", "failed"} and len(rounds) == len(study.history):
        then = replace(study, history=rounds)
    if (card.phase, card.ended, card.ended_s) != (then.phase, then.ended, then.ended_s):
        raise _other("it tells of another end of the study, or of none")
    then = replace(then, best=best_of_all(then))
    chosen = final_round(then, now_s)
    asked = asked_for(then, card.round, chosen)
    if card.final:
        # Where scores decide nothing, the last merge is final before they are all there.
        if study.settings.best is not None and _lacks_scores(study, rounds):
            raise _other("it leaves out scores that counted")
        if not chosen.settled or (card.round, card.why) != (chosen.round, chosen.why):
            raise _other("it is not the final model, or not for that reason")
    elif card.why not in {asked.why, *((chosen.why,) if card.round == chosen.round else ())}:
        raise _other("the reason that it gives is another")


def _lacks_scores(study: Study, rounds: Sequence[RoundRecord]) -> bool:
    return any(
        name not in there.scores
        for record, there in zip(study.history, rounds, strict=True)
        for name, score in record.scores.items()
        if not score.late
    )


def _other(why: str) -> DigestMismatch:
    return DigestMismatch(
        f"The file's card is not what the ledger says: {why}.",
        safe="Nothing was changed.",
        do="Do not use the file. Get it again: `konsil study model`.",
    )
