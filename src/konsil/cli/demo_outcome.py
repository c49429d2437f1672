"""What ``konsil demo`` prints at its end: what it brought, and what was checked."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from konsil.evaluation.compare import Comparison
from konsil.evaluation.demo import Outcome
from konsil.evaluation.report import interval, sentences, short, size

LEGEND = (
    "local: the hospital's own model; last line: every model tested at every hospital. central: all rows in"
    " one place, which no swarm could have; this demo can, because it dealt them out."
)
"""Under the table at the end."""


def show_outcome(console: Console, outcome: Outcome, comparison: Comparison, report: Path) -> None:
    """What it brought, and what was checked."""
    result = outcome.result
    console.print(Padding(_table(comparison), (1, 0, 0, 1)))
    console.print(Padding(Text(LEGEND, style="dim"), (0, 2, 1, 2)))
    console.print(Padding(Text(sentences(result, comparison)[0], style="bold"), (0, 2)))
    moved = sum(traffic.bytes_out for traffic in result.traffic)
    rounds, calls, members = len(result.rounds), len(result.events), len(result.models)
    everyone = not any("was not in round" in problem for problem in outcome.problems)
    heads = {found.head for found in outcome.verified.values()}
    same = len(set(result.models.values()) | {result.final_digest}) == 1
    held = len(heads) == 1 and not any(found.problem for found in outcome.verified.values())
    head = short(next(iter(heads), ""))
    lines = [
        (everyone, f"All {members} hospitals took part in each of the {rounds} rounds"),
        (same, f"All hold the same model: {short(result.final_digest)}"),
        (held, f"All recomputed the ledger to the same end: {head}, {calls} signed calls"),
        (True, f"{size(moved)} moved between the hospitals: parameters and ledger, no patient's record"),
    ]
    grid = Table.grid(padding=(0, 1))
    for fine, text in lines:
        grid.add_row(Text("✓" if fine else "✗", style="green" if fine else "red"), text)
    console.print(Padding(grid, (1, 2)))
    console.print(
        Padding(
            Text.assemble(
                f"First merge after {result.first_merge_s:.1f} s, the last after {result.total_s:.1f} s.\n",
                ("Report: ", "bold"),
                (str(report), "bold cyan"),
            ),
            (0, 2, 1, 2),
        )
    )


def _table(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    table.title = Text("AUC [95 % interval] at held-out patients", style="bold")
    table.add_column("hospital")
    table.add_column("n", justify="right")
    for arm in ("local", "swarm", "central"):
        table.add_column(arm, no_wrap=True, style="bold cyan" if arm == "swarm" else "")
    for h in comparison.hospitals:
        if h.problem:
            table.add_row(h.name, str(h.patients), Text(f"no AUC: {h.problem}", style="dim"))
        else:
            table.add_row(
                h.name, str(h.patients), *(interval(value) for value in (h.local, h.swarm, h.central))
            )
    table.add_section()
    table.add_row(
        "mean",
        str(sum(h.patients for h in comparison.hospitals)),
        *(interval(value) for value in (comparison.local_at_home, comparison.swarm, comparison.central)),
        style="bold",
    )
    table.add_row(
        "everywhere",
        "",
        *(interval(value) for value in (comparison.local, comparison.swarm, comparison.central)),
        style="bold",
    )
    return table
