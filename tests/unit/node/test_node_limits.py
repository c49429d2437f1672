"""What holds before memory is reserved or a place is taken."""

from __future__ import annotations

import asyncio
import os
import struct
from types import SimpleNamespace

import pytest

from konsil.core.digest import CHUNK_BYTES, Manifest, leaf
from konsil.core.messages import Failure, GetChunk, GetManifest, encode
from konsil.core.parameters import Schema, Tensor
from konsil.errors import FrameError, NodeError, NonFinite, PeerRefused, SchemaMismatch
from konsil.node import control, service, training
from konsil.node.merging import Merging
from konsil.node.peers import raised
from konsil.node.store import Store
from konsil.node.training import Training
from konsil.transport.base import Received
from konsil.wall.frames import MAX_TO_NODE_BYTES, FrameReader, words_to_node
from konsil.wall.memory import seal_pieces


async def test_a_model_over_the_nodes_limit_is_not_fetched():
    asked = []
    site = SimpleNamespace(
        me="b",
        ledger_s=lambda: 0.0,
        max_model_bytes=10,
        peers=SimpleNamespace(connected=lambda: (), ask=asked.append),
        rules=None,
    )
    merging = Merging("aml", site, Store(), lambda: SimpleNamespace(data_bytes=11))
    with pytest.raises(NodeError, match="max_model_gb"):
        await merging.fetch("00")
    assert not asked


class Fetching:
    """A member fetches the first model of a study, as the proposer's node gives it out."""

    def __init__(self, schema, leaves, chunk):
        self.schema = schema
        self.manifest = Manifest(schema.header, (tuple(leaves),))
        self.chunk = chunk
        self.asked = []

    async def ask(self, _peer, request, *, into=None, **_limits):
        if isinstance(request, GetManifest):
            return None, Received(b"", self.manifest.encode(), 0)
        self.asked.append(request.index)
        into[:] = self.chunk
        return None, Received(b"", b"", len(into))

    async def fetch(self):
        study = SimpleNamespace(
            data_bytes=self.schema.data_bytes,
            schema=self.schema.digest,
            initial=self.manifest.digest,
            history=(),
            proposer="a",
            participants=("a", "b"),
        )
        peers = SimpleNamespace(connected=lambda: ("a",), ask=self.ask)
        site = SimpleNamespace(
            me="b",
            clock=lambda: 0.0,
            ledger_s=lambda: 0.0,
            max_model_bytes=10**9,
            peers=peers,
            rules=None,
        )
        return await Merging("aml", site, Store(), lambda: study).fetch(self.manifest.digest)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_model_whose_digest_stands_for_other_chunks_than_it_has_is_not_fetched(count):
    """A member may put the digest of any manifest on the ledger; what it stands for must be all of the bytes."""
    schema = Schema((Tensor("a", "F32", (5 * 1024 * 1024 // 4,)),))
    fetching = Fetching(schema, [leaf(bytes(CHUNK_BYTES))] * count, bytes(CHUNK_BYTES))
    with pytest.raises(SchemaMismatch, match=rf"has {count} chunks; its parameters have 2"):
        await fetching.fetch()
    assert not fetching.asked


async def test_a_first_model_with_a_nan_is_not_taken():
    schema = Schema((Tensor("a", "F32", (2,)),))
    for value in (1.0, float("nan")):
        chunk = struct.pack("<2f", 1.0, value)
        fetching = Fetching(schema, [leaf(chunk)], chunk)
        if value == 1.0:
            with (await fetching.fetch()).memory as memory:
                assert bytes(memory.data[-8:]) == chunk
        else:
            with pytest.raises(NonFinite, match="Tensor 'a'"):
                await fetching.fetch()


async def test_a_first_model_over_the_nodes_limit_is_not_read(monkeypatch):
    schema = Schema((Tensor("a", "F32", (2,)),))
    monkeypatch.setattr(control, "model_of", lambda *_: pytest.fail("it was read"))
    with seal_pieces([schema.header, bytes(8)]) as model, pytest.raises(NodeError, match="max_model_gb"):
        await control._model_in(os.dup(model.fd), 7)


async def test_a_visitor_that_does_not_knock_gives_its_place_up(monkeypatch):
    monkeypatch.setattr(training, "KNOCK_S", 0.01)
    silent = SimpleNamespace(receive=lambda: asyncio.sleep(60))
    with pytest.raises(FrameError, match="must knock first"):
        await Training("b", dict).serve(silent)


def test_a_word_to_a_node_is_no_longer_than_the_longest_header():
    reader = FrameReader(words_to_node, MAX_TO_NODE_BYTES)
    with pytest.raises(FrameError, match=f"not 1 to {MAX_TO_NODE_BYTES}"):
        reader.feed((MAX_TO_NODE_BYTES + 1).to_bytes(4, "big"))


async def test_a_peer_that_does_not_read_what_was_relayed_gets_no_more(swarm, monkeypatch):
    monkeypatch.setattr(service, "RELAYS_AT_ONCE", 2)
    b = swarm.hospitals["b"]
    request = encode(GetChunk("aml", swarm.updates["c"].digest, 0, holder="c", relay=True))
    unread = [await b.service.answer("a", request) for _ in range(2)]
    assert all(reply.body for reply in unread)
    refused = await b.service.answer("a", request)
    assert not refused.body
    assert b"relays 2 answers" in refused.message
    assert (await b.service.answer("d", request)).body  # another peer is not held up by that
    unread.clear()
    assert (await b.service.answer("a", request)).body


def test_a_peers_words_cannot_steer_a_terminal():
    error = raised(Failure("NodeError", "x", "bad\x1b[2J" + "a" * 5000), "c")
    assert isinstance(error, PeerRefused)
    assert "\x1b" not in str(error)
    assert len(str(error)) < 1200
