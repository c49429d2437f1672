"""Announce what never comes: frames, words, bodies and arrays of gigabytes."""

from __future__ import annotations

import struct

from stage import ANSWER, CANCEL, DATA, GOAWAY, HELLO, OPERATOR, PING, REQUEST, Raw, Stage, alone

from konsil.core.messages import MAX_MESSAGE_BYTES
from konsil.core.wall import Failed

FOUR_GIB = 0xFFFF_FFFF
MOST_BYTES = 32 * 1024 * 1024


def attack(stage: Stage) -> None:
    """Nothing is reserved for what is only announced."""
    before = stage.memory_bytes(OPERATOR)
    for kind, length, body in (
        (HELLO, FOUR_GIB, 0),
        (HELLO, 17 * 1024, 0),
        (GOAWAY, FOUR_GIB, 0),
    ):
        with Raw(stage, OPERATOR) as line:
            line.frame(kind, length=length, body=body)
            stage.must(line.is_ended(), f"frame {kind} of {length} bytes: it waits for them")
    stage.says("greetings of 4 GiB and of 17 KiB, a farewell of 4 GiB: hung up")
    for kind, length, body in (
        (REQUEST, FOUR_GIB, 0),
        (REQUEST, MAX_MESSAGE_BYTES + 1, 0),
        (REQUEST, 0, 1 << 63),
        (ANSWER, FOUR_GIB, 0),
        (ANSWER, 0, (1 << 64) - 1),
        (DATA, 0, (1 << 64) - 1),
        (DATA, 0, 0),
        (DATA, FOUR_GIB, 1),
        (CANCEL, 1, 0),
        (PING, FOUR_GIB, FOUR_GIB),
        (99, 0, 0),
    ):
        with stage.member() as line:
            line.frame(kind, length=length, body=body, request=1)
            stage.must(line.is_ended(), f"frame {kind} of {length} and {body} bytes: it waits for them")
    stage.says("eleven frames of a member's that announce up to 2^64 bytes, or break the format: hung up")
    for name in ("session.sock", "control.sock"):
        for length in (0, FOUR_GIB, 0x7FFF_FFFF, 9 * 1024 * 1024 + 1, 64 * 1024 * 1024 + 1):
            with stage.wall(OPERATOR, name) as wall:
                wall.send(struct.pack("!I", length))
                word = wall.hears()
                stage.must(
                    isinstance(word, Failed) and word.kind == "FrameError", f"{name} took {length}: {word}"
                )
        stage.says(f"words of 0 bytes to 4 GiB at {name}: refused before a byte of them came")
    grown = stage.memory_bytes(OPERATOR) - before
    stage.must(grown < MOST_BYTES, f"the node has grown by {grown} bytes")
    stage.says(f"the node has grown by {max(0, grown) // 1024} KiB")


if __name__ == "__main__":
    alone(attack)
