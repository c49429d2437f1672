"""The history in sentences: what is asked for, and what is said where there is no such thing."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys

import pytest

from konsil.cli.common import utc, when
from konsil.cli.ledger_filter import KINDS, Seen, Wanted, moment
from konsil.core.rules import (
    HANDLERS,
    Agree,
    Commit,
    Enter,
    Initialise,
    MemberRecord,
    ProposeAdmit,
    ProposeRemove,
    ProposeStudy,
    StudySettings,
    Vote,
    settings_digest,
)
from konsil.errors import ConfigError

SETTINGS = StudySettings("heart", min_members=2, every_steps=10)


@pytest.fixture
def told(site):
    """Eight calls: a study, two commits in its first round, a vote."""
    site.found()
    with site.node() as node:
        node.submit(ProposeStudy(SETTINGS), Initialise("heart", "a" * 64, "b" * 64, 5000), Enter("heart"))
        node.submit_as("nice", Agree("heart", settings_digest(SETTINGS)), Enter("heart"))
        node.submit(Commit("heart", 1, "b" * 64, "c" * 64, 120))
        node.submit(ProposeRemove("lille", "it left"))
        node.submit_as("nice", Vote(1, yes=False))
    return site


def heights(site, *words: str) -> list[int]:
    return [fact["height"] for fact in facts(site, *words)]


def facts(site, *words: str) -> list[dict[str, object]]:
    lines = site.run("ledger", "show", *words, "--json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_each_call_is_one_json_object_on_one_line_with_whole_digests(told):
    (commit,) = facts(told, "--call", "commit")
    assert list(commit) == [
        "height",
        "time_s",
        "time",
        "caller",
        "sequence",
        "call",
        "sentence",
        "digest",
        "state",
    ]
    assert commit["call"] == {
        "call": "commit", "study": "heart", "round": 1, "base": "b" * 64, "digest": "c" * 64, "examples": 120, "start": "",
    }  # fmt: skip
    assert commit["sentence"] == "lyon commits its update cccccccccccc (120 examples) for round 1 of 'heart'"
    assert commit["time"].endswith("Z")
    heads = facts(told)
    assert told.json("ledger", "verify")["head"] == heads[-1]["digest"]
    assert len({fact["digest"] for fact in heads}) == 8


def test_calls_are_chosen_by_study_round_member_and_kind(told):
    assert heights(told) == list(range(1, 9))
    assert heights(told, "heart") == [1, 2, 3, 4, 5, 6]
    assert heights(told, "heart", "1") == [6]
    assert heights(told, "--member", "nice") == [4, 5, 8]
    assert heights(told, "--member", "nice", "--member", "lille", "--call", "vote", "--call", "commit") == [8]
    assert heights(told, "heart", "--call", "enter", "--last", "1") == [5]
    assert heights(told, "--last", "100") == list(range(1, 9))


def test_calls_are_chosen_by_their_times(told):
    time_s = facts(told)[3]["time_s"]
    at = when(time_s)
    before, after = when(time_s - 100), when(time_s + 100)
    assert heights(told, "--since", before, "--until", after) == list(range(1, 9))
    assert 4 in heights(told, "--since", at, "--until", at)
    assert heights(told, "--since", after) == heights(told, "--until", before) == []
    assert heights(told, "--until", at[:10], "--since", at[:10]) != []
    assert (
        told.run("ledger", "show", "--since", after).stdout == "None of the ledger's 8 calls is such a one.\n"
    )


@pytest.mark.parametrize(
    ("text", "end", "seconds"),
    [
        ("2026-11-21T12:48:30+01:00", False, 0),
        ("2026-11-21T12:48:30+01:00", True, 1),
        ("2026-11-21T11:48:30Z", False, 0),
        ("2026-11-21T11:48Z", False, -30),
    ],
)
def test_a_moment_with_its_offset_is_the_same_everywhere(text, end, seconds):
    assert moment(text, "--since", end=end) == 1_795_261_710 + seconds


def test_a_day_lasts_until_the_next_one_begins():
    day, next_day = (moment(f"2026-11-{number}", "--since") for number in (21, 22))
    assert moment("2026-11-21", "--until", end=True) == next_day == day + 86400


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-3", "2026-13-01", "21.11.2026", "0001-01-01", "9999-12-31"]
)
def test_what_is_no_date_is_refused_with_how_to_write_one(text):
    try:
        moment(text, "--since", end=True)
    except ConfigError as error:
        assert "2026-11-21" in error.do  # noqa: PT017 - some of these are dates on some machines
    else:
        assert text.startswith(("0001", "9999"))


@pytest.mark.parametrize(
    ("words", "what", "there_is"),
    [
        (("lung",), "There is no study 'lung'", "Studies: heart."),
        (("heart", "2"), "nothing of a round 2 of 'heart'", "Its rounds so far: 1 to 1."),
        (("--member", "paris"), "No member 'paris'", "Members: lille, lyon, nice."),
        (("--since", "soon"), "--since 'soon' is no date", "2026-11-21"),
        (("--until", "soon"), "--until 'soon' is no date", "2026-11-21"),
        (("heart", "--member", "paris", "--last", "1"), "No member 'paris'", "Members: lille, lyon, nice."),
    ],
)  # fmt: skip
def test_a_filter_for_what_there_is_not_says_what_there_is(told, words, what, there_is):
    said = told.run("ledger", "show", *words, expect=1).stderr
    assert what in said
    assert there_is in said


def test_whoever_was_proposed_is_known_by_name():
    record = MemberRecord("rennes", "spiffe://rennes.example/node", "1" * 64, "2" * 64, "3" * 64)
    seen, wanted = Seen(), Wanted(members=frozenset({"rennes"}))
    with pytest.raises(ConfigError, match="rennes"):
        seen.require(wanted)
    seen.note(ProposeAdmit(record))
    seen.require(wanted)


def test_a_kind_of_call_that_there_is_not_is_answered_with_all_that_there_are(told):
    assert len(KINDS) == len(HANDLERS)
    said = told.run("ledger", "show", "--call", "comit", expect=2).stderr
    assert "'commit'" in said
    assert "'vote'" in said


def test_a_vote_says_what_it_is_about(told):
    text = told.run("ledger", "show", "--call", "vote").stdout
    assert text.rstrip().endswith("nice votes no on proposal 1, to remove 'lille'")


def test_what_a_studys_rounds_came_to_follows_only_where_nothing_was_left_out(told):
    assert "Study 'heart' is running" in told.run("ledger", "show", "heart").stdout
    assert "Study 'heart' is" not in told.run("ledger", "show", "heart", "--last", "3").stdout
    assert "Study 'heart' is" not in told.run("ledger", "show", "heart", "--member", "nice").stdout


def _piped(told, *words: str, **options):
    environment = os.environ | {"KONSIL_DIR": str(told.root / "lyon"), "TERM": "dumb"}
    command = [sys.executable, "-m", "konsil", "ledger", "show", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_whoever_reads_only_the_beginning_sees_no_fault_of_the_program(told, more):
    process = _piped(told, *more)
    process.stdout.close()  # as `head` does, at the latest after its last line
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) in (0, 1)


def test_in_a_terminal_a_long_sentence_goes_on_under_its_beginning(told):
    ours, theirs = pty.openpty()
    environment = os.environ | {"KONSIL_DIR": str(told.root / "lyon"), "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, "-m", "konsil", "ledger", "show", "--call", "commit"]
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # how the other end's closing shows
            while data := os.read(ours, 4096):
                text += data
        assert process.wait(30) == 0
    os.close(ours)
    first, *rest = text.decode().splitlines()
    assert first.split(maxsplit=3)[3].startswith("lyon commits its update cccccccccccc")
    assert rest == [" " * 29 + "for round 1 of 'heart'"]


def test_a_time_that_no_calendar_has_is_shown_too():
    assert when(2**60) == f"{2**60} s after 1970"
    assert utc(2**60) == ""
