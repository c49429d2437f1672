"""What a person at a terminal sees while a merge is waited for."""

from __future__ import annotations

import sys

from konsil.core.wall import Waiting


class WaitingLine:
    """One line on stderr that is written over; nothing where nobody watches."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, waiting: Waiting) -> None:
        """Show what the node waits for."""
        if not sys.stderr.isatty():
            return
        what = f"round {waiting.round}" if waiting.round else "the study"
        whom = f" (missing: {', '.join(waiting.missing)})" if waiting.missing else ""
        self._write(f"konsil: {what} waits for {waiting.stage}{whom}")
        self._shown = True

    def clear(self) -> None:
        """The wait is over."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")  # back to the line's start, and erase to its end
        sys.stderr.flush()
