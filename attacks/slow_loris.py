"""Begin and never go on: connections without a word, half a handshake, half a frame, half a word."""

from __future__ import annotations

import contextlib
import socket
import time

from stage import OPERATOR, REQUEST, Stage, alone

from konsil.core.messages import GetStatus, Status
from konsil.transport.timings import MAX_HANDSHAKES, Timings

LATE_S = Timings().handshake_s / 2


def attack(stage: Stage) -> None:
    """More of each than the node has places for, all at once; a member still gets in."""
    held = stage.descriptors(OPERATOR)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(stage.member()) for _ in range(2)]
        lines[1].frame(REQUEST, b"only this", request=1, length=1000)
        stage.says("a frame that began and does not end: the connection waits alone")
        silent = [stack.enter_context(stage.dial(OPERATOR, "127.0.0.2")) for _ in range(2 * MAX_HANDSHAKES)]
        for plain in silent[::2]:
            plain.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a handshake
        walls = [stack.enter_context(stage.wall(OPERATOR)) for _ in range(20)]
        for wall in walls[::2]:
            wall.send(b"\x00\x00\x01\x00\x81")
        stage.says(
            f"{len(silent)} connections without a handshake, 20 at the session's socket without a word"
        )
        stage.serves_others()
        began_s = time.monotonic()
        stage.must(_gets_in(stage), "a member does not get in any more")
        stage.says(f"a member that comes now gets in after {time.monotonic() - began_s:.1f} s")
        ended = sum(_is_closed(plain) for plain in silent)
        stage.must(
            ended >= len(silent) - MAX_HANDSHAKES, f"only {ended} of those without a word were hung up on"
        )
        stage.says(
            f"for that {ended} of those without a handshake were hung up on; the others will be in time"
        )
    stage.settles(OPERATOR, held + 10)


def _gets_in(stage: Stage) -> bool:
    until_s = time.monotonic() + LATE_S
    while time.monotonic() < until_s:
        with contextlib.suppress(OSError), stage.member() as line:
            return isinstance(line.ask(GetStatus()), Status)
    return False


def _is_closed(plain: socket.socket) -> bool:
    plain.setblocking(False)
    try:
        while plain.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


if __name__ == "__main__":
    alone(attack)
