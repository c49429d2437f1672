"""Where a training process finds its node."""

from __future__ import annotations

import os
from pathlib import Path

SOCKET_NAME = "session.sock"
"""In a node's directory: where training processes come in."""


def socket_path(node: str | os.PathLike[str] | None = None) -> Path:
    """Where the node's socket is: as told, or from the environment, or at home."""
    if node is not None:
        path = Path(node)
        return path / SOCKET_NAME if path.is_dir() else path
    if os.environ.get("KONSIL_SOCKET"):
        return Path(os.environ["KONSIL_SOCKET"])
    return Path(os.environ.get("KONSIL_DIR") or Path.home() / ".konsil") / SOCKET_NAME
