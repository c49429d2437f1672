"""``konsil swarm``: found a swarm, see its members, vote."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import click

from konsil.cli import sentences
from konsil.cli.common import Site, in_groups, verb, when
from konsil.core.rules import genesis_digest, proposals_at, voters
from konsil.core.rules.calls import (
    Call,
    ProposeRemove,
    ProposeSwarmSettings,
    Vote,
)
from konsil.core.rules.settings import SwarmSettings
from konsil.core.rules.state import Proposal, State
from konsil.core.wall import AskAdmit, AskCall, AskTrust, Noted
from konsil.errors import ConfigError
from konsil.node.toml import read_settings_file

Engine = Literal["local", "cometbft", "ethereum"]

CARD_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def swarm() -> None:
    """Found a swarm, see its members, vote."""


@verb(swarm, "found", example="konsil swarm found eu-aml lyon.card.json nice.card.json lille.card.json")
@click.argument("name")
@click.argument("cards", type=CARD_FILE, nargs=-1, required=True)
@click.option(
    "--operator", default="", help="Whose node serves the ledger.  [default: the first with an address]"
)
@click.option(
    "--engine",
    type=click.Choice(["local", "cometbft"]),
    default="local",
    show_default=True,
    help="What keeps the ledger: one member's node, or all members together by CometBFT.",
)
def found(site: Site, name: str, cards: tuple[Path, ...], operator: str, engine: Engine) -> None:
    """Make the swarm's genesis from the cards of all founding members, this member's own included.

    Every member does this with the same cards; the digests must be equal.
    """
    from konsil.node import genesis as files  # noqa: PLC0415 - needs the identities' libraries; others do not

    config = site.config()
    read = [files.read_card_file(path) for path in cards]
    own = files.read_card_file(config.card_file)
    if own not in read:
        raise ConfigError(
            f"The card of this member, '{config.name}', is not among the cards.",
            safe="Nothing was written.",
            do=f"Give {config.card_file} too. Others may only found with the newest card that you sent them.",
        )
    made = files.found(name, read, operator, engine)
    for card in read:
        files.keep_card(card, config.cards_dir)
    files.write_genesis(made, config.genesis_file)
    digest = genesis_digest(made)
    site.show(
        {
            "genesis": digest,
            "file": config.genesis_file,
            "engine": made.engine,
            "operator": made.operator,
            "created_s": made.created_s,
        },
        f"Swarm '{made.swarm}': {', '.join(record.name for record in made.members)}.\n"
        f"{sentences.of_keepers(made)}\n"
        f"The genesis: {config.genesis_file}\n"
        f"Its digest:  {in_groups(digest)}\n"
        "Read the digest to the other members over the telephone: it must be the same everywhere.\n"
        "Then start the node: konsil node start",
    )


@verb(swarm, "enter", example="konsil swarm enter genesis.json cards/*.json")
@click.argument("genesis", type=CARD_FILE)
@click.argument("cards", type=CARD_FILE, nargs=-1, required=True)
def enter(site: Site, genesis: Path, cards: tuple[Path, ...]) -> None:
    """Set this member up for a swarm that exists, with the genesis and the cards that a member sent.

    The operator's card is needed, or without an operator that of any founder with an address; the node
    fetches the others. Whether this member is admitted is decided by them: `konsil swarm propose admit`.
    """
    from konsil.identity import card as identities  # noqa: PLC0415 - as in found
    from konsil.node import genesis as files  # noqa: PLC0415 - as in found

    config = site.config()
    made = files.read_genesis(genesis)
    founders = {record.card: record.name for record in made.members}
    keys = {(record.name, record.spiffe_id, record.ledger_key) for record in made.members}
    read = [(identities.card_digest(card), card) for card in map(files.read_card_file, cards)]
    known = {founders[digest]: card for digest, card in read if digest in founders}
    if made.operator not in known if made.operator else not any(card.addresses for card in known.values()):
        who = f"'{made.operator}', who serves the ledger," if made.operator else "a founder with an address"
        raise ConfigError(
            f"The card of {who} is not among the cards.",
            safe="Nothing was written.",
            do="Get the folder cards/ from any member: it lies in its node's directory.",
        )
    for _, card in read:
        # Newer ones too: by these the ledger is reached, where an authority has changed since.
        if (card.name, card.spiffe_id, card.ledger_key) in keys:
            files.keep_card(card, config.cards_dir)
    files.write_genesis(made, config.genesis_file)
    digest = genesis_digest(made)
    site.show(
        {"genesis": digest, "file": config.genesis_file, "cards": sorted(known)},
        f"Swarm '{made.swarm}'. {sentences.of_keepers(made)}\n"
        f"Its digest:  {in_groups(digest)}\n"
        "Compare the digest with a member over the telephone.\n"
        "Then start the node: konsil node start. It goes in once the members have admitted this one.",
    )


@verb(swarm, "members", example="konsil swarm members")
def members(site: Site) -> None:
    """The members on the ledger."""
    with site.node() as node:
        state = node.state()
    lines = []
    for name, member in sorted(state.members.items()):
        note = "" if member.active else " (removed)"
        note += " (serves the ledger)" if name == state.operator else ""
        note += " (witness)" if member.record.witness else ""
        note += " (keeps the ledger)" if member.validates else ""
        where = ", ".join(member.record.addresses) or "dials out only"
        lines.append(f"{name}{note}\n  {member.record.spiffe_id}, {where}\n  card {member.record.card}")
    site.show(state.members, "\n".join(lines))


@verb(swarm, "card", example="konsil swarm card rennes.card.json")
@click.argument("cards", type=CARD_FILE, nargs=-1, required=True)
def card(site: Site, cards: tuple[Path, ...]) -> None:
    """Take members' newer cards by hand: where an authority changed while a node was away for long.

    Usually a node puts its new card on the ledger by itself, and the others fetch it. Two that do not know
    each other any more, since one was away meanwhile, find back by a card that the other's node has written.
    """
    from konsil.node import genesis as files  # noqa: PLC0415 - as in found

    with site.node() as node:
        for path in cards:
            read = files.read_card_file(path)  # a good error here is better than one from the node
            node.ask(AskTrust(path.read_bytes()), Noted)
            site.show(
                {"member": read.name, "bundle": read.bundle, "issued_s": read.issued_s},
                f"'{read.name}' is known by its card of {when(read.issued_s)} from now on.",
            )


@swarm.group()
def propose() -> None:
    """Open a vote. Your own vote is yes."""


@verb(propose, "admit", example="konsil swarm propose admit rennes.card.json")
@click.argument("card", type=CARD_FILE)
def admit(site: Site, card: Path) -> None:
    """Open a vote to admit the member of a card. Compare the card's digest with the member first."""
    from konsil.node import genesis as files  # noqa: PLC0415 - as in found

    files.read_card_file(card)  # a good error here is better than one from the node
    with site.node() as node:
        node.ask(AskAdmit(card.read_bytes()), Noted)
        show_own(site, node.state())


