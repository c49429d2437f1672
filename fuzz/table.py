"""Every target, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import blocks
import files
import identities
import ledgers
import peers
import walls
from target import Target

GROUPS: Mapping[str, Sequence[Target]] = {
    "peers": peers.TARGETS,
    "ledgers": ledgers.TARGETS,
    "engines": blocks.TARGETS,
    "identities": identities.TARGETS,
    "files": files.TARGETS,
    "walls": walls.TARGETS,
}
TARGETS: Mapping[str, Target] = {target.name: target for group in GROUPS.values() for target in group}
