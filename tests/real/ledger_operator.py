"""An operator in a process of its own: puts calls on its ledger and says each height once it is promised.

Run: python ledger_operator.py DIRECTORY CONCURRENT
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from konsil.core.rules import Announce, Genesis
from konsil.errors import KonsilError
from konsil.identity.ledger_key import LedgerKey, verify
from konsil.ledger.local import LocalLedger


async def main(directory: Path, concurrent: int) -> None:
    genesis = msgspec.json.decode((directory / "genesis.json").read_bytes(), type=Genesis)
    key = LedgerKey.load(directory / "ledger.pem")
    ledger = await LocalLedger.open(directory / "ledger.db", genesis, key, "lyon", time.time, verify)

    async def submit_for_ever(first: int) -> None:
        number = first
        while True:
            height = await ledger.submit(Announce((f"host-{number}.example:7400",)))
            sys.stdout.write(f"{height}\n")
            sys.stdout.flush()
            number += concurrent

    await asyncio.gather(*(submit_for_ever(first) for first in range(concurrent)))


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
    except KonsilError as error:
        sys.exit(error.kind)
