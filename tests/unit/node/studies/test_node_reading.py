"""Who reads a study's models over the network: its participants, whatever other studies say of their digests."""

from __future__ import annotations

import asyncio

import pytest

from konsil.core.digest import Manifest
from konsil.core.messages import GetChunk, GetManifest
from konsil.core.rules import Agree, Initialise, ProposeStudy, Publish, StudySettings, settings_digest
from konsil.errors import PeerRefused, PeerUnreachable
from konsil.node import service

OTHER = StudySettings("other", min_members=1, every_steps=1)


@pytest.fixture
async def world(worlds, monkeypatch):
    """'a' and 'b' train the study 'aml'; 'd' is a member of the swarm and takes no part in it."""
    monkeypatch.setattr(service, "CATCH_UP_S", 0.05)
    return await worlds(start=False, names=("a", "b"), outsiders=("d",), min_members=2, members=("a", "b"))


async def reads(world, by, via, study, digest, **way):
    """The manifest and first chunk that a member gets."""
    ask = world.nodes[by].site.peers.ask
    _, manifest = await ask(via, GetManifest(study, digest, **way), timeout_s=5, limit_bytes=1 << 20)
    _, chunk = await ask(via, GetChunk(study, digest, 0, **way), timeout_s=5, limit_bytes=1 << 23)
    return Manifest.decode(manifest.body).digest, bytes(chunk.body)


async def test_a_study_that_names_anothers_model_as_its_first_opens_it_to_nobody(world):
    await world.start("a", "b", "d", elements=1000)
    for name in "ab":
        world.nodes[name].train()
    await world.until(lambda w: w.study.phase == "finished")
    model = world.study.accepted
    world.put("d", ProposeStudy(OTHER))
    world.put("d", Initialise("other", world.study.schema, model, world.study.data_bytes))
    assert (await reads(world, "b", "a", "aml", model))[0] == model
    for study in ("aml", "other"):
        with pytest.raises(PeerRefused, match="not for this peer"):
            await reads(world, "d", "a", study, model)
        with pytest.raises(PeerRefused):
            await reads(world, "d", "a", study, model, holder="b", relay=True)


async def test_an_update_is_not_read_as_the_first_model_of_a_study_that_its_members_agreed_to(world):
    world.put("d", ProposeStudy(OTHER))
    for name in "ab":
        world.put(name, Agree("other", settings_digest(OTHER)))
    await world.start("a", "b", "d", elements=1000)
    for name in "ab":
        hold_publishing(world.nodes[name])
        world.nodes[name].train()
    await world.until(lambda w: w.study.open is not None and w.study.open.phase == "merging")
    update = world.study.open.commits["b"].digest
    world.put("d", Initialise("other", world.study.schema, update, world.study.data_bytes))
    for name in "ab":
        with pytest.raises(PeerUnreachable):  # not even they get it into that study
            await world.nodes[name].runners["other"].merging.fetch(update)
    assert (await reads(world, "a", "b", "aml", update))[0] == update
    for via in "ab":
        with pytest.raises(PeerRefused):
            await reads(world, "d", via, "other", update, holder="b", relay=True)


def hold_publishing(node):
    """Keep the round between its roster and its merge."""
    submit = node.site.ledger.submit

    async def held(call):
        if isinstance(call, Publish):
            await asyncio.Event().wait()
        return await submit(call)

    node.site.ledger.submit = held
