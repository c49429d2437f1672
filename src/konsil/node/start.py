"""How a study begins at this node: what comes too early waits, and what keeps it from beginning is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from konsil.core.round import Event, Looked
from konsil.errors import KonsilError, NodeBusy


class Start:
    """Whether one study has begun. Until its last words are taken up nothing else is told to its machine: in
    the place of a snapshot that is still being read, it would contribute the accepted merge.
    """

    def __init__(self, study: str) -> None:
        """Nothing has begun."""
        self._study = study
        self.begun = False
        self.failed = ""
        """Why it could not begin, "" if it has or still may."""
        self.is_over = asyncio.Event()  # begun, stopped or failed: no training process is let in before
        self.turn = asyncio.Lock()
        self._early: list[Event] = []

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Whatever is raised inside is what the study could not begin by. At a node's start it ends the node,
        which its service manager starts again; after mending, it is told.
        """
        self.failed = ""
        self.is_over.clear()
        try:
            yield
        except BaseException as error:
            self.failed = (
                f"Study {self._study!r} could not begin at this node: "
                f"{error if isinstance(error, KonsilError) else f'{error!r}.'} "
                f"It is tried again by `konsil study mend {self._study}`, or at the node's next start."
            )
            raise
        finally:
            self.is_over.set()

    def keeps(self, event: Event) -> bool:
        """Whether an event came too early; it is kept. A look is not: there is one once the study begins."""
        if not self.begun and not isinstance(event, Looked):
            self._early.append(event)
        return not self.begun

    def begin(self) -> list[Event]:
        """From here on nothing is early; what was."""
        self.begun = True
        early, self._early = self._early, []
        return early

    def require(self) -> None:
        """See that the study has begun.

        Raises:
            NodeBusy: it has not.
        """
        if not self.begun:
            raise NodeBusy(
                self.failed or f"Study {self._study!r} is just beginning at this node.",
                safe="What is written down is kept.",
                do="" if self.failed else "Try again.",
                study=self._study,
            )
