"""What a node answers to its peers, and what a peer's failure becomes at the one who asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from konsil.core.digest import Manifest
from konsil.core.messages import (
    Accepted,
    Bytes,
    Done,
    Failure,
    GetCard,
    GetChunk,
    GetManifest,
    GetStatus,
    Heartbeat,
    Hello,
    LedgerFollow,
    LedgerSubmit,
    Status,
    decode_answer,
)
from konsil.errors import LedgerError, PeerRefused, Refused, StudyError
from konsil.node.peers import failure_reply, raised
from konsil.node.service import join_entries, split_entries
from konsil.node.store import Store


async def ask(swarm, request, *, of="b", by="a", **options):
    return await swarm.hospitals[by].peers.ask(of, request, timeout_s=1.0, **options)


class Operator:
    """A ledger's keeper that takes everything but one call."""

    async def accept(self, signed):
        if signed == b"bad":
            raise Refused("second_commit", "No.", do="Train on.", wait_s=3, digest="1" * 64)
        if signed == b"full":
            raise LedgerError("The disk is full.", safe="Nothing was promised.", do="Free it.")
        return 17

    async def follow(self, after, _wait_s):
        return [b"one", b"", b"three"][after:]


async def test_models_are_served_by_digest_and_what_is_not_here_is_said_to_be_elsewhere(swarm):
    update = swarm.updates["b"]
    answer, received = await ask(swarm, GetManifest("aml", update.digest), limit_bytes=1 << 20)
    assert answer == Bytes()
    assert Manifest.decode(received.body).digest == update.digest
    _, received = await ask(swarm, GetChunk("aml", update.digest, 2), limit_bytes=1 << 22)
    assert received.body == bytes(update.chunk(2))
    for request in (
        GetManifest("aml", "3" * 64),
        GetChunk("aml", update.digest, 3),
        GetChunk("aml", update.digest, -1),
    ):
        with pytest.raises(PeerRefused, match="b answered: b does not have") as caught:
            await ask(swarm, request)
        assert caught.value.code == "not_here"


async def test_a_study_serves_what_it_holds_itself_and_nothing_of_another(swarm):
    update, hospital = swarm.updates["b"], swarm.hospitals["b"]
    holds = next(iter(hospital.service._runners().values()))
    other = SimpleNamespace(may_read=holds.may_read, store=Store(), shelf=hospital)
    hospital.service._runners = lambda: {"other": other, "aml": holds}
    _, received = await ask(swarm, GetManifest("aml", update.digest), limit_bytes=1 << 20)
    assert Manifest.decode(received.body).digest == update.digest
    for study in ("other", "none"):
        for request in (GetManifest(study, update.digest), GetChunk(study, update.digest, 0)):
            with pytest.raises(PeerRefused, match="b does not have"):
                await ask(swarm, request, limit_bytes=1 << 22)


async def test_what_is_not_here_is_relayed_only_when_asked_and_only_from_the_holder(swarm):
    update = swarm.updates["c"]
    with pytest.raises(PeerRefused):
        await ask(swarm, GetChunk("aml", update.digest, 0, holder="c"))
    _, received = await ask(
        swarm, GetChunk("aml", update.digest, 0, holder="c", relay=True), limit_bytes=1 << 22
    )
    assert received.body == bytes(update.chunk(0))
    assert swarm.hospitals["d"].asked == []
    assert [request.study for _, request in swarm.hospitals["c"].asked] == ["aml"]
    with pytest.raises(PeerRefused, match="does not reach nobody either"):
        await ask(swarm, GetChunk("aml", update.digest, 0, holder="nobody", relay=True))


async def test_cards_are_served_by_digest(swarm):
    swarm.hospitals["b"].cards["4" * 64] = b"a card"
    _, received = await ask(swarm, GetCard("4" * 64), limit_bytes=100)
    assert received.body == b"a card"
    with pytest.raises(PeerRefused, match="does not have that card"):
        await ask(swarm, GetCard("5" * 64), limit_bytes=100)


async def test_a_heartbeat_is_heard_and_one_of_an_unknown_study_harms_nobody(swarm):
    beat = Heartbeat("aml", 1, "training", 0.5)
    assert (await ask(swarm, beat))[0] == Done()
    assert swarm.hospitals["b"].beats == [("a", beat)]
    assert (await ask(swarm, Heartbeat("other", 1, "training", 0.5)))[0] == Done()


