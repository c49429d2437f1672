"""Planted bugs that worlds of real nodes find: each one within some universes, by an invariant that breaks.

``KONSIL_UNIVERSES`` sets how many are tried; ``mutants.py`` has the bugs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests_simulation_mutants import MUTANTS

HERE = Path(__file__).parent


def plant(module, old, new, first, count):
    command = [sys.executable, str(HERE / "plant.py"), json.dumps([module, old, new, first, count])]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
