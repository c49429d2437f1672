"""What a node says to a service manager: heard where somebody listens, and never waited for for long."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from pathlib import Path

import pytest

from konsil.node import process


@pytest.fixture
def manager(monkeypatch):
    """A service manager's socket, which nobody has read yet."""
    # Unix sockets need a short path, and pytest's own temporary folders are long.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(Path(folder) / "s"))
        monkeypatch.setenv("NOTIFY_SOCKET", line.getsockname())
        yield line


def test_a_service_manager_hears_each_word(manager):
    process.notify("READY=1", "MAINPID=7")
    process.notify("STOPPING=1")
    manager.settimeout(1)
    assert manager.recv(100) == b"READY=1\nMAINPID=7"
    assert manager.recv(100) == b"STOPPING=1"


def test_a_service_manager_that_does_not_read_holds_no_node_up(manager, monkeypatch):
    monkeypatch.setattr(process, "NOTIFY_S", 0.2)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        contextlib.suppress(BlockingIOError),
    ):
        other.setblocking(False)
        other.connect(manager.getsockname())
        while True:
            other.send(b"a word that nobody reads")
    began_s = time.monotonic()
    process.notify("STOPPING=1")
    assert 0.1 < time.monotonic() - began_s < 5


def test_a_service_manager_that_is_gone_is_not_told(manager):
    manager.close()
    process.notify("STOPPING=1")
