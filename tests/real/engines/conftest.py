"""Swarms whose ledger is kept by each of the engines in turn."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from konsil.evaluation.loopback import Kept, LoopbackSwarm
from konsil.node.tables import LedgerTable


class KeptBy:
    """Swarms under one engine. ``witness``: a member more, where the engine has them."""

    def __init__(self, site: Any, engine: str, find: Callable[[str], Path]) -> None:
        self.site = site
        self.engine = engine
        self.find = find

    def swarm(self, *members: str, **options: Any) -> LoopbackSwarm:
        if self.engine == "local":
            return self.site.swarm(*members, **options)
        kept = Kept("cometbft", LedgerTable(cometbft=str(self.find("cometbft"))), ("witness",))
        return self.site.swarm(*members, "witness", kept=kept, **options)


@pytest.fixture(params=["local", "cometbft"])
def kept(request, site, engine_binary):
    return KeptBy(site, request.param, engine_binary)


@pytest.fixture
def cometbft(site, engine_binary):
    return KeptBy(site, "cometbft", engine_binary)


@pytest.fixture
def double_vote() -> Callable[..., dict[str, Any]]:
    """Makes proof that a validator signed two votes."""
    return runpy.run_path(str(Path(__file__).with_name("double_votes.py")))["double_vote"]