async def test_only_the_operator_keeps_the_ledger(swarm):
    for request in (LedgerSubmit(b"call"), LedgerFollow(0, 0.0)):
        with pytest.raises(PeerRefused, match="b does not keep the ledger"):
            await ask(swarm, request)


async def test_calls_and_entries_go_through_and_a_refusal_comes_back_as_it_is(swarm):
    swarm.hospitals["b"].service.operator = Operator()
    assert (await ask(swarm, LedgerSubmit(b"call")))[0] == Accepted(17)
    _, received = await ask(swarm, LedgerFollow(0, 0.0), limit_bytes=100)
    assert split_entries(received.body) == [b"one", b"", b"three"]
    with pytest.raises(Refused, match=r"^No\. Nothing on the ledger was changed\. Train on\.$") as caught:
        await ask(swarm, LedgerSubmit(b"bad"))
    assert (caught.value.code, caught.value.fields["wait_s"]) == ("second_commit", 3)
    with pytest.raises(PeerRefused, match="b answered: The disk is full"):
        await ask(swarm, LedgerSubmit(b"full"))


async def test_a_node_tells_its_version_clock_and_whom_it_reaches(swarm):
    swarm.network.cut("b", "d")
    status, _ = await ask(swarm, GetStatus())
    assert isinstance(status, Status)
    assert (status.member, status.height, status.reachable) == ("b", 0, ("a", "c"))


async def test_what_is_no_request_is_answered_with_an_error_and_not_with_silence(swarm):
    for message in (b"", b"\xc1nonsense", b"\x81\xa3say\xa4none"):
        reply = await swarm.hospitals["b"].service.answer("a", message)
        failure = decode_answer(reply.message)
        assert isinstance(failure, Failure)
        assert failure.kind == "FrameError"
    with pytest.raises(PeerRefused, match="Hello is not asked here"):
        await ask(swarm, Hello(1, "swarm", "a", "1"))


# --- Gram matrices -------------------------------------------------------------------------------


class Ledger:
    """A ledger that moves when it is told to."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(height=5)
        self.moved = asyncio.Event()

    async def changed(self, _after, _timeout_s):
        await self.moved.wait()
        return 6


async def test_who_is_behind_on_the_ledger_answers_once_it_has_caught_up(swarm):
    b = swarm.hospitals["b"]
    b.service.ledger = ledger = Ledger()
    digest = swarm.updates["b"].digest
    b.hidden.add(digest)
    asking = asyncio.create_task(ask(swarm, GetManifest("aml", digest), limit_bytes=10_000))
    await asyncio.sleep(0.02)
    assert not asking.done()
    b.hidden.clear()
    ledger.moved.set()
    _, received = await asking
    assert received.body


async def test_what_a_peer_may_not_read_is_not_there_for_it(swarm):
    digest = swarm.updates["b"].digest
    swarm.hospitals["b"].hidden.add(digest)
    with pytest.raises(PeerRefused, match="not for this peer"):
        await ask(swarm, GetChunk("aml", digest, 0), limit_bytes=10_000)
    with pytest.raises(PeerRefused, match="not for this peer"):
        await ask(swarm, GetChunk("aml", digest, 0, holder="c", relay=True), limit_bytes=10_000)


# --- errors and entries --------------------------------------------------------------------------


def test_any_error_becomes_a_reply_with_its_sentences_and_plain_facts():
    error = StudyError("It happened.", safe="All is well.", do="Wait.", round=3, names=("a", "b"))
    failure = decode_answer(failure_reply(error).message)
    assert (failure.kind, failure.what, failure.safe, failure.do) == (
        "StudyError",
        "It happened.",
        "All is well.",
        "Wait.",
    )
    assert failure.fields == {"round": 3}


def test_a_peers_facts_cannot_take_the_place_of_its_sentences():
    fields = {"what": "x", "safe": 1, "do": 2, "code": 3, "self": 4, "wait_s": 5}
    error = raised(Failure("Refused", "too_early", "Wait.", fields=fields), "b")
    assert isinstance(error, Refused)
    assert (error.code, error.what, error.fields) == ("too_early", "Wait.", {"wait_s": 5})


def test_entries_that_break_off_are_refused():
    data = join_entries([b"one", b"two"])
    assert split_entries(data) == [b"one", b"two"]
    for cut in (1, 3, 5, len(data) - 1):
        with pytest.raises(PeerRefused, match="break off"):
            split_entries(data[:cut])
