"""What the founding members agree on before there is a ledger: made from their cards, alike for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from konsil.core.rules import Genesis, genesis_digest
from konsil.errors import ConfigError
from konsil.identity.card import Card, card_digest, member_record, read_card, write_card
from konsil.identity.files import write_public

MAX_GENESIS_BYTES = 1024 * 1024
"""A record has a few hundred bytes; this is room for a thousand members."""


Engine = Literal["local", "cometbft", "ethereum"]


def found(swarm: str, cards: Sequence[Card], operator: str = "", engine: Engine = "local") -> Genesis:
    """The genesis of a swarm: the same for the same cards, in whatever order.

    Its time is that of the newest card, so that nobody's clock at the moment of founding matters.

    Args:
        swarm: the swarm's name.
        cards: of all founding members, checked.
        operator: the member whose node serves a local ledger; by default the first, in name order, that
            has an address.
        engine: what keeps the ledger.

    Raises:
        ConfigError: fewer than two members that train, two cards with one name, identity or key, an operator
            that is not among them or that nobody can reach, or that an engine does not have.
    """
    records = sorted((member_record(card) for card in cards), key=lambda record: record.name)
    if sum(not record.witness for record in records) < 2:  # noqa: PLR2004 - a swarm of one learns alone
        raise _cannot(
            "a swarm needs the cards of two members or more that train", "Give every founding member's card."
        )
    for field in ("name", "spiffe_id", "ledger_key"):
        values = [getattr(record, field) for record in records]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise _cannot(
                f"two cards have the same {field}, {twice}", "Give each member's card once, its newest."
            )
    reachable = [record.name for record in records if record.addresses]
    if not reachable:
        raise _cannot(
            "no member has an address at which the others could reach it",
            "Give one member an address: `konsil node init --advertise`.",
        )
    return Genesis(
        swarm=swarm,
        engine=engine,
        operator=_operator(operator, engine, reachable),
        created_s=max(card.issued_s for card in cards),
        members=tuple(records),
    )


def _operator(named: str, engine: Engine, reachable: Sequence[str]) -> str:
    if engine != "local":
        if named:
            raise _cannot(f"a ledger kept by {engine} has no operator", "Leave --operator out.")
        return ""
    if named and named not in reachable:
        raise _cannot(
            f"'{named}', the operator, is not among the members that have an address",
            "Name as --operator a member whose card has an address.",
        )
    return named or reachable[0]


def write_genesis(genesis: Genesis, path: Path) -> None:
    """Write the genesis to its file.

    Raises:
        ConfigError: another genesis is there already, or the folder cannot be written to.
    """
    if path.exists() and genesis_digest(read_genesis(path)) != genesis_digest(genesis):
        raise ConfigError(
            f"{path} holds another genesis.",
            safe="It was not changed.",
            do="If its swarm never began, move it and ledger.db away, and found again.",
        )
    write_public(path, msgspec.json.format(msgspec.json.encode(genesis), indent=2) + b"\n")


def read_genesis(path: Path) -> Genesis:
    """The genesis from its file.

    Raises:
        ConfigError: no such file, or not a genesis.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_GENESIS_BYTES + 1)
        if len(data) > MAX_GENESIS_BYTES:
            raise msgspec.ValidationError(f"it has over {MAX_GENESIS_BYTES} bytes")
        return msgspec.json.decode(data, type=Genesis)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no genesis at {path}: this node does not belong to a swarm yet.",
            safe="Nothing was changed.",
            do="Founding members: `konsil swarm found`. Others: get genesis.json from a member.",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}.", do="See its owner and permissions."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not a genesis: {error}.",
            safe="Nothing was changed.",
            do="Make it again from the cards with `konsil swarm found`, or get it from a member.",
        ) from error


def keep_card(card: Card, directory: Path) -> Path:
    """Keep a member's card under its digest; where it lies.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    path = directory / f"{card_digest(card)}.json"
    write_card(card, path)
    return path


def read_card_file(path: Path) -> Card:
    """A member's card from a file.

    Raises:
        ConfigError: it cannot be read.
        IdentityError: it is not a card, or cannot be trusted.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The card {path} cannot be read: {error.strerror}.",
            safe="Nothing was changed.",
            do="Give its path.",
        ) from error
    return read_card(data)


def _cannot(why: str, do: str) -> ConfigError:
    return ConfigError(f"The swarm cannot be founded: {why}.", safe="Nothing was written.", do=do)
