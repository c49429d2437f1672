"""A model's card: what a file of parameters is, who made it, how well it did, as the ledger has it.

It goes with the file, as JSON in its safetensors metadata. From it and the file's arrays alone the digest can
be computed again; with the ledger at hand everything else can be compared, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from konsil.core.digest import MAX_GROUPS, Buffer, chunk_count, is_digest
from konsil.core.parameters import MAX_DATA_BYTES
from konsil.core.rules import (
    FinalModel,
    RoundRecord,
    ScoreRecord,
    State,
    Study,
    StudySettings,
    settings_digest,
    state_digest,
)
from konsil.errors import ConfigError, ParametersError

CARD_KEY = "konsil_card"
"""Where the card stands in a file's metadata."""

CARD_VERSION = 1

_encoder = msgspec.json.Encoder(order="deterministic")


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen value of a card."""


class CardMember(_Value, frozen=True):
    """A member of a roster. ``weight``: its integer weight in the merge."""

    examples: int
    weight: int


class CardRound(_Value, frozen=True):
    """An accepted round: who took part, who did not and why, what came out, and how it was scored."""

    number: int
    digest: str
    accepted_s: int
    roster: dict[str, CardMember]
    absent: dict[str, str]
    scores: dict[str, ScoreRecord]
    struck: tuple[str, ...] = ()


class ModelCard(_Value, frozen=True):
    """The card of a merge, or of a study's initial parameters (round 0).

    ``swarm``: the genesis digest. ``digest``: of the parameters in the file; ``merge``: of the round's merge,
    as it is on the ledger. They are the same unless an outer optimiser steps from merge to merge. ``groups``:
    how many chunks are in each of the digest's groups. ``final``: this is the study's final model, and
    nothing can change that; ``why``: why it is this one. ``height``, ``state``: of the ledger when the card
    was written. ``software``: the version of Konsil that wrote it.
    """

    study: str
    swarm: str
    round: int
    digest: str
    merge: str
    final: bool
    why: str
    settings: StudySettings
    settings_digest: str
    schema: str
    data_bytes: int
    groups: tuple[int, ...]
    initial: str
    proposer: str
    phase: str
    ended: str
    started_s: int
    ended_s: int
    rounds: tuple[CardRound, ...]
    height: int
    state: str
    software: str
    version: int = CARD_VERSION


def card_of(
    state: State, study: Study, chosen: FinalModel, digest: str, groups: Sequence[int], *, software: str
) -> ModelCard:
    """The card of a study's model.

    Args:
        state: the ledger's.
        study: the study in it.
        chosen: which of its models.
        digest: of the parameters that the card goes with.
        groups: how many chunks are in each group of the model's digest.
        software: the version that writes it.
    """
    return ModelCard(
        study=study.settings.name,
        swarm=state.genesis,
        round=chosen.round,
        digest=digest,
        merge=chosen.digest,
        final=chosen.settled,
        why=chosen.why,
        settings=study.settings,
        settings_digest=study.settings_digest,
        schema=study.schema,
        data_bytes=study.data_bytes,
        groups=tuple(groups),
        initial=study.initial,
        proposer=study.proposer,
        phase=study.phase,
        ended=study.ended,
        started_s=study.started_s,
        ended_s=study.ended_s,
        rounds=tuple(card_round(record) for record in study.history),
        height=state.height,
        state=state_digest(state),
        software=software,
    )


def card_round(record: RoundRecord) -> CardRound:
    """An accepted round, as it stands on a card."""
    return CardRound(
        number=record.number,
        digest=record.digest,
        accepted_s=record.accepted_s,
        roster={
            name: CardMember(commitment.examples, record.weights.get(name, 0))
            for name, commitment in record.roster.items()
        },
        absent=dict(record.absent),
        scores=dict(record.scores),
        struck=record.struck,
    )


def encode_card(card: ModelCard) -> bytes:
    """A card as JSON: the same bytes for the same card."""
    return _encoder.encode(card)


def decode_card(data: Buffer | str) -> ModelCard:
    """A stranger's JSON as a card that agrees with itself.

    Raises:
        ParametersError: it is none, or contradicts itself; says where.
    """
    try:
        card = msgspec.json.decode(data, type=ModelCard)
        settings = settings_digest(card.settings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError) as error:
        raise _unusable(f"cannot be read: {error}") from error
    if card.version != CARD_VERSION:
        raise _unusable(f"is of version {card.version}; this program knows {CARD_VERSION}")
    if settings != card.settings_digest:
        raise _unusable("has settings that are not those of its settings' digest")
    if card.settings.name != card.study:
        raise _unusable("has the settings of another study")
    if not all(map(is_digest, (card.swarm, card.digest, card.merge, card.schema, card.state))):
        raise _unusable("has a digest that is none")
    _require_size(card)
    if [each.number for each in card.rounds] != list(range(1, len(card.rounds) + 1)):
        raise _unusable("has rounds that do not follow each other")
    if not 0 <= card.round <= len(card.rounds):
        raise _unusable(f"is of round {card.round} and tells of {len(card.rounds)} rounds")
    expected = card.rounds[card.round - 1].digest if card.round else card.initial
    if expected != card.merge or (card.settings.outer is None and card.digest != card.merge):
        raise _unusable(f"has another digest than its own round {card.round}")
    return card


def _require_size(card: ModelCard) -> None:
    if not 0 < card.data_bytes <= MAX_DATA_BYTES:
        raise _unusable(f"is of {card.data_bytes:.6g} bytes of parameters; it must be 1 to {MAX_DATA_BYTES}")
    if not 0 < len(card.groups) <= MAX_GROUPS:
        raise _unusable(f"has {len(card.groups)} groups of chunks; it must be 1 to {MAX_GROUPS}")
    if min(card.groups) < 0 or sum(card.groups) != chunk_count(card.data_bytes):
        raise _unusable("names other numbers of chunks than its bytes have")


def _unusable(why: str) -> ParametersError:
    return ParametersError(
        f"The model's card {why}.",
        safe="Nothing was taken from it.",
        do="Get the file again: `konsil study model`.",
    )
