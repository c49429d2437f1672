"""How long members train before the next merge: longer while the scores on the ledger get better."""

from __future__ import annotations

from konsil.core.rules.state import Study
from konsil.core.rules.stopping import mean_score

FACTOR = 2
"""The interval doubles and halves: a few rounds lead from the shortest to the longest and back."""


def next_interval(study: Study) -> int:
    """How many times the set interval the round that opens now trains.

    It follows from the ledger alone, so all members train alike. The round that was accepted last cannot have
    scores yet: the two before it, as far as they were scored, say whether training gets on. A round that
    nobody scored says nothing good.
    """
    adaptive = study.settings.adaptive
    if adaptive is None or not study.history:
        return 1
    before = study.history[-1].interval
    scored = study.history[:-1]
    means = (mean_score(record, adaptive.metric, timely=True) for record in reversed(scored))
    newest = next(means, None)
    earlier = next((mean for mean in means if mean is not None), None)
    if newest is not None and earlier is None:
        return before  # the first score: there is nothing to compare it with
    if newest is None or earlier is None:
        return max(1, before // FACTOR)
    gain = newest - earlier if adaptive.mode == "max" else earlier - newest
    longer = gain > adaptive.min_delta
    return min(before * FACTOR, adaptive.most) if longer else max(1, before // FACTOR)
