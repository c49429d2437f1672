"""Universes for tests: how many, and what to say of one that broke a law."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the list of planted bugs, which is a script too

QUICK = 400
"""Universes in a plain run of the tests; ``--all`` runs many more (KONSIL_UNIVERSES)."""


@pytest.fixture(scope="session")
def universes() -> int:
    return int(os.environ.get("KONSIL_UNIVERSES", QUICK))
