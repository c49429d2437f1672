"""``konsil rule``: merge rules in files: add one to this node, see which are here, a file's digest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click

from konsil.cli.common import Site, verb
from konsil.errors import ConfigError
from konsil.node.rules import Rules, read_rule_file

FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def rule() -> None:
    """Add merge rules of your own, and see which are here."""


@verb(rule, "add", example="konsil rule add careful_mean.py")
@click.argument("file", type=FILE)
@click.option("--option", "options", multiple=True, metavar="NAME=NUMBER", help="Try it with this option.")
def add(site: Site, file: Path, options: Sequence[str]) -> None:
    """Try a merge rule's file, and put it into this node's directory.

    The node will run what the file says: read it first. It takes none from a peer.
    """
    given = dict(_option(text) for text in options)
    rules = Rules(site.config().rules_dir)
    if not site.as_json:
        found, _ = read_rule_file(file)
        click.echo(f"The rule '{found.name}', digest {found.digest}")
    added = rules.add(file, given)
    site.show(
        {"rule": added.name, "rule_digest": added.digest, "file": added.path},
        f"It merges element by element, the same each time, and finite. It is here: {added.path}\n"
        f'A study takes it with:\n  rule = "{added.name}"\n  rule_digest = "{added.digest}"',
    )


@verb(rule, "list", example="konsil rule list")
def list_(site: Site) -> None:
    """The merge rules in files that are here, each with its digest."""
    found = Rules(site.config().rules_dir).files()
    lines = [
        f"{each.name}: {each.digest}"
        + ("" if each.is_as_added else "; the file was CHANGED since it was added, and no study can use it")
        for each in found
    ]
    site.show(
        [{"rule": each.name, "rule_digest": each.digest, "unchanged": each.is_as_added} for each in found],
        "\n".join(lines) or "No merge rule in a file is here; those that come with Konsil need none.",
    )


@verb(rule, "digest", example="konsil rule digest careful_mean.py")
@click.argument("file", type=FILE)
def digest(site: Site, file: Path) -> None:
    """A file's digest, as a study's `rule_digest` names it. Nothing of the file is run."""
    found, _ = read_rule_file(file)
    site.show({"rule": found.name, "rule_digest": found.digest}, found.digest)


def _option(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise ConfigError(
            f"'{text}' is not NAME=NUMBER.", safe="Nothing was changed.", do="Write it as --option f=2."
        )
    return name, number
