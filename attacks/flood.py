"""Come again and again: strangers, a member's own connections, requests and cancellations by the thousand."""

from __future__ import annotations

import contextlib
import ssl
import struct
import time

from stage import ASLEEP, CANCEL, OPERATOR, PING, REQUEST, Own, Stage, alone, took

from konsil.core.messages import GetChunk, GetStatus, LedgerFollow, LedgerSubmit, Status, encode
from konsil.core.rules import Announce, Initialise, ProposeStudy, StudySettings
from konsil.node.service import RELAYS_AT_ONCE
from konsil.transport.timings import MAX_IN_FLIGHT

STRANGERS, TWINS = 300, 40
MOST_BYTES = 32 * 1024 * 1024
LONG, UNREAD, MOST_UNREAD_BYTES = 800, 250, 128 * 1024 * 1024


def attack(stage: Stage) -> None:
    """What one visitor can take is bounded, whatever it sends."""
    held = stage.descriptors(OPERATOR)
    _strangers(stage)
    _twins(stage)
    _relays(stage)
    _unread(stage)
    stage.settles(OPERATOR, held + 10)
    _requests(stage)
    stage.settles(OPERATOR, held + 10)


def _strangers(stage: Stage) -> None:
    began_s = time.monotonic()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for number in range(STRANGERS):
        with contextlib.suppress(OSError), stage.dial(OPERATOR) as plain:
            if number % 3 == 0:
                context.wrap_socket(plain, server_hostname="x").close()
            elif number % 3 == 1:
                plain.sendall(b"\x16\x03\x01" + bytes(500))
    stage.says(f"{STRANGERS} strangers, one after the other: {time.monotonic() - began_s:.1f} s")


def _twins(stage: Stage) -> None:
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(stage.raw()) for _ in range(TWINS)]
        for number, line in enumerate(lines):
            with contextlib.suppress(OSError):
                line.greet(instance=f"run {number % 3}")
        stage.serves_others()
        links = [link for link in stage.control(OPERATOR).node().peers if link.member == stage.own.name]
        stage.must(len(links) == 1, "one member has many links")
    stage.says(f"{TWINS} connections of one member at once, as three runs of its node: one link")


def _relays(stage: Stage) -> None:
    """The attacker asks a member to fetch from the attacker, and never answers: each takes room there."""
    study, digest = StudySettings(name="relays", every_steps=1), "5" * 64
    with stage.member() as line:
        stage.must(took(stage.submit(line, ProposeStudy(study))), "a study was not taken")
        stage.must(
            took(stage.submit(line, Initialise("relays", "4" * 64, digest, 1 << 40))), "no first model"
        )
        ask = GetChunk("relays", digest, 0, holder=stage.own.name, relay=True)
        answers = line.first(RELAYS_AT_ONCE + 4, ask, 4)
        stage.must(
            {stage.refused(answer).code for answer in answers} == {"busy"}, f"it relays more: {answers}"
        )
        stage.must(isinstance(line.ask(GetStatus()), Status), "it answers nothing else meanwhile")
    stage.says(
        f"{RELAYS_AT_ONCE + 4} answers to be relayed that never come: {RELAYS_AT_ONCE} wait, then busy"
    )


def _unread(stage: Stage) -> None:
    """The whole history, 250 times, and nobody reads it: what is made for each answer takes memory."""
    asleep = Own(stage.swarm.directory(ASLEEP))
    addresses = tuple(f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 60}.example:{port}" for port in range(1, 9))
    last = stage.state().members[ASLEEP].sequence
    calls = [stage.signed(Announce(addresses), own=asleep, sequence=last + n) for n in range(1, LONG + 1)]
    with stage.member() as line:
        for at in range(0, LONG, 100):
            answers = line.ask_all([LedgerSubmit(signed) for signed in calls[at : at + 100]])
            stage.must(all(map(took, answers)), f"honest calls were not taken: {answers[-1]}")
        before = stage.memory_bytes(OPERATOR)
        for number in range(1, UNREAD + 1):
            line.frame(REQUEST, encode(LedgerFollow(0, 0.0)), request=number + 10_000)
        stage.serves_others(attacker_runs=True)
        grown = stage.memory_bytes(OPERATOR) - before
        stage.must(grown < MOST_UNREAD_BYTES, f"answers that nobody reads took {grown >> 20} MiB")
    stage.says(
        f"{UNREAD} times a history of {sum(map(len, calls)) >> 20} MiB, unread: grown by {grown >> 20} MiB"
    )


def _requests(stage: Stage) -> None:
    pings = struct.pack("!BBBBIIQ", 0x4B, PING, 0, 0, 1, 0, 0) * 1000
    with stage.member() as line:
        for number in range(1, MAX_IN_FLIGHT + 2):
            line.frame(REQUEST, encode(LedgerFollow(stage.state().height, 60.0)), request=number)
        stage.must(line.is_ended(), "more requests were open than allowed")
    stage.says(f"{MAX_IN_FLIGHT + 1} requests that wait, on one connection: hung up")
    with stage.member() as line:
        for number in range(1, 3000):
            line.frame(REQUEST, encode(LedgerFollow(10**6, 60.0)), request=number)
            line.frame(CANCEL, request=number)
        stage.must(isinstance(line.ask(GetStatus()), Status), "requests that were cancelled took the place")
    stage.says("3000 requests, each cancelled at once: the next is answered")
    before = stage.memory_bytes(OPERATOR)
    with stage.member() as line:
        line.line.settimeout(10)
        with contextlib.suppress(OSError):
            while True:  # nobody reads the answers
                line.line.sendall(pings)
        stage.must(stage.memory_bytes(OPERATOR) - before < MOST_BYTES, "answers pile up in the node's memory")
    stage.says("pings without an end, whose answers nobody reads: hung up")


if __name__ == "__main__":
    alone(attack)
