"""Who may read which model: what members promised each other when they agreed to a study."""

from __future__ import annotations

from konsil.core.rules.final import choosable
from konsil.core.rules.starts import agreed_start, choosable_starts, start_of
from konsil.core.rules.state import Study


def readable(study: Study, peer: str) -> frozenset[str]:
    """The digests of a study's models and parts that a peer may ask for now.

    Only participants read anything. An update can be read once the roster is fixed, never before: who saw
    another's update could fit its own to it. In a study with an outer optimiser, the states that the last and
    the open round were trained from can be read too, if a majority says that they are what they are.
    """
    if peer not in study.participants:
        return frozenset()
    digests = {study.initial, study.accepted, *choosable_starts(study)}
    digests |= {study.history[number - 1].digest for number in choosable(study)}
    has_outer = study.settings.outer is not None
    for record in study.history[-1:]:
        digests |= {record.base, *(part.digest for part in record.parts)}
        if has_outer:
            digests.add(start_of(record))
    current = study.open
    if current is not None:
        digests |= {current.base, current.digest, *(part.digest for part in current.parts)}
        if current.phase == "merging":
            digests |= {current.commits[name].digest for name in current.roster}
        if has_outer:  # nobody opens an update to readers by naming it as a state
            digests |= {agreed_start(study)} - {commitment.digest for commitment in current.commits.values()}
    return frozenset(digests - {""})
