"""Manifests and chunks by digest, from whoever has them: the digest says who sent the right ones."""

from __future__ import annotations

import pytest

from konsil.core.messages import GetChunk, GetManifest
from konsil.errors import PeerUnreachable


@pytest.fixture
def four(swarm):
    """'a' pulls; 'b' and 'c' have the model of 'b'."""
    update = swarm.updates["b"]
    swarm.hospitals["c"].store.add_model(update)
    return swarm, swarm.hospitals["a"].puller, update


def room(model, index):
    return memoryview(bytearray(len(model.chunk(index))))


async def test_a_chunk_lands_in_the_memory_that_waits_for_it(four):
    _, puller, model = four
    into = room(model, 1)
    await puller.chunk(model.digest, 1, model.manifest.leaves[1], into, ("b",))
    assert into == model.chunk(1)


async def test_a_wrong_chunk_from_one_holder_is_asked_of_the_next(four):
    swarm, puller, model = four
    swarm.hospitals["b"].lies[GetChunk] = bytes(4 * 1024 * 1024)
    into = room(model, 0)
    await puller.chunk(model.digest, 0, model.manifest.leaves[0], into, ("b", "c"))
    assert into == model.chunk(0)
    assert len(swarm.hospitals["b"].asked) == 1


async def test_a_chunk_of_another_length_is_asked_of_the_next(four):
    swarm, puller, model = four
    swarm.hospitals["b"].lies[GetChunk] = b"short"
    into = room(model, 0)
    await puller.chunk(model.digest, 0, model.manifest.leaves[0], into, ("b", "c"))
    assert into == model.chunk(0)


@pytest.mark.parametrize("lie", [b"", b"no manifest", "another's"])
async def test_a_wrong_manifest_is_asked_of_the_next(four, lie):
    swarm, puller, model = four
    encoded = swarm.updates["d"].manifest.encode() if lie == "another's" else lie
    swarm.hospitals["b"].lies[GetManifest] = encoded or b"\0"
    assert (await puller.manifest(model.digest, ("b", "c"))).digest == model.digest


async def test_a_parts_manifest_is_checked_against_its_group(four):
    _, puller, model = four
    (group,) = model.manifest.group_digests
    manifest = await puller.manifest(group, ("b",))
    assert manifest.leaves == model.manifest.leaves
    assert manifest.header == b""


async def test_a_holder_that_cannot_be_reached_is_asked_through_one_that_reaches_it(four):
    swarm, puller, model = four
    swarm.network.cut("a", "b")
    swarm.network.cut("a", "c")
    into = room(model, 2)
    await puller.chunk(model.digest, 2, model.manifest.leaves[2], into, ("b",))
    assert into == model.chunk(2)
    assert (await puller.manifest(model.digest, ("b",))).digest == model.digest
    assert [who for who, _ in swarm.hospitals["d"].asked] == ["a", "a"]


async def test_a_relay_does_not_ask_another_relay(four):
    swarm, puller, model = four
    for one, other in (("a", "b"), ("a", "c"), ("d", "b")):
        swarm.network.cut(one, other)
    with pytest.raises(PeerUnreachable, match="d does not reach b either"):
        await puller.manifest(model.digest, ("b",), away_s=0.01)
    assert swarm.hospitals["c"].asked == []


async def test_when_nobody_has_it_all_that_were_asked_are_named(four):
    _, puller, _ = four
    with pytest.raises(PeerUnreachable, match=r"held by b, c.*b: .*does not have.*c: .*does not have"):
        await puller.manifest("7" * 64, ("b", "c"))
    with pytest.raises(PeerUnreachable, match="no connection"):
        await puller.manifest("7" * 64, ("a",))


async def test_when_all_send_wrong_bytes_it_fails_and_says_so(four):
    swarm, puller, model = four
    for name in "bc":
        swarm.hospitals[name].lies[GetChunk] = bytes(4 * 1024 * 1024)
    with pytest.raises(PeerUnreachable, match="not what its digest says"):
        await puller.chunk(model.digest, 0, model.manifest.leaves[0], room(model, 0), ("b", "c"))
