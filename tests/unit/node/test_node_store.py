"""What a node serves: by digest, in place, and not a moment longer than it is kept."""

from __future__ import annotations

import pytest

from konsil.core.digest import Manifest, group_digest, leaf
from konsil.errors import NodeError, SchemaMismatch
from konsil.node.models import Models
from konsil.node.store import Slice, Store, model_of
from konsil.wall.memory import seal_pieces

CHUNK = 4 * 1024 * 1024


def fill(assembly, model):
    for index in range(len(model.manifest.leaves)):
        with assembly.chunk(index) as into:
            into[:] = model.chunk(index)


def test_a_model_is_served_whole_by_chunk_and_by_group(make):
    store, model = Store(), make.model(1)
    store.add_model(model)
    assert Manifest.decode(store.manifest(model.digest)).digest == model.digest
    assert leaf(store.chunk(model.digest, 2)) == model.manifest.leaves[2]
    (group,) = model.manifest.group_digests
    part = Manifest.decode(store.manifest(group))
    assert (part.header, part.leaves) == (b"", model.manifest.leaves)
    assert leaf(store.chunk(group, 1)) == model.manifest.leaves[1]
    store.close()


@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_a_chunk_that_there_is_not_is_not_served(make, index):
    store, model = Store(), make.model(1)
    store.add_model(model)
    assert store.chunk(model.digest, index) is None
    assert store.chunk(model.manifest.group_digests[0], index) is None
    assert store.chunk("0" * 64, 0) is None
    assert store.manifest("0" * 64) is None
    store.close()


def test_a_part_is_served_while_the_merge_is_put_together_and_in_place_once_it_is_sealed(make):
    store, model = Store(), make.model(1)
    assembly = make.Assembly(model.schema)
    fill(assembly, model)
    leaves = model.manifest.leaves[1:]
    digest = group_digest(leaves)
    store.add_part(digest, Slice(leaves, 1, assembly))
    before = store.chunk(digest, 0)
    assert isinstance(before, bytes)
    assert leaf(before) == model.manifest.leaves[1]
    sealed = assembly.seal([model.manifest.leaves[:1], leaves])
    store.add_model(sealed)
    after = store.chunk(digest, 1)
    assert isinstance(after, memoryview)
    assert leaf(after) == model.manifest.leaves[2]
    del after
    store.close()
    model.memory.close()


def test_what_is_not_kept_is_let_go_with_its_parts_and_its_descriptor(make):
    before = make.open_files()
    store, one, other = Store(), make.model(1), make.model(2)
    store.add_model(one)
    store.add_model(other)
    assembly = make.Assembly(one.schema)
    store.add_part("5" * 64, Slice((b"0" * 32,), 0, assembly))
    store.keep_only([one.digest], assembly)
    assert store.model(other.digest) is None
    assert store.part(other.manifest.group_digests[0]) is None
    assert store.part("5" * 64) is not None
    store.keep_only([one.digest])
    assert store.part("5" * 64) is None
    assembly.close()
    store.close()
    assert make.open_files() == before


def test_the_same_model_twice_is_kept_once(make):
    before = make.open_files()
    store, one, again = Store(), make.model(1), make.model(1)
    store.add_model(one)
    store.add_model(again)
    store.add_model(one)
    assert store.model(one.digest) is one
    assert again.memory.fd == -1
    store.close()
    assert make.open_files() == before


def test_an_assembly_that_is_closed_under_an_arriving_chunk_breaks_nothing(make):
    before = make.open_files()
    assembly = make.Assembly(make.schema())
    with assembly.chunk(0) as into:
        assembly.close()
        into[:4] = b"late"
        with pytest.raises(NodeError, match="went on without it"):
            assembly.chunk(1)
    assembly.close()
    assert make.open_files() == before


def test_what_is_sealed_can_no_longer_be_written(make):
    model = make.model(1)
    assembly = make.Assembly(model.schema)
    fill(assembly, model)
    sealed = assembly.seal([model.manifest.leaves])
    assert sealed.digest == model.digest
    with pytest.raises(NodeError):
        assembly.chunk(0)
    with pytest.raises(TypeError):
        sealed.chunk(0)[0] = 1
    assembly.close()
    assert leaf(sealed.chunk(0)) == model.manifest.leaves[0]
    sealed.memory.close()
    model.memory.close()


def test_parameters_of_another_schema_or_length_are_refused(make):
    schema = make.schema()
    other = seal_pieces([make.schema(1000).header, bytes(make.schema(1000).data_bytes)])
    with pytest.raises(SchemaMismatch, match="Nothing was committed"):
        model_of(other, schema)
    short = seal_pieces([schema.header, bytes(schema.data_bytes - 4)])
    with pytest.raises(SchemaMismatch, match=f"hold {short.size_bytes} bytes"):
        model_of(short, schema)
    other.close()
    short.close()


async def test_a_model_that_is_put_aside_is_served_from_its_file_and_gives_its_memory_back(make, tmp_path):
    store, models, model = Store(), Models(tmp_path), make.model(1)
    store.add_model(model)
    await models.save("aml", model)
    second = bytes(model.chunk(1))
    before = make.open_files()
    store.put_aside(await models.open("aml", model.digest))
    store.put_aside(await models.open("aml", model.digest))  # a second one changes nothing
    assert make.open_files() == before - 1  # one file more; a memory and its mapping less
    assert store.model(model.digest) is None
    assert store.part(model.manifest.group_digests[0]) is None
    assert store.stored(model.digest).digest == model.digest
    assert store.chunk(model.digest, 1) == second
    assert store.chunk(model.digest, 3) is None
    assert store.manifest(model.digest) == model.manifest.encode()
    store.keep_only({model.digest})
    assert store.chunk(model.digest, 1) == second
    store.drop_stored(model.digest)
    assert store.chunk(model.digest, 1) is None
    store.put_aside(await models.open("aml", model.digest))
    store.close()
    assert make.open_files() == before - 2
