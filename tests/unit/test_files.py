"""Files that are written whole or not at all, in folders where others may write, too."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest

from konsil import files
from konsil.core.model_card import ModelCard
from konsil.core.parameters import Schema
from konsil.errors import ConfigError
from konsil.files import BY_UMASK, make_private_folder, remove_unfinished, write_whole
from konsil.session.resume import LocalFile
from konsil.wall import model_file
from konsil.wall.memory import seal_pieces


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


class Counter:
    """A learner whose local state is one number."""

    def local_state(self):
        return {"counter": np.arange(3.0)}


def resume_file(place):
    return LocalFile(place, swarm="s", study="aml", member="a")


def test_what_is_written_is_there_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"before")
    assert write_whole(path, (b"af", memoryview(b"ter")))
    assert path.read_bytes() == b"after"
    assert not write_whole(path, (b"never",), replace=False)
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"before")

    def pieces():
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, pieces())
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_somebody_laid_is_never_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _bytes: "guessed")
    (shared / ".model.guessed.new").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(shared / "model", (b"MODEL",))
    assert victim.read_bytes() == b"precious"


def test_a_file_that_somebody_made_beforehand_does_not_lend_its_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _bytes: "guessed")
    theirs = tmp_path / ".model.guessed.new"
    theirs.touch()
    theirs.chmod(0o666)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "model", (b"MODEL",))
    assert theirs.read_bytes() == b""


def test_a_model_and_its_page_are_never_written_through_a_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in (".m.safetensors.new", ".m.card.md.new"):
        (shared / name).symlink_to(victim)
    arrays = {"weights": np.zeros(3, np.float32)}
    schema = Schema.of(arrays)
    memory = seal_pieces([schema.header, arrays["weights"].tobytes()])
    monkeypatch.setattr(model_file, "decode_card", lambda _card: ModelCard)
    monkeypatch.setattr(model_file, "page_of", lambda _card, name: name)
    model_file.write_model_file(shared / "m.safetensors", memory, b"{}")
    memory.close()
    assert victim.read_bytes() == b"precious"
    for name in ("m.safetensors", "m.card.md"):
        assert not (shared / name).is_symlink()
        assert mode_of(shared / name) == BY_UMASK & ~0o022


def test_what_a_training_resumes_from_is_its_owners_alone(tmp_path):
    local = resume_file(tmp_path / "state" / "deep")
    local.save(Counter(), 1, "d")
    assert mode_of(local.path) == 0o600
    assert mode_of(tmp_path / "state") == mode_of(tmp_path / "state" / "deep") == 0o700
    local.path.chmod(0o644)
    local.save(Counter(), 2, "d")
    assert mode_of(local.path) == 0o600


def test_what_a_training_resumes_from_is_never_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    local = resume_file(tmp_path)
    (tmp_path / f".{local.path.name}.new").symlink_to(victim)
    local.save(Counter(), 1, "d")
    assert victim.read_bytes() == b"precious"
    assert not local.path.is_symlink()


def test_what_a_killed_training_left_half_written_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "aml.a.resume.safetensors"
    mine = tmp_path / f".{path.name}.0123.new"
    others = tmp_path / f".other.{path.name}.0123.new"
    for each in (path, mine, others):
        each.write_bytes(b"x")
    remove_unfinished(path)
    assert sorted(tmp_path.iterdir()) == sorted((path, others))
    resume = resume_file(tmp_path)
    mine.write_bytes(b"x")
    with pytest.raises(ConfigError):
        resume.load(Counter(), 1, "d")
    assert not mine.exists()


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path)
    assert mode_of(tmp_path) == 0o755
