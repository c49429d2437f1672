"""Writes a study's report: one HTML file that needs nothing else, on a screen or on A4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from konsil.core.rules import mean_score
from konsil.core.rules.state import RoundRecord
from konsil.errors import ConfigError
from konsil.evaluation import plots
from konsil.evaluation.compare import Comparison, compare
from konsil.evaluation.metrics import Interval
from konsil.evaluation.result import StudyResult
from konsil.files import BY_UMASK, write_whole

DASH = "\N{EN DASH}"
"""Stands where there is no figure."""

FEW = 5
"""Patients of a class below which an AUC's interval is not to be trusted."""

ROUNDS_A_ROW = 25
"""Columns of the grid of rounds that fit on A4."""


class Cell(NamedTuple):
    """One member in one round of the grid. ``kind``: "in", "out", "struck" or "none"."""

    kind: str
    word: str


class Block(NamedTuple):
    """A run of rounds that fits on the page: round numbers, and member -> cells."""

    rounds: tuple[int, ...]
    cells: dict[str, tuple[Cell, ...]]


class Learning(NamedTuple):
    """Validation scores by round: hospital -> score, NaN where there is none.

    ``mean``: theirs, weighted as in the merge, as a study's plateau takes it.
    """

    label: str
    scores: dict[str, list[float]]
    mean: list[float]


def write_report(path: Path, result: StudyResult) -> Comparison:
    """Write the report, whole or not at all, and give back the comparison in it.

    Args:
        path: of the HTML file; a file that stands there is replaced.
        result: the finished study.

    Raises:
        ConfigError: jinja2 or matplotlib is not installed, or the file cannot be written.
        StudyError: no hospital's held-out patients give an AUC.
    """
    comparison = compare(result.hospitals)
    text = render(result, comparison)
    try:
        write_whole(path, (text.encode(),), mode=BY_UMASK)
    except OSError as error:
        raise ConfigError(
            f"The report cannot be written to {path}: {error.strerror}.",
            safe="The study's result is untouched.",
            do="Name another place or make room.",
            path=str(path),
        ) from error
    return comparison


def render(result: StudyResult, comparison: Comparison) -> str:
    """The report as HTML text. Every name and sentence in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - an extra
    from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2

    environment = Environment(
        loader=PackageLoader("konsil.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(ci=interval, signed=signed, utc=utc, size=size, short=short)
    curve = learning(result.rounds)
    figures = {
        "bars": plots.bars(comparison),
        "roc": plots.curves(result.hospitals),
        "learning": plots.learning([r.number for r in result.rounds], curve.scores, curve.mean, curve.label)
        if curve
        else "",
        "seconds": plots.seconds(result.round_s) if result.round_s else "",
        "traffic": plots.traffic(result.traffic) if result.traffic else "",
    }
    return environment.get_template("report.html").render(
        result=result,
        c=comparison,
        # The only text that is not escaped: drawn by matplotlib, which escapes what it is given.
        figures={name: Markup(svg) for name, svg in figures.items()},  # noqa: S704 - see above
        sentences=sentences(result, comparison),
        curve=curve,
        grid=grid(result.rounds),
        absences=absences(result.rounds),
        settings=settings(result),
    )


def sentences(result: StudyResult, c: Comparison) -> tuple[str, ...]:
    """The summary: what together brought against alone, and what it lacked against one place."""
    count = len(result.hospitals)
    if c.swarm_minus_local.low > 0:
        verdict = "Learning together helped"
    elif c.swarm_minus_local.high < 0:
        verdict = "Learning together did harm"
    else:
        verdict = "Learning together made no clear difference"
    headline = (
        f"{verdict}. The model that {count} hospitals trained together reaches a mean AUC of"
        f" {interval(c.swarm)} at the hospitals' held-out patients; the hospitals' own models reach"
        f" {interval(c.local)} on average at the same patients. The difference is"
        f" {signed(c.swarm_minus_local)}."
    )
    home, central = signed(c.swarm_minus_home), signed(c.swarm_minus_central)
    lines = [
        headline,
        f"Each hospital's own model at home: {interval(c.local_at_home)}; swarm minus that: {home}.",
        f"With all data in one place: {interval(c.central)}; swarm minus that: {central}.",
    ]
    if c.central_together is not None:
        lines.append(
            "With all data in one place and scales from all rows, which needs to see every hospital's"
            f" values: {interval(c.central_together)}."
        )
    lines += [f"{name} is not in the means: {why}." for name, why in c.left_out.items()]
    arms = c.arms
    lines += [
        f"{h.name} holds out only {rarer} patients of one class, so its AUC says little and moves the means."
        f" All held-out patients in one list: swarm {interval(arms['swarm'].pooled_auc)}, local"
        f" {interval(arms['local'].pooled_auc)}."
        for h in c.hospitals
        if not h.problem and (rarer := min(h.positives, h.patients - h.positives)) < FEW
    ]
    return tuple(lines)


def learning(rounds: Sequence[RoundRecord]) -> Learning | None:
    """The members' scores as they stand on the ledger: AUC where given, else the loss; None without any."""
    members = sorted({name for record in rounds for name in record.scores})
    for metric, label in (
        ("auc", "AUC at validation patients"),
        ("loss", "loss at validation patients (nats)"),
    ):
        scores = {name: [_score(record, name, metric) for record in rounds] for name in members}
        if any(not math.isnan(value) for values in scores.values() for value in values):
            means = (mean_score(record, metric) for record in rounds)
            mean = [math.nan if value is None else value for value in means]
            return Learning(label, scores, mean)
    return None


