"""``konsil audit``: the whole history as one file, and its verification by anybody, without a swarm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from konsil.cli.audit_report import facts_of, report_of
from konsil.cli.common import Site, printable, verb
from konsil.cli.models import study_named
from konsil.core.card_check import Compared, compare_card
from konsil.core.digest import is_digest
from konsil.core.model_card import ModelCard
from konsil.errors import ConfigError, DigestMismatch

if TYPE_CHECKING:
    from konsil.ledger.bundle import Checked

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def audit() -> None:
    """Write the whole history to one file, for others to verify without this swarm."""


@verb(audit, "export", example="konsil audit export eu-aml.konsil-audit")
@click.argument("file", type=FILE)
def export(site: Site, file: Path) -> None:
    """Write the history, from this member's own copy, to one file. The node need not run; where
    CometBFT keeps the ledger, only a running one adds its proof.

    It holds what is on the ledger, of all studies, and the members' public cards: no parameters, no data.
    """
    from konsil.identity.ledger_key import verify as check  # noqa: PLC0415 - `--help` is faster without
    from konsil.ledger.bundle import write_bundle  # noqa: PLC0415 - as above
    from konsil.ledger.bundle.proof import prove  # noqa: PLC0415 - as above
    from konsil.node.directory import Cards  # noqa: PLC0415 - as above
    from konsil.node.genesis import read_genesis  # noqa: PLC0415 - as above

    config = site.config()
    cards = Cards(config.cards_dir)
    genesis = read_genesis(config.genesis_file)
    made = write_bundle(
        file,
        genesis,
        config.ledger_file,
        check,
        cards.bytes_of,
        lambda head: prove(genesis, head, config.engine_dir),
    )
    lines = [
        f"{file}: {made.height} calls and {made.cards} members' cards, {file.stat().st_size / 1e6:.1f} MB",
        f"  head: {made.head}",
        "Whoever gets it verifies it with: konsil audit verify FILE --genesis DIGEST",
    ]
    if not made.proof:
        lines.insert(2, "  The engine's proof is not in it: export it again while the node runs.")
    if made.lacking:
        lines.insert(2, f"  This node lacks the cards of {', '.join(made.lacking)}: they are not in it.")
    site.show(
        {
            "file": file,
            "height": made.height,
            "head": made.head,
            "cards": made.cards,
            "lacking": made.lacking,
            "proof": made.proof,
        },
        "\n".join(lines),
    )


@verb(audit, "verify", example="konsil audit verify eu-aml.konsil-audit --genesis 5778...", at_member=False)
@click.argument("file", type=FILE)
@click.option("--genesis", metavar="DIGEST", help="The swarm's genesis, as a member told it to you.")
@click.option("--study", metavar="NAME", help="Tell of this study only. All of the file is verified.")
@click.option("--model", type=FILE, help="A model file: which round's merge of which study is it?")
def verify(site: Site, file: Path, genesis: str | None, study: str | None, model: Path | None) -> None:
    """Recompute a history from a file that a member exported, and say what that proves and what not.

    It needs only the file: no swarm, no node, no network. The exit status is 0 only if all holds.
    """
    from konsil.identity.card import check_record, read_card  # noqa: PLC0415 - as in export
    from konsil.identity.ledger_key import verify as check  # noqa: PLC0415 - as above
    from konsil.ledger.bundle import check_bundle  # noqa: PLC0415 - as above

    expected = None if genesis is None else _digest(genesis)
    found = check_bundle(file, check, lambda data, record: check_record(read_card(data), record))
    if expected not in {None, found.genesis_digest}:
        raise DigestMismatch(
            f"{file} is of another swarm: its genesis is {found.genesis_digest}, not {expected}.",
            safe="Nothing was changed.",
            do="Ask whom you have the file from, and two members for the genesis digest.",
            genesis=found.genesis_digest,
        )
    if study is not None:
        study_named(found.state, study)
    compared = None if model is None else _compare(found, model)
    if site.as_json:
        site.show(facts_of(file, found, study, compared, genesis_named=expected is not None))
        return
    for line in report_of(file, found, study, compared, genesis_named=expected is not None):
        click.echo(printable(line))


def _digest(text: str) -> str:
    digest = "".join(text.split()).lower()  # as it is read aloud: in groups of four
    if not is_digest(digest):
        raise ConfigError(
            f"--genesis {text!r} is no digest.",
            safe="Nothing was verified.",
            do="Give the 64 hexadecimal digits that `konsil ledger verify` shows as `genesis`.",
        )
    return digest


def _compare(found: Checked, model: Path) -> tuple[Path, ModelCard, Compared]:
    """Which merge a model file is, by its arrays, its card and the history."""
    from konsil.wall.model_file import check_model_file  # noqa: PLC0415 - as in export

    card = check_model_file(model).card
    return model, card, compare_card(found.state, card, max(found.state.now_s, time.time()))
