"""The page for data scientists: its simulation runs as it stands there, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/data-scientist.md"


def blocks() -> list[str]:
    section = PAGE.read_text().split("## Try it before the hospitals agree\n")[1].split("\n## ")[0]
    return re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)


def lines(text: str) -> list[str]:
    """Without figures that another processor, or a version of scikit-learn, may give otherwise."""
    return re.sub(r"\b([0-9a-f]{64}|\d+\.\d+|1)(?=[ ,;\n])", "?", text.strip() + "\n").splitlines()


def test_the_simulation_of_the_page_prints_what_the_page_shows(capsys):
    script, printed = blocks()[:2]
    exec(compile(script, str(PAGE), "exec"), {})  # noqa: S102 - it is our own page
    said, shown = lines(capsys.readouterr().out), lines(printed)
    gap = shown.index("  ...")
    assert shown[:gap] == said[:gap]
    assert shown[gap + 1 :] == said[gap + 1 - len(shown) :]
    assert len(said) == 12
