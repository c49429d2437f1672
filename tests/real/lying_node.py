"""A member's node that lies.

lying_node.py DIRECTORY LIE

wrong      every chunk that it merges or recomputes has one bit turned
withheld   the same, and what would prove it is not given: its own update's chunks of the parts it led
hanging    its update's chunks are promised and never sent
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from konsil.core.messages import GetChunk
from konsil.errors import PeerRefused
from konsil.node import daemon
from konsil.node.bench import Bench
from konsil.node.service import Service

honest_merge, honest_lead, honest_answer = Bench._merge, Bench.lead, Service._model_bytes
own_chunks: dict[str, set[int]] = defaultdict(set)


def lying_merge(bench: Bench, index: int, chunks: Sequence[memoryview], out: memoryview) -> None:
    honest_merge(bench, index, chunks, out)
    out[0] ^= 1


async def remembering_lead(bench: Bench, part: int) -> tuple[str, str]:
    own = bench.roster.digests[bench.roster.members.index(bench.me)]
    own_chunks[own].update(bench.chunks_of(part))
    return await honest_lead(bench, part)


def is_own_update(service: Service, digest: str) -> bool:
    opens = [runner.study.open for runner in service._runners().values()]
    mine = [current.commits.get(service.me) for current in opens if current is not None]
    return digest in {commit.digest for commit in mine if commit is not None}


async def withholding_answer(service: Service, peer: str, request: Any) -> Any:
    if isinstance(request, GetChunk) and request.index in own_chunks[request.digest]:
        raise PeerRefused("not_here", "I do not have it.")
    return await honest_answer(service, peer, request)


async def hanging_answer(service: Service, peer: str, request: Any) -> Any:
    if isinstance(request, GetChunk) and is_own_update(service, request.digest):
        await asyncio.sleep(1000)
    return await honest_answer(service, peer, request)


def lie(kind: str) -> None:
    if kind in {"wrong", "withheld"}:
        Bench._merge = lying_merge  # type: ignore[method-assign]
    if kind == "withheld":
        Bench.lead = remembering_lead  # type: ignore[method-assign]
        Service._model_bytes = withholding_answer  # type: ignore[method-assign]
    if kind == "hanging":
        Service._model_bytes = hanging_answer  # type: ignore[method-assign]


if __name__ == "__main__":
    lie(sys.argv[2])
    daemon.run(Path(sys.argv[1]))
