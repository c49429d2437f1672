"""What a session enters a study with, and what it hears of accepted rounds."""

from __future__ import annotations

from dataclasses import dataclass

from konsil.core.rules.settings import StudySettings
from konsil.core.rules.state import RoundRecord
from konsil.core.wall import Merged
from konsil.errors import NodeError
from konsil.wall.memory import SealedMemory


@dataclass(frozen=True)
class News:
    """An accepted round. ``memory``: the sealed merge, the receiver's to close; None if held already.

    ``before``: the round before it, with the scores that have come since.
    """

    round: int
    digest: str
    record: RoundRecord | None
    settings: StudySettings
    ended: str
    memory: SealedMemory | None
    interval: int = 1
    before: RoundRecord | None = None
    failed: bool = False

    def close(self) -> None:
        """Give up the memory, if any."""
        if self.memory is not None:
            self.memory.close()


@dataclass(frozen=True)
class Entry:
    """What a session enters with. ``until_s``: when it gives up, on the monotonic clock."""

    header: bytes
    initial: SealedMemory | None
    until_s: float


def news_of(word: Merged, memory: SealedMemory | None) -> News:
    """The news in a word of the node.

    Raises:
        NodeError: the merge did not come along.
    """
    if memory is None:
        raise NodeError(
            f"The node told of the merge of round {word.round} but did not hand it over.",
            safe="The model is untouched.",
            do="See the node's log.",
        )
    return News(
        word.round,
        word.digest,
        word.record,
        word.settings,
        word.ended,
        memory,
        word.interval,
        word.before,
        word.failed,
    )