@verb(propose, "remove", example='konsil swarm propose remove rennes --reason "left the consortium"')
@click.argument("member")
@click.option("--reason", default="", help="Stands on the ledger.")
def remove(site: Site, member: str, reason: str) -> None:
    """Open a vote to remove a member."""
    open_vote(site, ProposeRemove(member, reason))


@verb(
    propose,
    "settings",
    example="konsil swarm propose settings swarm.toml       # a line such as: proposal_s = 604800",
)
@click.argument("file", type=CARD_FILE)
def settings(site: Site, file: Path) -> None:
    """Open a vote to change the swarm's settings to those in a TOML file."""
    open_vote(site, ProposeSwarmSettings(read_settings_file(file, SwarmSettings)))


@verb(swarm, "vote", example="konsil swarm vote 3 yes")
@click.argument("number", type=int)
@click.argument("answer", type=click.Choice(["yes", "no"]))
def vote(site: Site, number: int, answer: str) -> None:
    """Vote on a proposal. A vote cannot be taken back."""
    with site.node() as node:
        node.ask(AskCall(Vote(number, answer == "yes")), Noted)
        state = node.state()
    found = next(proposal for proposal in state.proposals if proposal.number == number)
    site.show(found, _describe(found, state))


@verb(swarm, "proposals", example="konsil swarm proposals --all")
@click.option("--all", "everything", is_flag=True, help="Closed ones too.")
def proposals(site: Site, everything: bool) -> None:
    """The votes that are open."""
    with site.node() as node:
        state = node.state()
    known = proposals_at(state, int(time.time()))
    shown = [proposal for proposal in known if everything or proposal.outcome == "open"]
    site.show(shown, "\n".join(_describe(proposal, state) for proposal in shown) or "No vote is open.")


def open_vote(site: Site, call: Call) -> None:
    """Put a proposal on the ledger and show it as it stands there."""
    with site.node() as node:
        node.ask(AskCall(call), Noted)
        show_own(site, node.state())


def show_own(site: Site, state: State) -> None:
    """Show the proposal that this member made last."""
    me = site.config().name
    own = [proposal for proposal in state.proposals if proposal.proposer == me][-1]
    site.show(own, _describe(own, state))


def _describe(proposal: Proposal, state: State) -> str:
    yes = sorted(name for name, voted in proposal.votes.items() if voted)
    no = sorted(name for name, voted in proposal.votes.items() if not voted)
    missing = sorted(voters(state, proposal.subject) - proposal.votes.keys())
    what = sentences.of_subject(proposal.subject)
    lines = [
        f"{proposal.number}: {proposal.proposer} proposes to {what} [{proposal.outcome}]",
        f"  yes: {', '.join(yes) or '-'}; no: {', '.join(no) or '-'}",
    ]
    if proposal.outcome == "open":
        lines.append(f"  not voted: {', '.join(missing) or '-'}; open until {when(proposal.closes_s)}")
        lines.append(f"  `konsil swarm vote {proposal.number} yes|no`")
    return "\n".join(lines)
