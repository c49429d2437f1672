"""What ``konsil demo`` shows: a live view on a terminal, a line a round elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from konsil.cli import sentences
from konsil.cli.common import when
from konsil.cli.demo_outcome import show_outcome
from konsil.core.rules import OpenRound, RoundRecord, Study, mean_score
from konsil.evaluation.compare import Comparison
from konsil.evaluation.demo import Outcome
from konsil.evaluation.progress import Progress
from konsil.evaluation.report import short, size

FRAMES_S = 10
"""Pictures a second: rounds of the demo take a fifth of a second."""

SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_SHOWN = 20
LEAST_SPREAD = 0.02
"""AUCs that differ by less than this look alike in a curve: noise is not drawn as a mountain."""

STEPS = {
    "start": "Keys, certificates, cards; the same genesis at every hospital",
    "nodes": "A node at every hospital: own process, mutual TLS between all",
    "agree": "Patients dealt out; the study proposed and agreed to",
    "train": "Trained together; every merge recomputed by every member",
    "compare": "Trained alone, and on all data in one place; all tested",
    "verify": "The whole ledger recomputed by every member",
    "report": "Report written",
}
"""Step -> what it was, once it is done."""

NOW = {
    "start": "Making keys, certificates and cards",
    "nodes": "Starting a node at every hospital",
    "agree": "Dealing out patients, proposing the study, agreeing to it",
    "train": "Training together",
    "compare": "Training alone, and on all data in one place; testing all",
    "verify": "Recomputing the ledger at every member",
    "report": "Writing the report",
}
"""Step -> what it is, while it lasts."""

BEFORE = {
    "start": "makes its keys",
    "nodes": "its node starts",
    "agree": "agrees to the study",
    "train": "its training enters",
}
"""What a hospital is doing before the study runs, by step."""

WIDE = 108
"""Columns from which on there is room for curves and bytes."""

LOW = 22
"""Lines, beside one a hospital, that the whole picture needs; below that it goes without its header."""


class View(Protocol):
    """Shows how far the demo is."""

    def watch(self, progress: Progress) -> None:
        """Something changed."""

    def show(self, outcome: Outcome, comparison: Comparison, report: Path) -> None:
        """It is over."""


@contextmanager
def watching(progress: Progress, *, as_json: bool) -> Iterator[View]:
    """The view that suits where the output goes. With JSON on stdout, a terminal's stderr shows the rest."""
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        yield Lines(console, quiet=as_json)
        return
    view = Picture(console, progress, quiet=as_json)
    with Live(
        get_renderable=view.draw, console=console, refresh_per_second=FRAMES_S, transient=True
    ) as view.live:
        yield view


# --- a terminal ----------------------------------------------------------------------------------


class Picture:
    """The live view."""

    def __init__(self, console: Console, progress: Progress, *, quiet: bool) -> None:
        """``quiet``: no tables at the end."""
        self.console = console
        self.progress = progress
        self.quiet = quiet
        self.live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")

    def watch(self, progress: Progress) -> None:
        """Nothing: the picture is drawn at its own pace, from the progress."""

    def draw(self) -> RenderableType:
        """The picture now."""
        progress = self.progress
        wide = self.console.width >= WIDE
        parts = [_header(progress)] if self.console.height > LOW + len(progress.hospitals) else []
        parts.append(_steps(progress, self._spinner))
        if progress.study is not None:
            parts.append(_round(progress, progress.study))
        parts.append(_hospitals(progress, wide=wide))
        return Group(*parts)

    def show(self, outcome: Outcome, comparison: Comparison, report: Path) -> None:
        """The steps, the table and the sentences that stay."""
        if self.quiet:
            return
        self.console.print(_header(self.progress), _steps(self.progress, self._spinner))
        show_outcome(self.console, outcome, comparison, report)


