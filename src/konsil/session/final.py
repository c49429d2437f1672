"""A study's final model at the training process: asked of the node, written with its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from konsil.core.model_card import ModelCard
from konsil.core.wall import Final, Waiting, Wanted
from konsil.errors import StudyError
from konsil.session.connection import Connection
from konsil.wall.memory import SealedMemory
from konsil.wall.model_file import page_path, write_model_file

LOOK_S = 5.0
"""How long the node is asked to wait at a time: this process can be interrupted in between."""

ANSWER_S = 60.0
"""For one answer: the node may have to fetch the model from peers."""


@dataclass(frozen=True)
class SavedModel:
    """A model that was written. ``path``: the parameters; ``page``: the card for people. ``round``: of the
    merge. ``final``: it is the study's final model, and nothing can change that; ``why``: why it is this one.
    """

    path: Path
    page: Path
    round: int
    digest: str
    final: bool
    why: str
    card: ModelCard = field(repr=False)


def ask_final(
    connection: Connection, limit_s: float, on_waiting: Callable[[Waiting], None]
) -> tuple[Final, SealedMemory]:
    """The final model; of a study that goes on, what it would be now.

    Args:
        connection: to the node.
        limit_s: how long the last scores may take.
        on_waiting: told of what is waited for.

    Raises:
        StudyError: the choice was not settled in time, or there is no model.
        KonsilError: why the node refused.
    """
    until_s = time.monotonic() + limit_s
    while True:
        left_s = until_s - time.monotonic()
        wanted = Wanted(wait_s=max(0.0, min(LOOK_S, left_s)))
        word, memory = connection.ask(wanted, Final, time.monotonic() + LOOK_S + ANSWER_S)
        if memory is not None:
            return word, memory
        if left_s <= 0:
            raise StudyError(
                f"Which merge is the final model was not settled in {limit_s:g} s: not all who took part in "
                "the last round have scored it.",
                safe="Nothing was written.",
                do="Call it again, or write it later: `konsil study model`.",
            )
        on_waiting(Waiting(word.round, "the last scores", (), int(word.until_s)))


def save_final(
    connection: Connection, path: Path, limit_s: float, on_waiting: Callable[[Waiting], None]
) -> SavedModel:
    """Write the final model, its card and its page.

    Raises:
        ConfigError: it cannot be written there.
        StudyError, KonsilError: as ``ask_final``.
    """
    word, memory = ask_final(connection, limit_s, on_waiting)
    with memory:
        card = write_model_file(path, memory, word.card)
    return SavedModel(path, page_path(path), card.round, card.digest, card.final, card.why, card)
