"""The report's figures as SVG text for inlining: no request, no script, no font from outside.

Colours are of the set by Okabe and Ito, told apart with every common colour blindness; each arm also has a
marker and a line style of its own, so that the figures survive a black-and-white printer.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from konsil.evaluation import metrics
from konsil.evaluation.compare import Comparison
from konsil.evaluation.metrics import Interval
from konsil.evaluation.result import HospitalResult, MemberTraffic

MM_PER_INCH = 25.4
WIDE_MM = 178.0
"""The text width of an A4 page with margins of 16 mm."""
HALF_MM = 86.0


class Look(NamedTuple):
    """How an arm is drawn."""

    label: str
    colour: str
    marker: str
    line: str
    hatch: str


ARMS: Mapping[str, Look] = {
    "local": Look("local (its own model)", "#E69F00", "s", ":", "//"),
    "swarm": Look("swarm", "#0072B2", "o", "-", ""),
    "central": Look("central (all data in one place)", "#7A7A7A", "D", "--", ".."),
}

_STYLE = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",
    "text.parse_math": False,  # a hospital called "$x$" is not a formula
}

COIN = 0.5
"""The AUC of a coin."""

_HOSPITAL_SHADES = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
_HOSPITAL_LINES = ("-", "--", "-.", ":")


def bars(comparison: Comparison) -> str:
    """AUC by hospital and arm with intervals, and the means; bars rise from a coin's AUC."""
    groups: list[tuple[str, tuple[Interval | None, ...]]] = [
        (f"{h.name}\n{h.patients} patients", (h.local, h.swarm, h.central))
        for h in comparison.hospitals
        if not h.problem
    ]
    mean = (comparison.local_at_home, comparison.swarm, comparison.central)
    groups.append((f"mean of\n{len(groups)} hospitals", mean))
    highest_whisker = min(1.0, max(i.high for _, three in groups for i in three if i is not None))
    lowest = min(i.low for _, three in groups for i in three if i is not None)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        width = 0.26
        for place, look in enumerate(ARMS.values()):
            at = np.arange(len(groups)) + (place - 1) * width
            at[-1] += 0.15  # the mean stands a little apart
            values = [three[place] for _, three in groups]
            heights = [0.0 if v is None else v.value - COIN for v in values]
            whiskers = [
                [0.0 if v is None else v.value - v.low for v in values],
                [0.0 if v is None else min(v.high, 1.0) - v.value for v in values],
            ]
            axes.bar(
                at, heights, width * 0.92, bottom=COIN, color=look.colour, edgecolor="white",
                hatch=look.hatch, linewidth=0.4, label=look.label, yerr=whiskers,
                error_kw={"elinewidth": 0.9, "ecolor": "#222222", "capsize": 1.8},
            )  # fmt: skip
        axes.axhline(COIN, color="#222222", linewidth=0.8)
        ticks = [*range(len(groups) - 1), len(groups) - 1 + 0.15]
        axes.set_xticks(ticks, [label for label, _ in groups])
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(min(COIN, lowest) - 0.02, max(highest_whisker, 0.9) + 0.01)
        axes.set_ylabel("AUC at the hospital's held-out patients")
        figure.legend(loc="outside upper center", ncols=3)

    return _svg(draw, WIDE_MM, 74.0, "AUC by hospital: local, swarm and central, with 95 % intervals")


def curves(hospitals: Sequence[HospitalResult]) -> str:
    """ROC curves over all held-out patients in one list; "local" is the mean of the hospitals' own models."""
    labels = np.concatenate([hospital.labels for hospital in hospitals])
    names = [hospital.name for hospital in hospitals]
    grid = np.linspace(0, 1, 401)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8)
        locals_ = [np.concatenate([h.local[name] for h in hospitals]) for name in names]
        risen = []
        for scores in locals_:
            false_rate, true_rate = metrics.roc(labels, scores)
            risen.append(np.interp(grid, false_rate, true_rate))
            axes.plot(false_rate, true_rate, color=ARMS["local"].colour, linewidth=0.5, alpha=0.45)
        mean = np.append(0.0, np.mean(risen, axis=0))
        look = ARMS["local"]
        axes.plot(
            np.append(0.0, grid), mean, look.line, color=look.colour, linewidth=1.8, label="local, mean"
        )
        for arm in ("central", "swarm"):
            scores = np.concatenate([getattr(h, arm) for h in hospitals])
            look = ARMS[arm]
            axes.plot(*metrics.roc(labels, scores), look.line, color=look.colour, linewidth=1.5, label=arm)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
        axes.set_xlabel("false positive rate (1 - specificity)")
        axes.set_ylabel("true positive rate (sensitivity)")
        handles, words = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], words[::-1], loc="lower right", handlelength=2.6)

    return _svg(draw, HALF_MM, 84.0, "ROC curves over all held-out patients: local, swarm, central")


def learning(
    rounds: Sequence[int], scores: Mapping[str, Sequence[float]], mean: Sequence[float], what: str
) -> str:
    """The validation score after each round: each hospital thin, their mean thick.

    Args:
        rounds: numbers [rounds].
        scores: hospital -> score [rounds], NaN where it gave none.
        mean: of the hospitals' scores [rounds].
        what: the axis's label.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (name, values) in enumerate(scores.items()):
            axes.plot(
                rounds, values, _HOSPITAL_LINES[place // len(_HOSPITAL_SHADES) % len(_HOSPITAL_LINES)],
                color=_HOSPITAL_SHADES[place % len(_HOSPITAL_SHADES)], linewidth=0.8, label=name,
            )  # fmt: skip
        axes.plot(rounds, mean, "-", color=ARMS["swarm"].colour, linewidth=2.2, label="mean")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel(what)
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)

    return _svg(draw, HALF_MM, 84.0, "Validation score after each round, by hospital and on average")


def seconds(round_s: Sequence[float]) -> str:
    """How long each round took."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.bar(range(1, len(round_s) + 1), round_s, color=ARMS["swarm"].colour, width=0.7)
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel("seconds")
        axes.grid(visible=False, axis="x")

    return _svg(draw, HALF_MM, 48.0, "Seconds from one merge to the next")


def traffic(members: Sequence[MemberTraffic]) -> str:
    """What each member's node sent and received."""
    most = max((max(m.bytes_out, m.bytes_in) for m in members), default=0)
    unit, size = next(
        ((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= s), ("bytes", 1.0)
    )

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        at = np.arange(len(members))[::-1]
        axes.barh(at + 0.2, [m.bytes_out / size for m in members], 0.38, color="#0072B2", label="sent")
        axes.barh(
            at - 0.2, [m.bytes_in / size for m in members], 0.38, color="#56B4E9", hatch="//",
            edgecolor="white", linewidth=0.4, label="received",
        )  # fmt: skip
        axes.set_yticks(at, [m.member for m in members])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper center", ncols=2)

    return _svg(draw, HALF_MM, max(40.0, 16.0 + 6.5 * len(members)), "Bytes sent and received by each member")


def _svg(draw: Callable[[Figure], None], width_mm: float, height_mm: float, description: str) -> str:
    """A figure as an inline element: matplotlib's file without what only a file needs."""
    settings: dict[str, Any] = {**_STYLE, "svg.hashsalt": description}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width_mm / MM_PER_INCH, height_mm / MM_PER_INCH), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
