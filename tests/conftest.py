"""What all tests share: the engines that they run against, from the cache that scripts/engines fills."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BRING = Path(__file__).parents[1] / "scripts" / "engines.py"


def _engines() -> ModuleType:
    if "engines" not in sys.modules:
        spec = importlib.util.spec_from_file_location("engines", BRING)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["engines"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["engines"]


@pytest.fixture
def engines() -> ModuleType:
    """What scripts/engines does."""
    return _engines()


@pytest.fixture
def engine_binary(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """A function from a program's name ("cometbft", "spire-agent", ...) to where it lies.

    What is not in the cache is built, if that is possible here and KONSIL_BUILD_ENGINES is not 0; else the test
    is skipped, but never in CI.
    """

    def find(program: str) -> Path:
        engines = _engines()
        name = next(name for name, engine in engines.ENGINES.items() if program in engine.programs)
        if (folder := engines.built(name)) is None:
            # A build takes its minutes, once; what the test then does alone would be cut off by them.
            request.config.pluginmanager.hook.pytest_timeout_cancel_timer(item=request.node)
            try:
                if os.environ.get("KONSIL_BUILD_ENGINES") == "0":
                    raise engines.Unavailable(f"{name} is not built here: `scripts/engines {name}` does it.")  # noqa: TRY301 - said as what it is
                folder, _ = engines.bring(name)
            except engines.Unavailable as missing:
                problem = f"NOT TESTED: {missing}"
                if os.environ.get("CI") == "true":
                    pytest.fail(problem)
                pytest.skip(problem)
        return folder / program

    return find
