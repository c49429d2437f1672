"""The public names, when to merge, and what a terminal shows."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

import konsil
from konsil import errors
from konsil.core.rules.settings import StudySettings
from konsil.core.wall import Waiting
from konsil.session.display import display_for, waiting_words
from konsil.session.pace import Pace


def test_the_public_names_are_sorted_and_all_there():
    assert konsil.__all__ == sorted(konsil.__all__)
    assert set(errors.__all__) <= set(konsil.__all__)
    assert [name for name in konsil.__all__ if getattr(konsil, name).__name__ != name] == []
    assert dir(konsil) == konsil.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        konsil.nonsense  # noqa: B018 - looking is the test


def test_importing_konsil_imports_no_array_library_and_no_network():
    script = "import sys, konsil; print(sorted({'numpy', 'socket', 'asyncio', 'msgspec', 'grpc'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "[]\n"


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_progress_by_steps_grows_to_one_and_begins_again():
    settings = StudySettings(name="s", every_steps=4)
    pace = Pace(settings, Clock())
    seen = []
    for _ in range(4):
        pace.step()
        seen.append((pace.progress, pace.due))
    assert seen == [(0.25, False), (0.5, False), (0.75, False), (1.0, True)]
    pace.begin(settings)
    assert (pace.progress, pace.due) == (0.0, False)


def test_progress_by_epochs_counts_the_steps_within_one_by_the_length_of_the_last():
    settings = StudySettings(name="s", every_epochs=2)
    pace = Pace(settings, Clock())
    for _ in range(10):
        pace.step()
    assert pace.progress == 0
    pace.epoch()
    assert (pace.progress, pace.due) == (0.5, False)
    for _ in range(5):
        pace.step()
    assert pace.progress == 0.75
    for _ in range(20):
        pace.step()
    assert (pace.progress, pace.due) == (1.0, False)
    pace.epoch()
    assert pace.due


def test_progress_by_minutes_is_the_clocks():
    clock = Clock()
    pace = Pace(StudySettings(name="s", every_minutes=2), clock)
    clock.now_s += 30
    assert (pace.progress, pace.due) == (0.25, False)
    clock.now_s += 90
    assert (pace.progress, pace.due) == (1.0, True)


def test_a_terminal_shows_one_line_that_is_cleared_and_a_file_nothing(monkeypatch):
    waiting = waiting_words(Waiting(round=3, stage="updates", missing=("lyon", "nantes"), until_s=5))
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    display = display_for(None)
    display.now(waiting)
    display.line("round 3 is done")
    display.clear()
    assert shown.getvalue() == ""
    monkeypatch.setattr(shown, "isatty", lambda: True)
    display = display_for(None)
    display.now(waiting)
    display.clear()
    display.clear()
    assert shown.getvalue() == "\r\x1b[Kkonsil: round 3 waits for updates (missing: lyon, nantes)\r\x1b[K"
