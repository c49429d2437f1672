"""Hand the node a descriptor that is not what it seems: memory that changes, devices, folders, too many."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator

from stage import OTHER, Stage, alone

from konsil.core.parameters import Schema, Tensor
from konsil.core.rules import ProposeStudy, StudySettings
from konsil.core.wall import WALL_VERSION, Failed, FromNode, Join, Knock, Progress, Terms
from konsil.wall.frames import frame
from konsil.wall.memory import seal_pieces

ADD_SEALS, ALL_SEALS = 1033, 0xF
TRUE = Schema((Tensor("a", "F32", (2,)),))
TERABYTE = 1 << 40
HUGE = Schema((Tensor("a", "F32", (TERABYTE // 4 - 1024,)),))


def attack(stage: Stage) -> None:
    """As a study's first model, whose bytes the node would serve to everybody."""
    stage.control(OTHER).call(ProposeStudy(StudySettings(name="descriptors", every_steps=1)))
    held, before = stage.descriptors(OTHER), stage.memory_bytes(OTHER)
    for what, fd in _descriptors():
        schema = HUGE if "whole model" in what else TRUE
        word = _offered(stage, (fd,), schema)
        stage.must(isinstance(word, Failed | None), f"{what}: the node took it: {word}")
        stage.says(f"{what}: {word.what[:70] if isinstance(word, Failed) else 'hung up'}")
    _too_many(stage)
    _misplaced(stage)
    stage.settles(OTHER, held)
    stage.must(not stage.state().studies["descriptors"].initial, "a first model stands on the ledger")
    stage.must(stage.memory_bytes(OTHER) - before < 64 << 20, "the node keeps what it refused")


def _offered(stage: Stage, fds: tuple[int, ...], schema: Schema = TRUE) -> FromNode | None:
    with stage.wall(OTHER) as wall:
        wall.send(frame(Knock(WALL_VERSION, "descriptors", 1)))
        terms = wall.hears()
        stage.must(isinstance(terms, Terms) and terms.wanted, f"the node wants no first model: {terms}")
        wall.send(frame(Join(schema.header)), fds)
        return wall.hears()


def _descriptors() -> Iterator[tuple[str, int]]:
    with contextlib.ExitStack() as stack:

        def own(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def memory(data: bytes, seals: int, size: int = 0) -> int:
            fd = own(os.memfd_create("trick", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC))
            os.write(fd, data)
            if size:
                os.ftruncate(fd, size)
            fcntl.fcntl(fd, ADD_SEALS, seals)
            return fd

        model = TRUE.header + bytes(8)
        yield "memory that is not sealed", memory(model, 0)
        yield "memory that can still be written", memory(model, 0x7)
        yield "memory that can still shrink", memory(model, 0xD)
        yield "memory that can still grow", memory(model, 0xB)
        yield "memory whose seals can still be changed", memory(model, 0xE)
        yield "sealed memory, empty", memory(b"", ALL_SEALS)
        yield "sealed memory, a byte short", memory(model[:-1], ALL_SEALS)
        yield "sealed memory, a byte long", memory(model + b"\0", ALL_SEALS)
        yield (
            "sealed memory of another model",
            memory(Schema((Tensor("b", "F32", (2,)),)).header + bytes(8), ALL_SEALS),
        )
        yield "a terabyte of nothing, sealed", memory(model, ALL_SEALS, TERABYTE)
        size = len(HUGE.header) + HUGE.data_bytes
        yield "a whole model of a terabyte of nothing", memory(HUGE.header, ALL_SEALS, size)
        file = stack.enter_context(tempfile.TemporaryFile())
        file.write(model)
        file.flush()
        yield "a file without a name", file.fileno()
        named = stack.enter_context(tempfile.NamedTemporaryFile())
        named.write(model)
        named.flush()
        yield "a file with a name", named.fileno()
        yield "a folder", own(os.open("/", os.O_RDONLY))
        yield "a path alone", own(os.open("/etc/passwd", os.O_PATH))
        yield "a device of zeros", own(os.open("/dev/zero", os.O_RDONLY))
        ends = os.pipe()
        yield "a pipe that never says anything", own(ends[0])
        own(ends[1])
        pair = socket.socketpair()
        for each in pair:
            stack.enter_context(each)
        yield "a socket", pair[0].fileno()


def _too_many(stage: Stage) -> None:
    with seal_pieces([TRUE.header, bytes(8)]) as model:
        for count in (2, 5, 200):
            word = _offered(stage, (model.fd,) * count)
            stage.must(isinstance(word, Failed | None), f"{count} descriptors: the node took them: {word}")
            stage.says(f"{count} descriptors at once: refused")


def _misplaced(stage: Stage) -> None:
    with seal_pieces([TRUE.header, bytes(8)]) as model, stage.wall(OTHER) as wall:
        wall.send(frame(Knock(WALL_VERSION, "descriptors", 1)), (model.fd,))
        word = wall.hears()
        stage.must(
            isinstance(word, Failed) and word.kind == "FrameError", f"a descriptor with a knock: {word}"
        )
        stage.says("a descriptor with a word that has none: refused")
    with stage.wall(OTHER) as wall:
        wall.send(frame(Progress(1, 0.5)))
        word = wall.hears()
        stage.must(isinstance(word, Failed), f"a word before a knock: {word}")


if __name__ == "__main__":
    alone(attack)
