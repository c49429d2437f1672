"""What a person sees of a study: on a terminal, in a notebook, in a log."""

from __future__ import annotations

import io
import sys

import pytest

from konsil.core.rules.state import Commitment, RoundRecord, ScoreRecord
from konsil.core.wall import Scored
from konsil.session.accepted import AcceptedRound
from konsil.session.display import (
    LINES_KEPT,
    Log,
    Notebook,
    Nothing,
    Terminal,
    accepted_words,
    beside_a_bar,
    display_for,
    training_words,
)


def accepted(number, absent=(), scores=None):
    roster = {name: Commitment("", 10, 0) for name in ("koeln", "lyon", "nantes", "oslo")}
    weights = dict.fromkeys(roster, 10) | {"lyon": 30}
    record = RoundRecord(
        number, 1, "", "d", roster, weights, (), dict(absent), 100, 105, 112, scores=scores or {}
    )
    return AcceptedRound.of(record)


def test_a_finished_round_is_one_line():
    before = accepted(2, scores={"lyon": ScoreRecord(10, 0.3), "oslo": ScoreRecord(30, 0.4)})
    last = accepted(3, [("bonn", "silent")])
    assert accepted_words(last, 10, Scored(3, 10, 0.31, {"auc": 0.9}), before) == (
        "round 3 of 10: 4 of 5 hospitals (bonn: silent), loss 0.31, auc 0.9, mean loss of round 2 0.325, 12 s"
    )
    assert accepted_words(accepted(1), 10, None, None) == "round 1 of 10: 4 of 4 hospitals, 12 s"


def test_a_bar_shows_how_far_training_is():
    assert training_words(3, 10, 0.25) == "round 3 of 10: training [#####...............]  25%"
    assert training_words(3, 10, 1.0).endswith("[####################] 100%")


class Screen(io.StringIO):
    def isatty(self):
        return True


def seen(written):
    """The lines that a terminal shows in the end: a return goes back, text writes over, ESC[K erases the rest."""
    lines = []
    for text in written.replace("\x1b[A", "").split("\n"):
        shown = ""
        for piece in text.split("\r"):
            kept = "" if piece.startswith("\x1b[K") else shown
            new = piece.removeprefix("\x1b[K")
            shown = new + kept[len(new) :]
        lines.append(shown.rstrip())
    return [line for line in lines if line]


def test_on_a_terminal_finished_rounds_stay_and_the_bar_is_written_over(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    display = display_for(None)
    assert isinstance(display, Terminal)
    display.now("one")
    display.now("two")
    display.line("done")
    display.clear()
    assert screen.getvalue() == "\r\x1b[Kkonsil: one\r\x1b[Kkonsil: two\r\x1b[Kkonsil: done\n"


def test_beside_another_bar_on_a_terminal_only_finished_rounds_are_shown(monkeypatch):
    tqdm = pytest.importorskip("tqdm", reason="NOT CHECKED: tqdm is not installed").tqdm
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    display = beside_a_bar(None)
    with tqdm(total=4, file=screen, ncols=60, mininterval=0, leave=True) as bar:
        for number in range(1, 5):
            bar.update()
            display.now("training " * 9)
            assert "%|" in seen(screen.getvalue())[-1]
            assert "training" not in screen.getvalue()
            display.clear()
            if number % 2 == 0:
                display.line(f"round {number // 2} is done")
                bar.refresh()
    lines = seen(screen.getvalue())
    assert lines[:2] == ["konsil: round 1 is done", "konsil: round 2 is done"]
    assert [line[:5] for line in lines[2:]] == ["100%|"]


def test_in_a_notebook_and_where_nobody_watches_another_bar_changes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert [type(beside_a_bar(progress)) for progress in (None, False, True)] == [Nothing, Nothing, Log]
    own = Nothing()
    assert display_for(own) is own
    assert beside_a_bar(own) is own


@pytest.mark.parametrize(("progress", "kind"), [(None, Nothing), (False, Nothing), (True, Log)])
def test_where_nobody_watches_nothing_is_shown_unless_asked_for(monkeypatch, progress, kind):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    display = display_for(progress)
    assert type(display) is kind
    display.now("training")
    display.line("round 1")
    display.clear()
    assert log.getvalue() == ("konsil: round 1\n" if progress else "")


def test_a_terminal_can_be_kept_quiet(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    assert type(display_for(False)) is Nothing


def test_a_notebook_has_one_output_that_is_updated():
    shown, updates = [], []

    class Handle:
        def update(self, data, *, raw):
            assert raw
            updates.append(data["text/plain"])

    def show(data, *, raw, display_id):
        assert raw
        assert display_id
        shown.append(data)
        return Handle()

    notebook = Notebook(show)
    notebook.clear()
    notebook.now("round 1: <training>")
    notebook.line("round 1 is done")
    notebook.now("round 2: training")
    notebook.clear()
    assert [data["text/html"] for data in shown] == ["<pre>round 1: &lt;training&gt;</pre>"]
    assert updates == ["round 1 is done", "round 1 is done\nround 2: training", "round 1 is done"]
    for number in range(2 * LINES_KEPT):
        notebook.line(f"round {number}")
    assert len(updates[-1].splitlines()) == LINES_KEPT
