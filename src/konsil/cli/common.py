"""What the commands share: their options, how they speak to the node, how they print results and errors."""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import click
import msgspec

from konsil.core.rules.state import State
from konsil.core.wall import AskState, Failed, FromNode, ToldState, ToNode
from konsil.errors import KonsilError, NodeError, NodeUnreachable
from konsil.node.config import Config, read_config
from konsil.wall.frames import Delivery, raised
from konsil.wall.line import Line
from konsil.wall.told_state import read_state

ANSWER_S = 60.0
"""How long a command waits for its node: longer than a call may take on any ledger."""

MIN_COLUMNS = 60
"""In a narrower terminal lines are as wide as this: half a word a line is no help."""

Word = TypeVar("Word", bound="FromNode")


class Site(NamedTuple):
    """Where a command works and how it prints. ``directory``: the member's; ``as_json``: for programs."""

    directory: Path
    as_json: bool

    def config(self) -> Config:
        """The member's config.

        Raises:
            ConfigError: see ``konsil.node.config.read_config``.
        """
        return read_config(self.directory)

    @contextmanager
    def node(self) -> Iterator[Node]:
        """A connection to the running node.

        Raises:
            NodeUnreachable: it does not run.
        """
        with Line.connect(self.config().control_socket, ANSWER_S) as line:
            yield Node(line)

    def show(self, value: Any, text: str | None = None) -> None:
        """Print a result: ``value`` as JSON, or else the text for people."""
        if self.as_json:
            click.echo(json.dumps(value, default=_plain, indent=2, sort_keys=True))
        elif text is not None:
            click.echo(printable(text))


class Node:
    """The running node at the other end of the control socket."""

    def __init__(self, line: Line) -> None:
        """Speak over an open connection."""
        self._line = line

    def ask(
        self, word: ToNode, answer: type[Word], *, fd: int | None = None, timeout_s: float = ANSWER_S
    ) -> Word:
        """Say a word and wait for its answer; a descriptor that comes with it is closed.

        Raises:
            NodeUnreachable: no answer in time.
            KonsilError: whatever the node raised.
        """
        delivery = self.ask_with_descriptor(word, answer, fd=fd, timeout_s=timeout_s)
        if delivery.fd is not None:
            os.close(delivery.fd)
        return delivery.word

    def ask_with_descriptor(
        self, word: ToNode, answer: type[Word], *, fd: int | None = None, timeout_s: float = ANSWER_S
    ) -> Delivery[Word]:
        """As ``ask``, with the descriptor that came along; it is the caller's to close."""
        self._line.send(word, fd)
        try:
            delivery = self._line.receive(timeout_s)
        except TimeoutError as error:
            raise NodeUnreachable(
                f"The node gave no answer within {timeout_s:g} s.",
                safe="What you asked may or may not have been done.",
                do="See `konsil node status` and the node's log.",
            ) from error
        if isinstance(delivery.word, Failed):
            raise raised(delivery.word)
        if not isinstance(delivery.word, answer):
            raise NodeError(
                f"The node answered {type(delivery.word).__name__} to {type(word).__name__}.",
                safe="Nothing was taken from it.",
                do="Node and command line are of different versions: update both.",
            )
        return Delivery(delivery.word, delivery.fd)

    def state(self, after: int = -1, wait_s: float = 0.0) -> State:
        """The contract's state; waits up to ``wait_s`` for a height above ``after``.

        Raises:
            NodeUnreachable: no answer in time.
        """
        told = self.ask_with_descriptor(AskState(after, wait_s), ToldState, timeout_s=wait_s + ANSWER_S)
        return read_state(told.word, told.fd)


class WithExample(click.Command):
    """A command whose help ends with an example."""

    example = ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example, then whatever else stands at the end."""
        with formatter.section("Example"):
            formatter.write(
                f"{' ' * formatter.current_indent}{self.example}\n"
            )  # never wrapped: it is copied
        super().format_epilog(ctx, formatter)


def verb(
    group: click.Group | None, name: str, *, example: str, at_member: bool = True
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function a command of a group, with the options and the errors that all have.

    Args:
        group: the noun; None for a command that stands alone.
        name: the verb.
        example: one command line, for ``--help``.
        at_member: whether it works in a member's directory; else it has no ``--dir``.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        with_options = _with_common_options(function)
        made = click.command(name, cls=WithExample)(_with_dir(with_options) if at_member else with_options)
        made.example = example
        if group is not None:
            group.add_command(made)
        return made

    return decorate


_with_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="KONSIL_DIR",
    default=Path("~/.konsil"),
    show_default=True,
    help="The member's directory. Also KONSIL_DIR.",
)


def _with_common_options(function: Callable[..., None]) -> Callable[..., None]:
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    @functools.wraps(function)
    def wrapped(*args: Any, directory: Path = Path(), as_json: bool, **kwargs: Any) -> None:
        site = Site(directory.expanduser().absolute(), as_json)
        try:
            function(site, *args, **kwargs)
        except KonsilError as error:
            fail(error, as_json=as_json)

    return wrapped


def fail(error: KonsilError, *, as_json: bool) -> NoReturn:
    """Print an error to stderr and end with status 1."""
    if as_json:
        facts = {
            "kind": error.kind,
            "code": getattr(error, "code", ""),
            "what": error.what,
            "safe": error.safe,
            "do": error.do,
            "fields": error.fields,
        }
        click.echo(json.dumps({"error": facts}, default=_plain, sort_keys=True), err=True)
    else:
        click.echo(click.style(f"{error.kind}: ", fg="red", bold=True) + printable(error.what), err=True)
        for line in (error.safe, error.do):
            if line:
                click.echo(f"  {printable(line)}", err=True)
    sys.exit(1)


def printable(text: str) -> str:
    """A text without control characters: what others wrote on the ledger must not steer this terminal."""
    return "".join(
        character if character == "\n" or character.isprintable() else "\ufffd" for character in text
    )


def folded(text: str, indent: str = "") -> str:
    """A line; in a terminal what does not fit goes on in the next one, indented. Else it stays a line."""
    if not sys.stdout.isatty():
        return text
    width = max(MIN_COLUMNS, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def one_line(text: str) -> str:
    """A sentence with what others wrote in it, without what could make it look like two."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def in_groups(digest: str) -> str:
    """A digest in groups of four, so that it can be read aloud."""
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def when(unix_s: float) -> str:
    """A moment in the reader's own time zone, to the second."""
    try:
        return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # whoever stamps entries may write any number
        return f"{unix_s:.0f} s after 1970"


def utc(unix_s: float) -> str:
    """A moment for programs: "2026-11-21T12:48:30Z"; "" for one that no calendar has."""
    try:
        return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):
        return ""


def span(seconds: float) -> str:
    """A length of time in its largest sensible unit: "42 s", "3.5 min", "2.0 h", "14 days"."""
    for unit, length_s, limit_s in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if abs(seconds) < limit_s:
            return f"{seconds / length_s:.0f} s" if unit == "s" else f"{seconds / length_s:.1f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _plain(value: Any) -> Any:

    return str(value) if isinstance(value, Path) else msgspec.to_builtins(value)
