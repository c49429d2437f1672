"""Ask this member's running CometBFT for the block that proves a history."""

from __future__ import annotations

import asyncio
from pathlib import Path

from konsil.errors import LedgerUnreachable
from konsil.ledger.cometbft.proof import Proof, from_rpc
from konsil.ledger.cometbft.rpc import Rpc

BACK = 256
"""Blocks that are looked at, from the newest one back: as many as may come while a history is read."""

TRIES, PAUSE_S = 5, 0.5
"""The block that confirms a call follows it at once; it is given this long."""


def proof_of(head: str, rpc_socket: Path) -> Proof | None:
    """The newest block whose header names this entry's digest, with its votes.

    None where there is none among the last blocks, or where CometBFT does not run here.

    Raises:
        FrameError: CometBFT does not tell of its votes what is needed.
    """
    return asyncio.run(_proof_of(head, rpc_socket))


async def _proof_of(head: str, rpc_socket: Path) -> Proof | None:
    rpc = Rpc(rpc_socket)
    try:
        for left in reversed(range(TRIES)):
            height = await _height_of(rpc, head)
            if height:
                told = await rpc.ask("commit", height=str(height))
                return from_rpc(told, await rpc.ask("validators", height=str(height), per_page="100"))
            if left:
                await asyncio.sleep(PAUSE_S)
    except LedgerUnreachable:
        return None
    finally:
        rpc.close()
    return None


async def _height_of(rpc: Rpc, head: str) -> int:
    newest = int((await rpc.ask("status"))["sync_info"]["latest_block_height"])
    for height in range(newest, max(0, newest - BACK), -1):
        header = (await rpc.ask("header", height=str(height)))["header"]
        if header["app_hash"].lower() == head:
            return height
    return 0