def _header(progress: Progress) -> RenderableType:
    dataset = progress.dataset
    hospitals = _count(len(progress.hospitals))
    lines = Text.assemble(
        ("Konsil demo  ", "bold cyan"),
        (dataset.title, "bold"),
        (f"\n{dataset.question}", ""),
        (
            f"\n{hospitals} hospitals on this machine. No server; no patient's record leaves its hospital.",
            "dim",
        ),
    )
    return Padding(lines, (1, 1, 0, 1))


def _steps(progress: Progress, spinner: Spinner) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=2, justify="right")
    grid.add_column()
    grid.add_column(justify="right", style="dim", no_wrap=True)
    for step, done in STEPS.items():
        if step in progress.done:
            grid.add_row(Text("✓", style="green"), done, f"{progress.done[step]:.1f} s")
        elif step == progress.step:
            grid.add_row(spinner, Text(NOW[step], style="bold"), f"{progress.elapsed_s:.1f} s")
    return Padding(grid, (1, 0, 0, 0))


def _round(progress: Progress, study: Study) -> RenderableType:
    """How many rounds there are, what the open one is doing, whom it waits for and until when."""
    of = study.settings.rounds
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        Text(f"round {min(len(study.history) + 1, of)} of {of}", style="bold"),
        ProgressBar(total=of, completed=len(study.history), width=20),
        Text(doing(study), style="dim", overflow="ellipsis", no_wrap=True),
    )
    moved = sum(told.bytes_out for told in progress.told.values())
    line = f"{progress.height} signed calls on the ledger, {size(moved)} moved between the hospitals"
    return Padding(Group(grid, Text(line, style="dim")), (1, 1, 0, 2))


def _hospitals(progress: Progress, *, wide: bool) -> RenderableType:
    """Every hospital: how many patients it learns from, what it is doing, how well the merges do there."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=True)
    table.add_column("hospital")
    table.add_column("trains on", justify="right")
    table.add_column("now", min_width=26, no_wrap=True)
    table.add_column("AUC of the merges there", min_width=6 + (SPARKS_SHOWN if wide else 0), no_wrap=True)
    if wide:
        table.add_column("sent", justify="right", min_width=8)
        table.add_column("received", justify="right", min_width=8)
    curves = {name: progress.aucs(name) for name in progress.hospitals}
    seen = [auc for curve in curves.values() for auc in curve]
    for name, curve in curves.items():
        told = progress.told.get(name)
        patients = str(progress.patients[name][0]) if name in progress.patients else ""
        traffic = (size(told.bytes_out), size(told.bytes_in)) if told else ("", "")
        table.add_row(name, patients, _now(progress, name), _curve(curve, seen), *(traffic if wide else ()))
    means = _means(progress.study)
    if means:
        table.add_section()
        table.add_row("mean", "", "", _curve(means, means), style="bold")
    return table


def _means(study: Study | None) -> list[float]:
    """The mean AUC of every round that all have scored, weighted as in the merge."""
    history = study.history if study is not None else ()
    scored = (mean_score(record, "auc") for record in history if len(record.scores) == len(record.roster))
    return [auc for auc in scored if auc is not None]


def _curve(curve: list[float], seen: list[float]) -> Text:
    if not curve:
        return Text("")
    high = max(seen)
    low = min(*seen, high - LEAST_SPREAD)
    top = len(SPARKS) - 1
    sparks = "".join(SPARKS[round((auc - low) / (high - low) * top)] for auc in curve[-SPARKS_SHOWN:])
    return Text.assemble((f"{curve[-1]:.3f} ", "bold"), (sparks, "cyan"))


def _now(progress: Progress, name: str) -> Text:
    """What a hospital is doing, from the ledger and, for what is not on it, from its node."""
    if name in progress.results:
        return Text("✓ tested", style="green")
    if name in progress.alone:
        return Text("✓ trained alone, too", style="green")
    if name in progress.ended:
        return Text("trains a model alone", style="yellow")
    study = progress.study
    if study is None:
        return Text(BEFORE.get(progress.step, ""), style="dim")
    current = study.open
    if current is None:
        return Text("✓ ready" if name in progress.entered_s else "its training enters", style="dim")
    problem = _problem(progress, name)
    if problem:
        return Text(problem, style="red", overflow="ellipsis")
    return _in_round(current, name) or Text("trains", style="yellow")


def _in_round(current: OpenRound, name: str) -> Text | None:
    if name in current.absent:
        return Text(f"not in this round: {current.absent[name]}", style="red")
    if current.phase == "collecting":
        return Text("✓ update committed", style="green") if name in current.commits else None
    parts = [number for number, part in enumerate(current.parts) if part.leader == name and not part.digest]
    if parts:
        return Text(f"merges part {', '.join(map(str, parts))}", style="cyan")
    if name in current.accepts:
        return Text("✓ holds the merge", style="green")
    if current.digest:
        return Text("checks the merge", style="cyan")
    leads = any(part.leader == name for part in current.parts)
    return Text("✓ its part is merged", style="cyan") if leads else Text("waits for the merge", style="dim")


def _problem(progress: Progress, name: str) -> str:
    """What hinders a hospital's node in the study, in its own words; empty if nothing does."""
    told = progress.told.get(name)
    found = (here.problem for here in told.studies if here.study == progress.dataset.name) if told else ()
    return next(iter(found), "")


