"""A member's node that has models that there are not; `model_bombs.py` starts it: lying.py DIRECTORY"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from konsil.core.digest import CHUNK_BYTES, Manifest, chunk_count, leaf
from konsil.core.messages import MAX_MANIFEST_BYTES, Bytes, GetManifest, encode
from konsil.core.parameters import Schema, Tensor
from konsil.node import daemon
from konsil.node.service import Service
from konsil.transport.base import Reply

SMALL = Schema((Tensor("a", "F32", (4,)),))
TWO_CHUNKS = Schema((Tensor("a", "F32", (5 * 1024 * 1024 // 4,)),))
TERABYTE = Schema((Tensor("a", "F32", ((1 << 40) // 4,)),))
ZEROS = leaf(bytes(CHUNK_BYTES))
NAN = np.array([1, np.nan, 1, 1], "<f4").tobytes()


def manifests() -> dict[str, Manifest]:
    """Study -> what its first model is said to be: each is the manifest behind the digest on the ledger."""
    return {
        "short": Manifest(TWO_CHUNKS.header, ((ZEROS,),)),
        "long": Manifest(SMALL.header, ((ZEROS,) * 500_000,)),
        "terabyte": Manifest(TERABYTE.header, ((ZEROS,) * chunk_count(TERABYTE.data_bytes),)),
        "groups": Manifest(SMALL.header, ((ZEROS,), *((),) * 1023)),
        "other": Manifest(TWO_CHUNKS.header, ((ZEROS, ZEROS),)),
        "huge": Manifest(SMALL.header, ((ZEROS,),)),
        "false": Manifest(SMALL.header, ((ZEROS,),)),
        "nan": Manifest(SMALL.header, ((leaf(NAN),),)),
    }


def body(study: str, *, manifest: bool) -> bytes:
    """What is answered."""
    if not manifest:
        return NAN if study == "nan" else bytes(16)
    if study == "huge":
        return bytes(MAX_MANIFEST_BYTES + 1)
    if study == "false":  # with as many groups as its first bytes can say
        return b"\xff" * 8 + bytes(MAX_MANIFEST_BYTES - 8)
    return manifests()[study].encode()


async def lying_answer(_service: Service, _peer: str, request: Any) -> Reply:
    """Whatever is asked for is here."""
    return Reply(encode(Bytes()), body(request.study, manifest=isinstance(request, GetManifest)))


if __name__ == "__main__":
    Service._model_bytes = lying_answer  # type: ignore[method-assign,assignment]  # noqa: SLF001
    daemon.run(Path(sys.argv[1]))
