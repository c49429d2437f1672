"""Accepted merges on disk: whole or not at all, and never loaded when a byte is wrong."""

from __future__ import annotations

import asyncio
import os

import pytest

from konsil.errors import DigestMismatch, NodeError
from konsil.node import models as models_module
from konsil.node.models import Models

SMALL = 5000


@pytest.fixture
def models(tmp_path):
    return Models(tmp_path)


def files(models):
    return sorted(path.name for path in models.directory.rglob("*") if path.is_file())


def path_of(models, model, kind="safetensors"):
    return models.directory / "aml" / f"{model.digest}.{kind}"


async def test_a_model_comes_back_as_it_went(models, make):
    model = make.model(1)
    await models.save("aml", model)
    loaded = await models.load("aml", model.digest)
    assert loaded.manifest == model.manifest
    assert bytes(loaded.memory.data) == bytes(model.memory.data)
    loaded.memory.close()
    model.memory.close()


async def test_two_studies_that_begin_with_one_model_both_have_it_on_disk(models, make):
    model = make.model(1)
    await asyncio.gather(models.save("aml", model), models.save("lungs", model))
    for study in ("aml", "lungs"):
        loaded = await models.load(study, model.digest)
        loaded.memory.close()
    model.memory.close()


async def test_a_model_that_is_not_there_is_none(models):
    assert await models.load("aml", "1" * 64) is None
    assert await models.load("aml", "") is None


@pytest.mark.parametrize("damage", ["a byte", "cut short", "manifest", "another manifest", "no manifest"])
async def test_what_is_damaged_or_torn_is_not_loaded_but_fetched_again(models, make, damage):
    model, other = make.model(1, SMALL), make.model(2, SMALL)
    await models.save("aml", model)
    data, manifest = path_of(models, model), path_of(models, model, "manifest")
    whole = bytearray(data.read_bytes())
    if damage == "a byte":
        whole[len(model.schema.header) + 40] ^= 1
        data.write_bytes(whole)
    elif damage == "cut short":
        data.write_bytes(whole[:-1])
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-1])
    elif damage == "another manifest":
        manifest.write_bytes(other.manifest.encode())
    else:
        manifest.unlink()
    before = make.open_files()
    assert await models.load("aml", model.digest) is None
    assert make.open_files() == before
    model.memory.close()
    other.memory.close()


async def test_a_damaged_model_is_written_again_when_it_was_fetched_again(models, make):
    model = make.model(1, SMALL)
    await models.save("aml", model)
    path_of(models, model).write_bytes(b"")
    assert await models.load("aml", model.digest) is None
    await models.save("aml", model)
    loaded = await models.load("aml", model.digest)
    assert loaded is not None
    loaded.memory.close()
    model.memory.close()


async def test_only_the_newest_and_the_one_before_are_kept(models, make):
    made = [make.model(number, SMALL) for number in range(1, 5)]
    for number, model in enumerate(made):
        await models.save("aml", model)
        os.utime(path_of(models, model, "manifest"), (number, number))
    assert files(models) == sorted(
        f"{model.digest}.{kind}" for model in made[2:] for kind in ("manifest", "safetensors")
    )
    await models.save("other", made[0])
    assert await models.load("aml", made[0].digest) is None
    for model in made:
        model.memory.close()


async def test_what_the_ledger_needs_is_kept_however_old_it_is(models, make):
    base, *candidates = [make.model(number, SMALL) for number in range(1, 5)]
    await models.save("aml", base)
    os.utime(path_of(models, base, "manifest"), (1, 1))
    for number, model in enumerate(candidates, start=2):
        await models.save("aml", model, lambda model=model: {base.digest, model.digest})
        os.utime(path_of(models, model, "manifest"), (number, number))
    loaded = await models.load("aml", base.digest)
    assert loaded is not None
    for model in (base, loaded, *candidates):
        model.memory.close()


