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
    digests = {"", study.initial, study.accepted}
    digests.update([study.history[number - 1].digest for number in choosable(study)])
    for record in study.history[-1:]:
        digests.add(record.base)
        digests.update([part.digest for part in record.parts])
    current = study.open
    if current is not None:
        digests.update((current.base, current.digest))
        digests.update([part.digest for part in current.parts])
        if current.phase == "merging":
            digests.update([current.commits[name].digest for name in current.roster])
    if study.settings.outer is not None:
        digests |= _outer_states(study)
    digests.remove("")
    return frozenset(digests)


def _outer_states(study: Study) -> set[str]:
    states = {start_of(record) for record in study.history[-1:]} | choosable_starts(study)
    commits = study.open.commits.values() if study.open is not None else ()
    # Nobody opens an update to readers by naming it as a state.
    return states | ({agreed_start(study)} - {commitment.digest for commitment in commits})
