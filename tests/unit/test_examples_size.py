"""What an example asks of its reader: it fits on a page, and adds few lines to a script without a swarm."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
KONSIL = {"konsil", "swarm", "SwarmCallback"}
LINES, PAGE = 5, 60


def konsil_lines(tree: ast.Module) -> set[int]:
    """The lines that name Konsil, without those that only print or prepare what is printed."""
    found: set[int] = set()
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in statement.names] + [getattr(statement, "module", None) or ""]
            if any(name.partition(".")[0] == "konsil" for name in names):
                found.add(statement.lineno)
        elif isinstance(statement, ast.Name) and statement.id in KONSIL:
            found.add(statement.lineno)
    shown = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(part, ast.Attribute) and part.attr in {"figures", "last"} for part in ast.walk(node)
        ):
            shown.add(node.lineno)
    return found - shown


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_fits_on_a_page_and_needs_at_most_five_lines_of_konsil(example):
    text = example.read_text()
    assert len(text.splitlines()) < PAGE
    lines = konsil_lines(ast.parse(text))
    assert 1 < len(lines) <= LINES, [text.splitlines()[line - 1] for line in sorted(lines)]


def test_there_is_an_example_for_each_framework():
    assert {path.stem for path in EXAMPLES} == {
        "huggingface_trainer",
        "image",
        "keras_fit",
        "lightning_fit",
        "scikit_learn",
        "slides",
        "tabular",
    }
