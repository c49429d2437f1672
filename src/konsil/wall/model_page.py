"""A model's card as a page for people (Markdown)."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator

from konsil.core.model_card import CardRound, ModelCard
from konsil.core.rules import mean_of, score_value

_SHORT = 12

_MARKUP = re.compile(r"[\\`*_\[\]<>|#~&@]|:(?=\S)|(?<=www)\.", re.IGNORECASE)
"""What means something wherever it stands, in CommonMark and in GitHub's form of it, which makes links of
bare addresses, too: https://github.github.com/gfm/."""

_MARKUP_AT_BEGIN = re.compile(r"^(\d{0,9})([-+=.)])")
"""What means something at the beginning of a line: lists, rules, headings."""


def page_of(card: ModelCard, file_name: str) -> str:
    """The page that goes with a model's file."""
    return "\n".join(_lines(card, file_name)) + "\n"


def _lines(card: ModelCard, file_name: str) -> Iterator[str]:
    kind = "final model" if card.final else "model"
    yield f"# {_text(card.study)}: {kind}, round {card.round}"
    yield ""
    if card.settings.description:
        yield _text(card.settings.description)
        yield ""
    yield f"{_text(card.why)}" + (
        "" if card.final else " **Not final:** the study's choice may still change."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| file | `{_code(file_name)}` ({card.data_bytes:,} bytes of parameters) |"
    yield f"| digest | `{card.digest}` |"
    if card.merge != card.digest:
        yield f"| merge of the round | `{card.merge}`, from which the study's outer optimiser made a step |"
    yield f"| swarm (genesis) | `{card.swarm}` |"
    yield f"| study | {_text(card.phase)}{': ' + _text(card.ended) if card.ended else ''} |"
    if card.started_s:
        until = f" to {_when(card.ended_s)}" if card.ended_s else ""
        yield f"| trained | {_when(card.started_s)}{until} |"
    yield f"| settings | `{card.settings_digest}`; merge rule {_text(card.settings.rule)} |"
    yield f"| schema | `{card.schema}` |"
    yield f"| ledger | height {card.height}, state `{card.state}` |"
    yield f"| written by | Konsil {_text(card.software)} |"
    yield ""
    yield "## Who took part"
    yield ""
    yield "| round | merge | took part (examples, share of the merge) | absent |"
    yield "|---|---|---|---|"
    for each in card.rounds:
        yield _round(each, chosen=each.number == card.round)
    for metric in _metrics(card):
        yield ""
        yield f"## Scores: {_text(metric)}"
        yield ""
        yield from _scores(card, metric)
    yield ""
    yield "Each member measured on its own validation data; the mean is over those who took part, weighted as"
    yield "in the merge. Example counts and scores are what the members said."
    yield f"Check the file: `konsil study check {_code(file_name)}`."


def _round(each: CardRound, *, chosen: bool) -> str:
    total = sum(member.weight for member in each.roster.values()) or 1
    roster = ", ".join(
        f"{_text(name)} ({member.examples}, {member.weight / total:.1%})"
        for name, member in sorted(each.roster.items())
    )
    absent = ", ".join(f"{_text(name)} ({_text(why)})" for name, why in sorted(each.absent.items()))
    number = f"**{each.number}**" if chosen else f"{each.number}"
    return f"| {number} | `{_code(each.digest[:_SHORT])}` | {roster} | {absent or 'nobody'} |"


def _metrics(card: ModelCard) -> list[str]:
    scores = [score for each in card.rounds for score in each.scores.values()]
    named = sorted({name for score in scores for name in score.metrics})
    return [*(["loss"] if any(score.loss is not None for score in scores) else []), *named]


def _scores(card: ModelCard, metric: str) -> Iterator[str]:
    members = sorted({name for each in card.rounds for name in (*each.roster, *each.scores)})
    yield f"| round | {' | '.join(_text(name) for name in members)} | mean |"
    yield "|---" * (len(members) + 2) + "|"
    for each in card.rounds:
        values = [
            None if name not in each.scores else score_value(each.scores[name], metric) for name in members
        ]
        weights = {name: member.weight for name, member in each.roster.items()}
        mean = mean_of(each.scores, weights, metric)
        cells = ["-" if value is None else f"{value:.4g}" for value in (*values, mean)]
        yield f"| {each.number} | {' | '.join(cells)} |"


def _when(unix_s: int) -> str:
    return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _code(text: str) -> str:
    """A text to stand between backticks, in a table's cell too."""
    return "".join(character for character in text if character.isprintable() and character not in "`|")


def _text(text: str) -> str:
    """What others wrote, so that it stays text: no control characters, markup, links or table cells."""
    plain = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return _MARKUP_AT_BEGIN.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", plain.strip()))
