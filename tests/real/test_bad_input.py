"""What one member does wrong, with real processes: a clear error for it, and nothing for the others."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import ssl
import struct
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from konsil.core.messages import PROTOCOL_VERSION, Failure, Hello, LedgerSubmit, decode_answer, encode
from konsil.core.rules import Agree, Commit, StudySettings, decode_signed
from konsil.errors import Refused
from konsil.identity.authority import Authority
from konsil.identity.tls import client_context
from konsil.node.config import read_config, write_config
from konsil.node.tables import IdentityTable

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

MEMBERS = ("berlin", "bonn", "koeln")


class Own:
    """A member's identity in the hands of a program that is not its node."""

    def __init__(self, directory: Path) -> None:
        self.config = read_config(directory)
        self.svid = Authority.load(self.config.keys_dir).issue()


class Raw:
    """A connection of a member to a node's port that says what the test wants it to say."""

    def __init__(self, own: Own, to: Path) -> None:
        there = read_config(to)
        host, port = there.node.listen.split(":")
        plain = socket.create_connection((host, int(port)), 10)
        plain.settimeout(10)
        bundle = Authority.load(there.keys_dir).bundle
        self.own = own
        self.line = client_context(own, bundle).wrap_socket(plain, server_hostname=None)

    def say(self, kind: int, message: bytes, *, request: int = 0, length: int | None = None) -> None:
        length = len(message) if length is None else length
        self.line.sendall(struct.pack("!BBBBIIQ", 0x4B, kind, 0, 0, request, length, 0) + message)

    def hello(self, genesis: str) -> None:
        self.say(1, encode(Hello(PROTOCOL_VERSION, genesis, self.own.config.name, "by hand")))

    def ask(self, message: bytes, request: int) -> object:
        """The answer to a request, whatever else the node says meanwhile."""
        self.say(2, message, request=request)
        while True:
            _, kind, _, _, number, length, _ = struct.unpack("!BBBBIIQ", self.exactly(20))
            words = self.exactly(length)
            if (kind, number) == (3, request):
                return decode_answer(words)

    def exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self.line.recv(count - len(got))
            assert more, "the node hung up"
            got += more
        return got

    def ended_by_the_node(self) -> bool:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.line.recv(4096):
                pass
        self.line.close()
        return True


def test_what_one_member_does_wrong_gets_a_clear_error_and_stops_nobody(site):
    swarm = site.swarm(*MEMBERS, "lyon", "oslo")
    for name in swarm.members:
        config = read_config(swarm.directory(name))
        write_config(replace(config, identity=IdentityTable(svid_ttl_s=10)))
    swarm.start()
    expires_s = {name: swarm.control(name).node().svid_expires_s for name in MEMBERS}
    swarm.propose(
        StudySettings(
            name="aml",
            members=(*MEMBERS, "lyon"),
            min_members=3,
            quorum=2,
            rounds=45,
            every_steps=1,
            weighting="equal",
            silence_s=30,
            merge_s=10,
        )
    )
    trainers = [
        site.train(swarm, "aml", name, number, "--pause", "0.3")
        for number, name in enumerate(MEMBERS, start=1)
    ]
    trainers[0].until("merged", 1)

    a_member_that_is_not_invited_is_told_so(site, swarm)
    a_second_script_is_told_that_the_first_goes_on(site, swarm)
    another_schema_is_refused_by_the_names_of_its_tensors(site, swarm)
    a_nan_is_refused_by_its_tensors_name(site, swarm)
    a_commit_is_fixed_with_the_roster(swarm)
    broken_words_end_their_own_connection_only(swarm)
    own = stopped(swarm, "lyon")
    broken_frames_end_their_own_connection_only(swarm, own)
    a_replayed_call_is_refused(swarm, own)

    ends = [trainer.end()[-1] for trainer in trainers]
    assert [end["event"] for end in ends] == ["ended"] * 3
    assert len({end["digest"] for end in ends}) == 1
    history = swarm.control("bonn").state().studies["aml"].history
    assert len(history) == 45
    assert all(set(MEMBERS) <= set(record.roster) for record in history)
    for name in MEMBERS:  # every certificate was renewed at least twice meanwhile
        assert swarm.control(name).node().svid_expires_s > expires_s[name] + 10
        assert "Traceback" not in (swarm.directory(name) / "node.log").read_text()
        until_s = time.monotonic() + 20
        while not set(MEMBERS) - {name} <= connected(swarm, name):
            assert time.monotonic() < until_s  # a connection may just be made anew with a new certificate
            time.sleep(0.1)


def connected(swarm, name) -> set[str]:
    return {peer.member for peer in swarm.control(name).node().peers if peer.connected}


def a_member_that_is_not_invited_is_told_so(site, swarm) -> None:
    end = site.train(swarm, "aml", "oslo", 5).end()[-1]
    assert end["kind"] == "StudyError"
    assert "oslo has not agreed to study 'aml'" in end["what"]
    agreed = swarm.control("oslo").state().studies["aml"].settings_digest
    with pytest.raises(Refused, match="'oslo' is not among them"):
        swarm.control("oslo").call(Agree("aml", agreed))


def a_second_script_is_told_that_the_first_goes_on(site, swarm) -> None:
    end = site.train(swarm, "aml", "bonn", 2).end()[-1]
    assert end["kind"] == "NodeBusy"
    assert "It goes on undisturbed" in end["what"]