def grid(rounds: Sequence[RoundRecord]) -> tuple[Block, ...]:
    """Who took part in which round, cut into blocks that fit on the page."""
    members = sorted({name for r in rounds for name in (*r.roster, *r.absent, *r.struck)})
    blocks = []
    for start in range(0, len(rounds), ROUNDS_A_ROW):
        chunk = rounds[start : start + ROUNDS_A_ROW]
        cells = {name: tuple(_cell(record, name) for record in chunk) for name in members}
        blocks.append(Block(tuple(record.number for record in chunk), cells))
    return tuple(blocks)


def absences(rounds: Sequence[RoundRecord]) -> tuple[str, ...]:
    """Every absence with its reason; one line for a run of rounds missed for one reason."""
    runs: list[tuple[str, str, int, int]] = []
    for record in rounds:
        reasons = {**record.absent, **dict.fromkeys(record.struck, "struck: it published a wrong merge")}
        for name, why in sorted(reasons.items()):
            for place, (who, reason, first, last) in enumerate(runs):
                if (who, reason, last) == (name, why, record.number - 1):
                    runs[place] = (who, reason, first, record.number)
                    break
            else:
                runs.append((name, why, record.number, record.number))
    return tuple(
        f"{name}, {f'round {first}' if first == last else f'rounds {first} to {last}'}: {why}"
        for name, why, first, last in runs
    )


def settings(result: StudyResult) -> dict[str, str]:
    """What the members agreed on, name -> value as people write it, then the caller's notes."""
    values = msgspec.to_builtins(result.settings)
    shown = {
        name.replace("_", " "): ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in values.items()
        if value not in ("", None, [], (), {}, 0, 0.0) and name not in {"name", "description"}
    }
    return {**shown, **result.settings_notes}


def interval(value: Interval | None) -> str:
    """An AUC with its interval, "0.870 [0.842, 0.898]"; a dash where there is none."""
    return DASH if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def signed(value: Interval | None) -> str:
    """A difference with its interval, signs shown."""
    if value is None:
        return DASH
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]".replace("-", "\N{MINUS SIGN}")


def utc(time_s: float) -> str:
    """Unix time as a date and time of day."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """Bytes as people read them, decimal units."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:  # noqa: PLR2004 - a decimal unit's step
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def short(digest: str) -> str:
    """The first 12 hexadecimal digits: enough to compare by eye within one study."""
    return f"{digest[:12]}…" if len(digest) > 12 else digest  # noqa: PLR2004 - as the docstring says


def _cell(record: RoundRecord, name: str) -> Cell:
    if name in record.struck:
        return Cell("struck", "struck: it published a wrong merge")
    if name in record.roster:
        return Cell("in", f"{record.roster[name].examples} examples")
    if name in record.absent:
        return Cell("out", record.absent[name])
    return Cell("none", "not part of the study in this round")


def _score(record: RoundRecord, name: str, metric: str) -> float:
    given = record.scores.get(name)
    if given is None:
        return math.nan
    value = given.loss if metric == "loss" else given.metrics.get(metric)
    return math.nan if value is None else value
