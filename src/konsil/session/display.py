"""What a person sees of a study while a script trains: on a terminal, in a notebook, or in a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from typing import Any, Protocol

from konsil.core.wall import Scored, Waiting
from konsil.session.accepted import AcceptedRound

BAR = 20
"""Characters of a bar: beside its words it fits into 80 columns."""

LINES_KEPT = 200
"""Of finished rounds in a notebook: its file holds all that is shown."""


class Display(Protocol):
    """Where words to people go. ``now`` is written over by what comes next, ``line`` stays."""

    def now(self, text: str) -> None:
        """Show what is going on."""
        ...

    def line(self, text: str) -> None:
        """Show what has happened."""
        ...

    def clear(self) -> None:
        """What was going on is over."""
        ...


class Nothing:
    """Nobody watches."""

    def now(self, text: str) -> None:
        """Not shown."""

    def line(self, text: str) -> None:
        """Not shown."""

    def clear(self) -> None:
        """Nothing to do."""


class Log(Nothing):
    """A file or a pipe: only what stays."""

    def line(self, text: str) -> None:
        """Write a line to stderr."""
        sys.stderr.write(f"konsil: {text}\n")
        sys.stderr.flush()


class Terminal:
    """A terminal: one line on stderr that is written over."""

    def __init__(self) -> None:
        self._shown = False

    def now(self, text: str) -> None:
        """Write over the line."""
        self._write(f"konsil: {text}")
        self._shown = True

    def line(self, text: str) -> None:
        """A line of its own, where the other one was."""
        self._write(f"konsil: {text}\n")
        self._shown = False

    def clear(self) -> None:
        """Erase the line."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")  # back to the line's start, and erase to its end
        sys.stderr.flush()


class Lines(Nothing):
    """A terminal on whose last line a framework has its bar: only what stays; else each erases the other."""

    def __init__(self, terminal: Terminal) -> None:
        """``terminal``: a line takes the place of the bar, which is drawn anew below it."""
        self._terminal = terminal

    def line(self, text: str) -> None:
        """Write a line."""
        self._terminal.line(text)


class Notebook:
    """A Jupyter notebook: one output of the cell, updated in place."""

    def __init__(self, show: Any) -> None:
        """``show``: ``IPython.display.display``."""
        self._show = show
        self._handle: Any = None
        self._lines: list[str] = []
        self._now = ""

    def now(self, text: str) -> None:
        """Update the last line."""
        self._now = text
        self._update()

    def line(self, text: str) -> None:
        """Add a line."""
        self._lines = [*self._lines, text][-LINES_KEPT:]
        self._now = ""
        self._update()

    def clear(self) -> None:
        """Take the last line away."""
        if self._now:
            self._now = ""
            self._update()

    def _update(self) -> None:
        text = "\n".join([*self._lines, *([self._now] if self._now else [])])
        data = {"text/plain": text, "text/html": f"<pre>{escape(text)}</pre>"}
        if self._handle is None:
            self._handle = self._show(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def display_for(progress: bool | Display | None) -> Display:
    """Where a person would see something: a notebook, a terminal, or nowhere.

    Args:
        progress: False for nothing at all; True for lines even where nobody watches; or a display itself.
    """
    if not (progress is None or isinstance(progress, bool)):
        return progress
    if progress is False:
        return Nothing()
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is not None:
        from IPython.display import display  # noqa: PLC0415 - loaded already; absent elsewhere

        return Notebook(display)
    if sys.stderr.isatty():
        return Terminal()
    return Log() if progress else Nothing()


def beside_a_bar(progress: bool | Display | None) -> Display:
    """As ``display_for``, where a framework shows a bar of its own."""
    display = display_for(progress)
    return Lines(display) if isinstance(display, Terminal) else display


# --- the words -----------------------------------------------------------------------------------


def waiting_words(waiting: Waiting) -> str:
    """What the node waits for, and whom."""
    what = f"round {waiting.round}" if waiting.round else "the study"
    whom = f" (missing: {', '.join(waiting.missing)})" if waiting.missing else ""
    return f"{what} waits for {waiting.stage}{whom}"


def training_words(number: int, rounds: int, progress: float) -> str:
    """How far the open round's training is."""
    done = round(BAR * progress)
    return f"round {number} of {rounds}: training [{'#' * done}{'.' * (BAR - done)}] {progress:4.0%}"


def accepted_words(last: AcceptedRound, rounds: int, own: Scored | None, before: AcceptedRound | None) -> str:
    """A finished round in one line. The mean is of the round before: this one has no other scores yet."""
    there, of = len(last.members), len(last.members) + len(last.absent)
    absent = ", ".join(f"{name}: {why}" for name, why in sorted(last.absent.items()))
    words = [
        f"round {last.round} of {rounds}: {there} of {of} hospitals" + (f" ({absent})" if absent else "")
    ]
    if own is not None:
        named: Mapping[str, float] = ({} if own.loss is None else {"loss": own.loss}) | own.metrics
        words += [f"{name} {value:.4g}" for name, value in named.items()]
    if before is not None and before.means:
        name, mean = next(iter(before.means.items()))
        words.append(f"mean {name} of round {before.round} {mean:.4g}")
    words.append(f"{last.record.accepted_s - last.record.opened_s} s")
    return ", ".join(words)
