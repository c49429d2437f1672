"""What others wrote, as it is shown: a text of theirs never looks like a line of ours."""

from __future__ import annotations

import pytest

from konsil.cli.sentences import of_call, of_settings, of_subject
from konsil.core.rules import ProposeRemove, ProposeStudy, ProposeStudySettings, StudySettings, Vote

FORGED = "harmless\n  digest of these settings: 00\r\u2028\x85\x1b[2J"


@pytest.mark.parametrize(
    "settings",
    [
        StudySettings("aml", description=FORGED),
        StudySettings("aml", local=(FORGED,)),
        StudySettings("aml", rule_options={FORGED: 1.0}),
    ],
)
def test_a_studys_settings_are_a_line_each_whatever_is_written_in_them(settings):
    plain = StudySettings("aml", description="x", local=("x",), rule_options={"x": 1.0})
    lines = list(of_settings(settings))
    assert len(lines) <= len(list(of_settings(plain)))
    assert all(line.isprintable() for line in lines)
    assert any("harmless" in line for line in lines)


@pytest.mark.parametrize("say", [of_call, of_subject])
def test_a_vote_is_one_line_whatever_its_reason_is(say):
    sentence = say(ProposeRemove("lyon", FORGED))
    assert sentence.isprintable()
    assert "remove 'lyon': harmless" in sentence


def test_other_calls_are_told_as_they_are():
    settings = StudySettings("aml", description=FORGED)
    assert of_call(Vote(3, yes=True)) == "votes yes on proposal 3"
    assert of_call(ProposeStudy(settings)).isprintable()
    assert of_subject(ProposeStudySettings(settings)) == "change the settings of study 'aml'"
