"""What a node asks of its operating system: to be alone in its directory, and to be known as ready."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from konsil.errors import ConfigError, NodeBusy

NOTIFY_S = 5.0
"""A service manager that has not taken a word by then does not listen: the node goes on without it."""


@contextmanager
def writable(directory: Path) -> Iterator[None]:
    """Say what is wrong with a member's directory that cannot be written to.

    Raises:
        ConfigError: with the reason.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror}.",
            safe="Nothing was started.",
            do="Start the node as the user who owns the directory, on a disk that is not full or read-only.",
        ) from error


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold a member's directory: two nodes with one identity would contradict each other.

    Raises:
        NodeBusy: another node holds it.
    """
    with writable(directory):
        descriptor = os.open(directory / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NodeBusy(
                f"A node runs from {directory} already.",
                safe="It goes on undisturbed.",
                do="Look at it with `konsil node status`, or stop it first.",
            ) from None
        yield
    finally:
        os.close(descriptor)


def notify(*fields: str) -> None:
    """Tell a service manager (systemd's protocol: a datagram to NOTIFY_SOCKET), if there is one.

    Blocks for up to ``NOTIFY_S`` where it does not read what it was told before.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line, contextlib.suppress(OSError):
        line.settimeout(NOTIFY_S)
        line.connect("\0" + address[1:] if address.startswith("@") else address)
        line.send("\n".join(fields).encode())
