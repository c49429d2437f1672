"""Each planted bug is found: a law that no universe can break is not a law."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MOST, MUTANTS, found_by


def test_there_are_enough_planted_bugs_and_each_has_a_name_of_its_own():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS.values()}) == len(MUTANTS)


def test_the_page_tells_of_each():
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert set(MUTANTS) <= set(rows)


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.timeout(300)
def test_a_planted_bug_is_found(name):
    count, law = found_by(name)
    assert count, f"{name}: not found in {MOST} universes"
    assert law


def test_a_bug_that_does_not_fit_any_more_is_an_error():
    code = 'from mutants import Mutant, hunt; hunt(Mutant("gone", "core.digest", "no such text", ""), 0, 1)'
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode
    assert "core/digest.py 0 times, not once" in run.stderr
