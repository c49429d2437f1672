"""A study's models for the commands: asking the node for them, comparing them, handing them to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from konsil.cli.common import ANSWER_S, Node, Site, span
from konsil.core.card_check import Compared, compare_card
from konsil.core.model_card import ModelCard, decode_card
from konsil.core.rules.state import State, Study
from konsil.core.wall import AskModel, ToldModel
from konsil.errors import ConfigError, NodeError, NodeUnreachable, StudyError
from konsil.wall.memory import SealedMemory, open_sealed, seal_pieces
from konsil.wall.model_file import bare_header

_COPY_BYTES = 1 << 20


def round_number(which: str) -> int:
    """The round that was named: 0 for the final model, -1 for the last merge."""
    known = {"final": 0, "last": -1}
    if which in known:
        return known[which]
    if not which.isdecimal() or int(which) < 1:
        raise ConfigError(
            f"--round {which!r} is no round.",
            safe="Nothing was written.",
            do="Give a number, `last` or `final`.",
        )
    return int(which)


def ask_model(node: Node, name: str, number: int, *, wait: bool) -> tuple[ToldModel, SealedMemory]:
    """The model; of a study that is over, once nobody can change the choice any more."""
    found = study_named(node.state(), name)
    silence_s = found.settings.silence_s
    until_s = time.monotonic() + silence_s + ANSWER_S
    told_why = False
    while True:
        told, fd = node.ask_with_descriptor(AskModel(name, number, ANSWER_S if wait else 0.0), ToldModel)
        if fd is None:
            raise NodeError("The node told of a model but did not hand it over.", do="See the node's log.")
        memory = open_sealed(fd)
        card = decode_card(told.card)
        over = card.phase in {"finished", "failed"}
        if card.final or number or not over or not wait or time.monotonic() > until_s:
            return told, memory
        memory.close()
        if not told_why:
            told_why = True
            click.echo(
                f"Waits for the last scores: they count for {span(silence_s)} after the study's end. "
                "--now does not wait.",
                err=True,
            )


def on_ledger(site: Site, card: ModelCard) -> Compared | None:
    """How much of the card the running node's ledger says, too; None without a node.

    Raises:
        DigestMismatch: it says something else.
    """
    try:
        with site.node() as node:
            state = node.state()
    except (NodeUnreachable, ConfigError):
        return None
    return compare_card(state, card, max(state.now_s, time.time()))


def of_compared(card: ModelCard, compared: Compared, ledger: str) -> Iterator[str]:
    """How much of a card is on a ledger, in sentences. ``ledger``: which, to begin one with."""
    if compared.model:
        yield (
            f"  {ledger} has the same digest for round {card.round}, and the same rounds, scores and choice."
        )
    else:
        yield (
            f"  ledger: merge only. {ledger} has the same merge for round {card.round},"
            f" {card.merge}, and the same rounds, scores and choice. The model is a step of the outer"
            " optimiser from that merge: its digest is on no ledger. Compare it with other members'."
        )
    if not compared.settings:
        yield "  Settings were changed by vote since: only those that never change were compared."


def sealed(path: Path) -> SealedMemory:
    """A model file in sealed memory, to be handed to the node; without what is written beside the arrays."""
    try:
        with path.open("rb") as stream:
            return seal_pieces(_bare(stream))
    except OSError as error:
        raise ConfigError(
            f"The model {path} cannot be read: {error.strerror}.",
            safe="Nothing was proposed.",
            do="Give its path.",
        ) from error


def _bare(stream: BinaryIO) -> Iterator[bytes]:
    yield bare_header(stream)
    yield from iter(lambda: stream.read(_COPY_BYTES), b"")


def study_named(state: State, name: str) -> Study:
    """A study by its name.

    Raises:
        StudyError: there is none.
    """
    found = state.studies.get(name)
    if found is None:
        known = ", ".join(sorted(state.studies)) or "none yet; `konsil study propose FILE.toml`"
        raise StudyError(
            f"There is no study '{name}' on the ledger.",
            safe="Nothing was changed.",
            do=f"Studies: {known}.",
            study=name,
        )
    return found
