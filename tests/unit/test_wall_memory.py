"""Sealed memory: what a receiver may trust, and what is left behind."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from konsil.errors import ConfigError, FrameError
from konsil.wall import memory
from konsil.wall.memory import SealedMemory, make_writable, open_sealed, seal_pieces, seal_written


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def unsealed(content: bytes, seals: int = 0) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, content)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def test_pieces_are_read_back_in_order_and_in_place():
    pieces = [b"header", np.arange(1000, dtype=np.float32).data, b"", memoryview(b"tail")]
    with seal_pieces(pieces) as sealed, open_sealed(os.dup(sealed.fd)) as received:
        assert bytes(received.data) == b"header" + np.arange(1000, dtype=np.float32).tobytes() + b"tail"
        assert received.data.readonly
        assert received.size_bytes == sealed.size_bytes == 4010


def test_more_pieces_than_one_system_call_takes_are_all_written():
    pieces = [bytes([number % 251]) * 3 for number in range(3000)]
    with seal_pieces(pieces) as sealed:
        assert bytes(sealed.data) == b"".join(pieces)


def test_short_writes_are_continued_where_they_stopped(monkeypatch):
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: real(fd, [views[0][:7]], at))
    pieces = [b"abcdefghij", b"klm", b"nopqrstuvwxyz"]
    with seal_pieces(pieces) as sealed:
        assert bytes(sealed.data) == b"abcdefghijklmnopqrstuvwxyz"


@pytest.mark.skipif(not memory.HAVE_MEMFD, reason="needs seals")
def test_nobody_can_write_cut_or_stretch_what_is_sealed():
    with seal_pieces([b"0123456789"]) as sealed:
        with pytest.raises(PermissionError):
            os.pwrite(sealed.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(sealed.fd, 5)
        with pytest.raises(PermissionError):
            os.ftruncate(sealed.fd, 50)
        with pytest.raises(PermissionError):
            mmap.mmap(sealed.fd, 10, flags=mmap.MAP_SHARED)
        with pytest.raises(PermissionError):
            fcntl.fcntl(sealed.fd, 1033, 0x10)


@pytest.mark.parametrize("seals", [0, 0x2 | 0x4, 0x2 | 0x4 | 0x8, 0x1 | 0x2 | 0x4])
def test_memory_that_its_sender_can_still_change_is_refused_and_closed(seals):
    before = open_descriptors()
    with pytest.raises(FrameError, match="can still be changed"):
        open_sealed(unsealed(b"data", seals))
    assert open_descriptors() == before


def test_a_directory_a_pipe_and_a_named_file_are_no_memory_files(tmp_path):
    before = open_descriptors()
    (tmp_path / "file").write_bytes(b"data")
    reader, writer = os.pipe()
    for fd in (os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "file", os.O_RDONLY), reader):
        with pytest.raises(FrameError, match="is not a memory file"):
            open_sealed(fd)
    os.close(writer)
    assert open_descriptors() == before


def test_a_descriptor_that_is_not_open_is_a_clear_error():
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises((FrameError, OSError)):
        open_sealed(fd)


def test_empty_and_oversized_memory_is_refused():
    with pytest.raises(FrameError, match="holds 0 bytes"):
        open_sealed(unsealed(b"", 0xF))
    with pytest.raises(FrameError, match="holds 5 bytes, not 1 to 4"):
        open_sealed(unsealed(b"12345", 0xF), limit_bytes=4)


def test_memory_filled_through_a_mapping_is_sealed_once_the_mapping_is_closed():
    fd = make_writable(8000)
    mapping = mmap.mmap(fd, 8000, flags=mmap.MAP_SHARED)
    array = np.frombuffer(mapping, dtype=np.float64)
    array[:] = np.arange(1000)
    with pytest.raises(OSError, match="busy"):
        seal_written(fd, 8000)
    del array
    mapping.close()
    with seal_written(fd, 8000) as sealed, open_sealed(os.dup(sealed.fd)) as received:
        assert sealed.fd == fd
        assert np.array_equal(np.frombuffer(received.data, np.float64), np.arange(1000))


def test_closing_under_a_living_view_keeps_the_view_readable_until_it_is_gone():
    before = open_descriptors()
    sealed = seal_pieces([np.arange(10, dtype=np.int64).data])
    array = np.frombuffer(sealed.data, np.int64)
    sealed.close()
    sealed.close()
    assert sealed.fd == -1
    assert array.sum() == 45
    del array
    assert open_descriptors() == before


def test_a_piece_that_fails_leaves_no_descriptor():
    before = open_descriptors()

    def pieces():
        yield b"one"
        raise ValueError("the second failed")

    with pytest.raises(ValueError, match="the second failed"):
        seal_pieces(pieces())
    assert open_descriptors() == before


def test_without_descriptors_left_the_error_says_what_to_do(monkeypatch):
    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(memory, "_new_file", none_left)
    for attempt in (lambda: seal_pieces([b"x"]), lambda: make_writable(1)):
        with pytest.raises(ConfigError, match="ulimit -n"):
            attempt()


def test_without_seals_the_bytes_are_copied_so_that_later_changes_do_not_show():
    fd = unsealed(b"as it was sent")
    writer = os.dup(fd)
    with open_sealed(fd, sealed_required=False) as received:
        os.pwrite(writer, b"CHANGED", 0)
        os.ftruncate(writer, 0)
        assert bytes(received.data) == b"as it was sent"
    os.close(writer)


def test_a_system_without_memfd_uses_a_file_that_no_directory_names(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "HAVE_MEMFD", False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        seal_pieces([b"parameters"]) as sent,
        open_sealed(os.dup(sent.fd), sealed_required=False) as received,
    ):
        assert bytes(received.data) == b"parameters"
        assert list(Path(tmp_path).iterdir()) == []
    assert isinstance(received, SealedMemory)
