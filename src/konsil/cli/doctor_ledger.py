"""The ledger's line in `konsil doctor`: is what keeps it here, and are enough of those who keep it?"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Collection
from typing import Literal, NamedTuple

from konsil.core.rules import Genesis, State, may_fail, validators
from konsil.node.config import Config

_SEE_PROXY = "See `proxy` above."
_ASK = "Ask them whether their node runs, and whether a firewall stands between."


class Said(NamedTuple):
    """See ``konsil.cli.doctor.Finding``."""

    level: Literal["ok", "warn", "fail"]
    what: str
    do: str = ""


def engine(config: Config, genesis: Genesis) -> Said | None:
    """Whether the engine's program is here; None where the ledger needs none.

    Raises:
        ConfigError: it is not, or is of another version.
    """
    if genesis.engine != "cometbft":
        return None
    try:
        importlib.import_module("google.protobuf")
    except ImportError:
        return Said("fail", "A library is missing: protobuf.", "pip install 'konsil[cometbft]'")
    from konsil.ledger.cometbft.program import find  # noqa: PLC0415 - only where it is needed

    return Said("ok", f"CometBFT: {asyncio.run(find(config.ledger.cometbft))}")


def ledger(
    state: State, height: int, heights: Collection[int], reached: set[str], cut: Collection[str]
) -> Said:
    """Whether the ledger takes calls, and whether this node is as far as the others.

    Args:
        state: the contract's state at this node.
        height: of it, now.
        heights: of this node and of every peer that answers.
        reached: members whose node answers, this one included.
        cut: members of whose nodes nothing is known, since the proxy does not let this one out.
    """
    if state.operator and state.operator not in reached:
        return Said(
            "fail",
            f"'{state.operator}', who serves the ledger, does not answer: nothing new is taken.",
            _SEE_PROXY if state.operator in cut else _ASK,
        )
    keepers = validators(state)
    away = [name for name in keepers if name not in reached]
    if keepers and len(away) > may_fail(len(keepers)):
        return Said(
            "fail",
            f"{len(away)} of the {len(keepers)} members that keep the ledger do not answer ({_some(away)}): "
            "nothing new is taken until more than two thirds are there.",
            _SEE_PROXY if all(name in cut for name in away) else _ASK,
        )
    if height < max(heights):
        behind = max(heights) - height
        return Said("warn", f"height {height}, {behind} below the highest.", "Try again in a second.")
    if away and len(away) == may_fail(len(keepers)):
        return Said(
            "warn",
            f"height {height}; away of those who keep the ledger: {_some(away)}. No further one may be.",
            _ASK,
        )
    return Said("ok", f"height {height}, as high as that of every peer that answers")


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:20])
