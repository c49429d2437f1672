"""Which outer state a round is trained from, as a majority has committed to it.

Every member computes the state alike from the agreed merges, so all name one digest. One that names another
has faulty memory, or lies: what more than half say is what the swarm goes on from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from konsil.core.rules.state import RoundRecord, Study


def start_of(record: RoundRecord) -> str:
    """The outer state that more than half of an accepted round's roster trained from; "" without any."""
    return _majority((commitment.start for commitment in record.roster.values()), record.roster)


def agreed_start(study: Study) -> str:
    """The outer state that more than half of those who are in the open round train from; "" if unknown yet.

    While the round collects, those still waited for count too: what a few early ones say is no majority.
    """
    current = study.open
    if current is None or study.settings.outer is None:
        return ""
    among = current.roster or {*current.commits, *current.expected}
    starts = (commitment.start for name, commitment in current.commits.items() if name in among)
    return _majority(starts, among)


def best_start(study: Study) -> str:
    """The outer state that holds the study's best model; "" if that is the last, or none is asked for."""
    later = study.history[study.best :] if study.best else ()
    return start_of(later[0]) if later and study.settings.outer is not None else ""


def _majority(starts: Iterable[str], among: Collection[str]) -> str:
    counts = Counter(start for start in starts if start)
    found, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return found if 2 * count > len(among) else ""
