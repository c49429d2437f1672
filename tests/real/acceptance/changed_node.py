"""A member's node that is not as the others: of another version, or a liar.

changed_node.py DIRECTORY HOW [WORD]

version    says that it is version WORD
protocol   speaks version WORD of the protocol between peers
pickle     gives the bytes of the file WORD, a pickle, for every manifest and chunk of its updates
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from konsil.core.messages import Bytes, GetManifest, encode
from konsil.node import control, daemon, service
from konsil.transport.base import Reply

honest = service.Service._model_bytes


def be(how: str, word: str) -> None:
    match how:
        case "version":
            control.__version__ = service.__version__ = word
        case "protocol":
            daemon.PROTOCOL_VERSION = int(word)
        case "pickle":
            pickled = Path(word).read_bytes()

            async def pickling(node: service.Service, peer: str, request: Any) -> Any:
                reply = await honest(node, peer, request)
                if not _is_own_update(node, request.digest):
                    return reply
                if isinstance(request, GetManifest):
                    return Reply(encode(Bytes()), pickled)
                return Reply(encode(Bytes()), pickled.ljust(len(reply.body), b"."))

            service.Service._model_bytes = pickling  # type: ignore[method-assign]


def _is_own_update(node: service.Service, digest: str) -> bool:
    opens = [runner.study.open for runner in node._runners().values()]
    mine = [current.commits.get(node.me) for current in opens if current is not None]
    return digest in {commit.digest for commit in mine if commit is not None}


if __name__ == "__main__":
    be(sys.argv[2], sys.argv[3])
    daemon.run(Path(sys.argv[1]))
