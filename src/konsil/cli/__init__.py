"""The command line: one file a noun. A noun's file is imported only when the noun is used."""

from __future__ import annotations

import importlib
import importlib.util

import click

NOUNS = {
    "audit": "Write the whole history to one file, for others to verify without this swarm.",
    "demo": "Watch four hospitals train one model together, on this machine.",
    "doctor": "Check this member's site before, or while, it takes part.",
    "ledger": "Read and verify the swarm's history.",
    "node": "Set up and run this member's node.",
    "rule": "Add merge rules of your own, and see which are here.",
    "simulate": "Run seeded universes in which everything goes wrong; see that the protocol holds.",
    "study": "Propose studies, agree to them, watch them, get their models.",
    "swarm": "Found a swarm; see its members; vote.",
}
"""Noun -> what it is for. ``konsil --help`` imports none of them."""


class _Nouns(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx  # the nouns are the same everywhere
        return [noun for noun in NOUNS if importlib.util.find_spec(f"konsil.cli.{noun}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS or cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(f"konsil.cli.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"konsil.cli.{cmd_name} has no command of that name")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(noun, NOUNS[noun]) for noun in self.list_commands(ctx)])


@click.group(cls=_Nouns, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="konsil")
def main() -> None:
    """Konsil: hospitals train one model together; no patient record leaves a hospital.

    Begin with `konsil demo`, on this machine; then with `konsil node init --help`, for your own node.
    """