def another_schema_is_refused_by_the_names_of_its_tensors(site, swarm) -> None:
    end = site.train(swarm, "aml", "lyon", 4, "--elements", "999").end()[-1]
    assert end["kind"] == "SchemaMismatch"
    assert "'weights' has shape (999,) instead of (1000,)" in end["what"]
    assert "the others go on" in end["what"]


def a_nan_is_refused_by_its_tensors_name(site, swarm) -> None:
    end = site.train(swarm, "aml", "lyon", float("nan")).end()[-1]
    assert end["kind"] == "NonFinite"
    assert "Tensor 'bias'" in end["what"]
    assert "learning rate" in end["what"]


def a_commit_is_fixed_with_the_roster(swarm) -> None:
    """The node of 'lyon' commits what nobody can get, then something else, and again something else."""
    control = swarm.control("lyon")
    for _ in range(200):
        problem = commits_three(control)
        if problem is not None and problem.code == "second_commit":
            assert "has committed another update" in problem.what
            assert problem.do.startswith("The first one stands")
            return
    raise AssertionError("no round was open long enough")


def commits_three(control) -> Refused | None:
    """Why one of three updates was refused: the round may be over, or merge without 'lyon'; None if none was."""
    study = control.state().studies["aml"]
    first = Commit("aml", study.open.number, study.accepted, "1" * 64, 1)
    try:
        control.call(first)
        control.call(replace(first, digest="2" * 64))
        if is_on_the_roster(control, first.round, "2" * 64):
            control.call(replace(first, digest="3" * 64))
            raise AssertionError("the roster's update became another one")
    except Refused as refused:
        return refused
    return None


def is_on_the_roster(control, number, update) -> bool:
    """Once the round merges or is over, whether it merges this update of 'lyon'."""
    until_s = time.monotonic() + 20
    while True:
        current = control.state().studies["aml"].open
        if current.number != number or current.attempt > 1:
            return False
        if current.roster:
            return "lyon" in current.roster and current.commits["lyon"].digest == update
        assert time.monotonic() < until_s
        time.sleep(0.02)


def broken_words_end_their_own_connection_only(swarm) -> None:
    for name in ("control.sock", "session.sock"):
        for words in (
            b"\0\0\0\x64short",
            b"\xff\xff\xff\xffhuge",
            b"\0\0\0\x04\xc1\xc1\xc1\xc1",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(10)
                line.connect(str(swarm.directory("berlin") / name))
                line.sendall(words)
                line.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionError):
                    while line.recv(4096):
                        pass
    assert swarm.control("berlin").node().member == "berlin"


def stopped(swarm, name: str) -> Own:
    assert swarm.stop(name) == 0
    return Own(swarm.directory(name))


def broken_frames_end_their_own_connection_only(swarm, own: Own) -> None:
    berlin = swarm.directory("berlin")
    before = Raw(own, berlin)
    before.say(2, b"no hello came before", request=1)
    assert before.ended_by_the_node()

    oversized = Raw(own, berlin)
    oversized.hello(swarm.control("berlin").node().genesis)
    oversized.say(2, b"x", request=1, length=0xFFFF_FFFF)
    assert oversized.ended_by_the_node()

    truncated = Raw(own, berlin)
    truncated.hello(swarm.control("berlin").node().genesis)
    truncated.say(2, b"only this much", request=1, length=1000)
    truncated.line.close()

    assert swarm.control("berlin").node().member == "berlin"


def a_replayed_call_is_refused(swarm, own: Own) -> None:
    with sqlite3.connect(own.config.ledger_file) as history:
        calls = [signed for (signed,) in history.execute("SELECT signed FROM entries ORDER BY height")]
    history.close()
    by = {decode_signed(signed).caller: signed for signed in calls}
    line = Raw(own, swarm.directory("berlin"))
    line.hello(swarm.control("berlin").node().genesis)
    for number, caller in enumerate(("lyon", "bonn"), start=1):
        answer = line.ask(encode(LedgerSubmit(by[caller])), request=number)
        assert isinstance(answer, Failure)
        assert answer.code == "replayed"
        assert "was taken before" in answer.what
    line.line.close()


def test_another_model_that_came_before_the_study_had_one_is_turned_away_and_not_counted(site):
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(StudySettings(name="aml", min_members=3, rounds=2, every_steps=1))
    proposer, other, right = MEMBERS
    wrong = site.train(swarm, "aml", other, 1.0, "--elements", "9")
    good = site.train(swarm, "aml", right, 1.0)
    until_s = time.monotonic() + 30
    while any("training joined" not in swarm.log_tail(name, 200) for name in (other, right)):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    first = site.train(swarm, "aml", proposer, 1.0)
    (said,) = wrong.end()
    assert (said["event"], said["kind"]) == ("failed", "SchemaMismatch")
    assert "weights" in said["what"]
    state = swarm.control(proposer).state()
    assert state.studies["aml"].phase == "proposed", "it waits for three that have its model"
    assert not state.studies["aml"].participants[other].present
    corrected = site.train(swarm, "aml", other, 1.0)
    assert all(script.end()[-1]["event"] == "ended" for script in (first, good, corrected))
    history = swarm.control(proposer).state().studies["aml"].history
    assert [set(record.roster) for record in history] == [set(MEMBERS)] * 2
