"""What a peer's words are worth: only the contract refuses, and a heartbeat is a few plain words."""

from __future__ import annotations

import math

import pytest

from konsil.core.messages import (
    Failure,
    GetChunk,
    GetManifest,
    Heartbeat,
    LedgerSubmit,
    decode_request,
    encode,
)
from konsil.errors import FrameError, PeerRefused, Refused, TransportError
from konsil.node.peers import MAX_WAIT_S, Peers, raised
from konsil.transport.base import Received


class _Liar:
    """A transport at whose other end every request gets the same failure."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure

    async def request(self, _peer: str, _message: bytes, **_limits: object) -> Received:
        return Received(encode(self.failure), b"", 0)


def _refusal(**fields: object) -> Failure:
    return Failure("Refused", "too_early", "Not yet.", fields=fields)


@pytest.mark.parametrize("request_", [GetChunk("aml", "d", 0), GetManifest("aml", "d")])
async def test_a_peer_that_refuses_its_update_in_the_contracts_name_does_not_answer(request_):
    with pytest.raises(PeerRefused) as caught:
        await Peers(_Liar(_refusal(wait_s=1e9))).ask("liar", request_, timeout_s=1.0)
    assert isinstance(caught.value, TransportError)  # what the puller counts as a failed holder


async def test_the_contracts_refusal_of_a_call_stays_a_refusal():
    with pytest.raises(Refused) as caught:
        await Peers(_Liar(_refusal(wait_s=3, deadline_s=7))).ask(
            "operator", LedgerSubmit(b"call"), timeout_s=1.0
        )
    assert (caught.value.code, caught.value.fields) == ("too_early", {"wait_s": 3, "deadline_s": 7})


@pytest.mark.parametrize("wait_s", [math.nan, math.inf, -1, MAX_WAIT_S + 1, "soon"])
def test_a_refusal_cannot_put_the_next_attempt_off_for_ever(wait_s):
    assert raised(_refusal(wait_s=wait_s), "operator").fields == {}


@pytest.mark.parametrize(
    ("stage", "progress"),
    [("\x1b[2J", 0.5), ("line\nbreak", 0.5), ("x" * 41, 0.5), ("training", math.nan), ("training", 1.5)],
)
def test_a_heartbeat_that_could_upset_a_terminal_is_refused(stage, progress):
    with pytest.raises(FrameError):
        decode_request(encode(Heartbeat("aml", 1, stage, progress)))


def test_a_heartbeat_says_what_every_node_says():
    beat = Heartbeat("aml", 1, "waiting to start", 0.5)
    assert decode_request(encode(beat)) == beat


def test_a_peer_that_gives_no_reason_is_shown_to_give_none():
    assert raised(Failure("NodeError", "", ""), "lyon").what == "lyon answered: No reason was given."
    assert raised(Failure("Refused", "", ""), "lyon").what == "No reason was given."
