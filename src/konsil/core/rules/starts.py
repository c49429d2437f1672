"""Which outer state a round is trained from, as a majority has committed to it.

Every member computes the state alike from the agreed merges, so all name one digest. One that names another
has faulty memory, or lies: what more than half say is what the swarm goes on from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from konsil.core.rules.final import choosable
from konsil.core.rules.state import RoundRecord, Study


def start_of(record: RoundRecord, me: str = "") -> str:
    """The outer state that more than half of an accepted round's roster trained from.

    Without a majority that of member ``me``, if it took part; else "".
    """
    agreed = _majority((commitment.start for commitment in record.roster.values()), record.roster)
    return agreed or (record.roster[me].start if me in record.roster else "")


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


def choosable_starts(study: Study, me: str = "") -> frozenset[str]:
    """The outer states that hold a model of which one is the final one, except the last; ``me``: as above."""
    if study.settings.outer is None:
        return frozenset()
    later = [study.history[number] for number in choosable(study) if number < len(study.history)]
    return frozenset(start_of(record, me) for record in later) - {""}


def _majority(starts: Iterable[str], among: Collection[str]) -> str:
    counts = Counter(start for start in starts if start)
    found, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return found if 2 * count > len(among) else ""
