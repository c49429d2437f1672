"""Ask this member's running CometBFT for the block that proves a history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from konsil.errors import KonsilError
from konsil.ledger.cometbft.proof import Proof, from_rpc
from konsil.ledger.cometbft.rpc import Rpc

BACK = 256
"""Blocks that are looked at, from the newest one back: as many as may come while a history is read."""

PAGE = 100
"""Validators that CometBFT tells of in one answer, at most."""

TRIES, PAUSE_S = 5, 0.5
"""The block that confirms a call follows it at once; it is given this long."""


def proof_of(head: str, rpc_socket: Path) -> Proof | None:
    """The newest block whose header names this entry's digest, with its votes.

    None where there is none among the last blocks, or where CometBFT does not run here or has no such answer.
    """
    return asyncio.run(_proof_of(head, rpc_socket))


async def _proof_of(head: str, rpc_socket: Path) -> Proof | None:
    rpc = Rpc(rpc_socket)
    try:
        for left in reversed(range(TRIES)):
            height = await _height_of(rpc, head)
            if height:
                return from_rpc(await rpc.ask("commit", height=str(height)), await _validators(rpc, height))
            if left:
                await asyncio.sleep(PAUSE_S)
    except (KonsilError, LookupError, TypeError, ValueError):
        return None  # the history holds without it
    finally:
        rpc.close()
    return None


async def _validators(rpc: Rpc, height: int) -> dict[str, list[Any]]:
    """All who could vote at a height; CometBFT tells of a hundred at once."""
    found: list[Any] = []
    while True:
        page = str(len(found) // PAGE + 1)
        told = await rpc.ask("validators", height=str(height), page=page, per_page=str(PAGE))
        found += told["validators"]
        if len(found) >= int(told["total"]) or not told["validators"]:
            return {"validators": found}


async def _height_of(rpc: Rpc, head: str) -> int:
    newest = int((await rpc.ask("status"))["sync_info"]["latest_block_height"])
    for height in range(newest, max(0, newest - BACK), -1):
        header = (await rpc.ask("header", height=str(height)))["header"]
        if header["app_hash"].lower() == head:
            return height
    return 0
