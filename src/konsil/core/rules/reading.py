"""Who may read which model: what members promised each other when they agreed to a study."""

from __future__ import annotations

from konsil.core.rules.state import Study


def readable(study: Study, peer: str) -> frozenset[str]:
    """The digests of a study's models and parts that a peer may ask for now.

    Only participants read anything. An update can be read once the roster is fixed, never before: who saw
    another's update could fit its own to it.
    """
    if peer not in study.participants:
        return frozenset()
    digests = {study.initial, study.accepted}
    if study.best:
        digests.add(study.history[study.best - 1].digest)
    for record in study.history[-1:]:
        digests |= {record.base, *(part.digest for part in record.parts)}
    current = study.open
    if current is not None:
        digests |= {current.base, current.digest, *(part.digest for part in current.parts)}
        if current.phase == "merging":
            digests |= {current.commits[name].digest for name in current.roster}
    return frozenset(digests - {""})