async def test_two_who_save_at_once_write_once(models, make, monkeypatch):
    model = make.model(1, SMALL)
    written = []
    write = models._write
    monkeypatch.setattr(models, "_write", lambda *what: (written.append(what), write(*what)))
    await asyncio.gather(models.save("aml", model), models.save("aml", model))
    assert len(written) == 1
    model.memory.close()


async def test_a_full_disk_leaves_nothing_behind_and_what_was_there_stays(models, make, monkeypatch):
    first, second = make.model(1, SMALL), make.model(2, SMALL)
    await models.save("aml", first)
    before = files(models)

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NodeError, match=r"could not be written: No space left on device.*previous merge"):
        await models.save("aml", second)
    assert files(models) == before
    monkeypatch.undo()
    await models.save("aml", second)
    first.memory.close()
    second.memory.close()


async def test_what_a_killed_node_left_half_written_is_swept_at_the_next_start(models, make):
    model, torn = make.model(1, SMALL), make.model(2, SMALL)
    await models.save("aml", model)
    path_of(models, torn, "safetensors.new").write_bytes(b"half")
    path_of(models, torn).write_bytes(b"without its manifest")
    again = Models(models.directory)
    assert files(again) == sorted(f"{model.digest}.{kind}" for kind in ("manifest", "safetensors"))
    model.memory.close()
    torn.memory.close()


async def test_what_another_save_or_a_repair_has_just_removed_does_not_stop_a_save(models, make):
    made = [make.model(number, SMALL) for number in range(4)]
    await models.save("aml", made[0])
    gone = models.directory / "aml" / f"{'f' * 64}.manifest"
    gone.symlink_to(models.directory / "nothing")  # listed, and not there when it is looked at
    await models.save("aml", made[1])
    assert path_of(models, made[1]).exists()
    for model in made:
        model.memory.close()


async def test_what_has_come_to_be_needed_while_a_model_was_written_stays(models, make, monkeypatch):
    made = [make.model(number, SMALL) for number in range(4)]
    needed = {made[3].digest}
    write, written = models_module.write_whole, []

    def slow(path, *pieces, **options):
        write(path, *pieces, **options)
        written.append(path)
        if len(written) == 2 * 4:  # a model and its manifest each
            needed.add(made[0].digest)  # the ledger has moved on meanwhile

    monkeypatch.setattr(models_module, "write_whole", slow)
    for model in made[:3]:
        await models.save("aml", model, lambda: {each.digest for each in made})
    await models.save("aml", made[3], lambda: needed)
    assert path_of(models, made[0]).exists()
    assert not path_of(models, made[1]).exists()
    for model in made:
        model.memory.close()


async def test_a_model_left_on_disk_is_read_where_it_is_needed_and_checked_when_asked(models, make):
    model = make.model(1)
    await models.save("aml", model)
    stored = await models.open("aml", model.digest)
    assert stored.digest == model.digest
    assert stored.chunk(1) == model.chunk(1)
    assert stored.reader()(5, 9) == model.data()[5:9]
    stored.check()
    with path_of(models, model).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(DigestMismatch):
        stored.check()
    with path_of(models, model).open("r+b") as file:
        file.truncate(len(model.schema.header) + 6)
    with pytest.raises(NodeError, match="cut short"):
        stored.chunk(0)
    stored.close()
    with pytest.raises(NodeError, match="cannot be read"):
        stored.read(0, 1)
    await models.remove("aml", model.digest)
    assert files(models) == []
    model.close()


@pytest.mark.parametrize("damage", ["no file", "no manifest", "another manifest", "no digest"])
async def test_what_is_not_there_whole_is_not_left_on_disk_to_be_read(models, make, damage):
    model, other = make.model(1, SMALL), make.model(2, SMALL)
    await models.save("aml", model)
    if damage == "no file":
        path_of(models, model).unlink()
    elif damage == "no manifest":
        path_of(models, model, "manifest").unlink()
    elif damage == "another manifest":
        path_of(models, model, "manifest").write_bytes(other.manifest.encode())
    assert await models.open("aml", model.digest if damage != "no digest" else "1" * 64) is None
    for each in (model, other):
        each.close()
