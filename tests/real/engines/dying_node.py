"""A node that dies, or whose CometBFT does, at one step of the first block with calls that it is given.

dying_node.py DIRECTORY node|engine STEP

decided    CometBFT has the block and asks for it to be applied
applied    it has been applied in memory, and CometBFT has not been told
told       CometBFT has been told, and asks for it to be kept
kept       it is on disk, and CometBFT has not been told
over       CometBFT has been told that it is on disk
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from konsil.ledger.cometbft.keeper import Keeper
from konsil.ledger.cometbft.ledger import CometbftLedger
from konsil.node import daemon

finalize, commit, keep, start = (
    Keeper._finalize_block,
    Keeper._commit,
    Keeper._keep,
    CometbftLedger._start,
)

JUST_AFTER_S = 0.003
"""How long the answer takes to be written, and no longer."""

victim, step = sys.argv[2:4]
ledgers: list[CometbftLedger] = []
done: list[str] = []


def die(here: str) -> None:
    if here != step or done:
        return
    done.append(here)
    pid = os.getpid() if victim == "node" else ledgers[0].engine_process
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def dying_start(ledger: CometbftLedger, *arguments: Any) -> None:
    ledgers.append(ledger)
    await start(ledger, *arguments)


async def dying_finalize(keeper: Keeper, request: Any) -> Any:
    if not request.txs:
        return await finalize(keeper, request)
    die("decided")
    answer = await finalize(keeper, request)
    die("applied")
    return answer


async def dying_commit(keeper: Keeper, request: Any) -> Any:
    if keeper._decided is None or not keeper._decided.entries:
        return await commit(keeper, request)
    die("told")
    answer = await commit(keeper, request)
    asyncio.get_running_loop().call_later(JUST_AFTER_S, die, "over")
    return answer


async def dying_keep(keeper: Keeper, *arguments: Any) -> None:
    await keep(keeper, *arguments)
    die("kept")


if __name__ == "__main__":
    CometbftLedger._start = dying_start  # type: ignore[method-assign]
    Keeper._finalize_block = dying_finalize  # type: ignore[method-assign]
    Keeper._commit = dying_commit  # type: ignore[method-assign]
    Keeper._keep = dying_keep  # type: ignore[method-assign]
    daemon.run(Path(sys.argv[1]))
