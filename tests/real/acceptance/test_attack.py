"""One site with 0.6 % of the data scales its update by 1000: robust rules do not follow, and the mean does."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

EXAMPLES = {"berlin": 249, "bonn": 249, "koeln": 248, "lyon": 248, "metz": 6}
STEPS = {"berlin": 1.0, "bonn": 2.0, "koeln": 4.0, "lyon": 8.0, "metz": 16.0 * 1000}
ATTACKER = "metz"


def weighted(members, steps=STEPS) -> float:
    total = sum(EXAMPLES[name] for name in members)
    return sum(EXAMPLES[name] * steps[name] for name in members) / total


HONEST = [name for name in EXAMPLES if name != ATTACKER]
MERGED = {
    "mean": weighted(EXAMPLES),
    "trimmed_mean": weighted(["bonn", "koeln", "lyon"]),  # without the lowest and the highest
    "multi_krum": weighted(HONEST),  # without the one that is far from all
    "norm_clipping": weighted(
        EXAMPLES, {name: min(step, 4.0) for name, step in STEPS.items()}
    ),  # at the median
}
"""What one round moves every parameter by, worked out by hand."""


def test_the_merge_follows_the_attacker_by_the_mean_alone(lab):
    assert MERGED["mean"] > 90
    assert all(step <= 8 for rule, step in MERGED.items() if rule != "mean")
    lab.make(*EXAMPLES)
    for number, (rule, step) in enumerate(MERGED.items()):
        lab.study(
            name=f"study{number}", rule=rule, rounds=2, weighting="examples", quorum=5, audit_fraction=1.0
        )
        for name, count in EXAMPLES.items():
            lab.train(name, numbers=STEPS, examples=count)
        lab.ends()
        history = lab.intact(merged=lambda _record, base, step=step: base + step)
        assert all(set(record.roster) == set(EXAMPLES) and not record.disputes for record in history)
        for trainer in lab.trainers.values():
            trainer.close()
        lab.trainers.clear()