def doing(study: Study) -> str:
    """What the open round is doing, whom it waits for and until when, in one line."""
    current = study.open
    if study.phase in {"finished", "failed"}:
        return study.ended
    if current is None:
        return "waits until all have entered"
    whom = sentences.missing_members(current)
    until = when(current.deadline_s).rpartition(" ")[2]
    waits = f"waits for {'all' if len(whom) == len(study.participants) else ', '.join(whom)}, until {until}"
    if current.phase == "collecting":
        what = "collecting updates"
    elif not current.digest:
        what = "merging" + (f", attempt {current.attempt}" if current.attempt > 1 else "")
    else:
        what = "accepting the merge"
    return f"{what}: {waits}" if whom else what


# --- not a terminal ------------------------------------------------------------------------------


class Lines:
    """A line a step and a line a round, for files and pipes."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        """``quiet``: print nothing at all."""
        self.console = console
        self.quiet = quiet
        self._begun = False
        self._steps: set[str] = set()
        self._rounds = 0

    def watch(self, progress: Progress) -> None:
        """Print what is new."""
        if self.quiet:
            return
        if not self._begun:
            self._begun = True
            dataset = progress.dataset
            self._line(f"Konsil demo: {dataset.title}. {dataset.question}")
        self._print_rounds(progress)
        for step, at_s in progress.done.items():
            if step not in self._steps:
                self._steps.add(step)
                self._line(f"{at_s:6.1f} s  {STEPS[step]}")

    def _print_rounds(self, progress: Progress) -> None:
        study = progress.study
        if study is None:
            return
        for record in study.history[self._rounds :]:
            last = record.number == len(study.history)
            if last and "train" not in progress.done and len(record.scores) < len(record.roster):
                return  # its scores are on their way
            self._rounds = record.number
            held_s = progress.merged_s.get(record.number, {})
            at_s = max(held_s.values()) - progress.plan.began_s if held_s else progress.elapsed_s
            self._line(f"{at_s:6.1f} s  {round_line(record, study)}")

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)
        sys.stdout.flush()  # someone may follow a pipe

    def show(self, outcome: Outcome, comparison: Comparison, report: Path) -> None:
        """The table and the sentences."""
        if not self.quiet:
            self.console.width = max(self.console.width, 110)
            show_outcome(self.console, outcome, comparison, report)


def round_line(record: RoundRecord, study: Study) -> str:
    """An accepted round in one line."""
    auc = mean_score(record, "auc")
    total = len(study.participants)
    absent = "".join(f"; {name}: {why}" for name, why in record.absent.items())
    score = f", validation AUC {auc:.3f}" if auc is not None else ""
    return (
        f"round {record.number} of {study.settings.rounds}: {len(record.roster)} of {total} took part{score},"
        f" merge {short(record.digest)}{absent}"
    )


def _count(number: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[number] if number < len(words) else str(number)
