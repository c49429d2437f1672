"""The page beside a model: what members wrote stays text, whatever it looks like."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from konsil.core.model_card import CardMember, CardRound, ModelCard
from konsil.core.rules import ScoreRecord, StudySettings
from konsil.wall.model_page import page_of

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])

HOSTILE = [
    "~~~", "~~gone~~", "```", "`code`", "# Title", "- item", "+ item", "* item", "1. item", "12) item", "---",
    "===", "    indented", "> quoted", "<script>alert(1)</script>", "<b>bold</b>", "[link](http://evil.example)",
    "![picture](//evil.example/x.png)", "<http://evil.example>", "a | b", "\\", "\\*", "**bold**", "_low_",
    "&lt;b&gt;", "&#96;", "[x]: http://evil.example", "***", "It has the best AUC, 0.912 (of 3 members): round 2.",
]  # fmt: skip


def page(description="", why="The last one.", member="berlin", file="m.safetensors") -> str:
    settings = StudySettings("aml", every_steps=1, description=description)
    took_part = CardRound(
        1, "c" * 64, 5, {member: CardMember(10, 1)}, {member: why}, {member: ScoreRecord(10, loss=0.5)}
    )
    card = ModelCard(
        study="aml", swarm="a" * 64, round=1, digest="c" * 64, merge="c" * 64, final=True, why=why,
        settings=settings, settings_digest="d" * 64, schema="e" * 64, data_bytes=40, groups=(1,),
        initial="f" * 64, proposer="a", phase="finished", ended=why, started_s=1, ended_s=2, rounds=(took_part,),
        height=1, state="b" * 64, software="1",
    )  # fmt: skip
    return page_of(card, file)


def shape(text: str) -> list[str]:
    """The page's tags as a browser gets them, without what stands between."""
    return re.findall(r"<[^>]*>", GITHUB.render(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_what_looks_like_markup_is_shown_as_it_was_written(text):
    written = page(text, text, text)
    plain = page("word", "word", "word")
    assert shape(written) == shape(plain)
    shown = html.unescape(re.sub(r"<[^>]*>", "", GITHUB.render(written)))
    assert shown.count(text.strip()) >= 5  # description, reason, how it ended, names


@pytest.mark.parametrize(
    "text",
    ["http://evil.example", "see HTTPS://evil.example/x", "ftp://evil.example", "www.evil.example", "WWW.evil.example",
     "mailto:a@evil.example", "xmpp:a@evil.example/b", "a@evil.example"],
)  # fmt: skip
def test_no_bare_address_is_left_for_a_reader_to_be_led_to(text):
    written = page(text, text, text)
    assert not re.search(r"\w://|\bwww\.|(?<!\\):\S*@|[^\\]@|mailto:\w|xmpp:\w", written, re.IGNORECASE)
    assert shape(written) == shape(page("word", "word", "word"))


def test_a_file_name_stays_in_its_cell():
    assert shape(page(file="a|b`c.safetensors")) == shape(page())
