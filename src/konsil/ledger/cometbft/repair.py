"""Bring a member back whose state is not what the other members have: by their blocks, from the first one."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import NamedTuple

from konsil.errors import ConfigError, LedgerError
from konsil.ledger.cometbft.home import Home
from konsil.ledger.cometbft.program import find, roll_back

_PARTS = ("", "-wal", "-shm")
"""Of an SQLite file."""


class Repaired(NamedTuple):
    """``said``: CometBFT's own words. ``kept``: where this member's own copy of the history was put."""

    said: str
    kept: Path | None


def repair(program: str, directory: Path, journal: Path) -> Repaired:
    """Take CometBFT one block back, and put this member's copy of the history aside.

    At its next start the node applies every block again, which CometBFT has on this machine, and so gets a
    history that is what the blocks give. The member's votes so far are never forgotten.

    Args:
        program: CometBFT's name or path.
        directory: where it keeps its own.
        journal: the file with this member's history.

    Raises:
        ConfigError: CometBFT is not here, or never ran here.
        LedgerError: it cannot be taken back, or the disk refuses.
    """
    home = Home(directory)
    if not home.has_blocks:
        raise ConfigError(
            f"CometBFT has never run in {directory}: there is nothing to repair.",
            safe="Nothing was changed.",
            do="Start the node.",
        )
    said = asyncio.run(_roll_back(program, directory))
    return Repaired(said, _put_aside(journal))


async def _roll_back(program: str, directory: Path) -> str:
    return await roll_back(await find(program), directory)


def _put_aside(journal: Path) -> Path | None:
    if not journal.exists():
        return None
    number = 1
    while (kept := journal.with_name(f"{journal.name}.put-aside-{number}")).exists():
        number += 1
    try:
        # The file itself last: until it is away, a second call does the same again.
        for part in reversed(_PARTS):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{journal}{part}").rename(f"{kept}{part}")
    except OSError as error:
        raise LedgerError(
            f"{journal} cannot be put aside: {error.strerror}.",
            safe="It was not changed. CometBFT is one block back, which does no harm.",
            do="See that this user may write in its folder, and run the command again.",
        ) from error
    return kept
