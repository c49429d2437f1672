"""A simulated swarm comes to the digests of real nodes with the same members: the contract, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

import konsil
from konsil.core.rules import Outer, Study, StudySettings

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

MEMBERS = ("berlin", "bonn", "koeln", "lyon", "ulm")
ELEMENTS = 3_000_000
"""12 MB: three chunks, so that the merge has three parts and two members lead none."""


def settings(**changes: object) -> StudySettings:
    known: dict[str, object] = {
        "name": "aml",
        "min_members": len(MEMBERS),
        "quorum": 3,
        "rounds": 3,
        "every_steps": 1,
        "silence_s": 60,
        "merge_s": 60,
    }
    return StudySettings(**(known | changes))


def simulated(agreed: StudySettings, elements: int, **last: object) -> Study:
    """The members of ``member.py``, which adds a number to every parameter, as functions."""

    def make(place: int) -> konsil.Member:
        model = {"weights": np.zeros(elements, np.float32), "bias": np.zeros(3, np.float64)}

        def train(model, work) -> int:
            for name in model:
                model[name] += 0.1 * (place + 1)
            return 10 * (place + 1)

        return konsil.Member(model, train, **(last if place == len(MEMBERS) - 1 else {}))

    return konsil.simulate(make, members=MEMBERS, study=agreed, jobs=2).study


def without_times(study: Study) -> list[tuple[object, ...]]:
    """What is the same wherever and whenever the same updates are merged."""
    return [
        (
            record.number,
            record.attempt,
            record.base,
            record.digest,
            {name: (commit.digest, commit.examples, commit.start) for name, commit in record.roster.items()},
            record.weights,
            [(part.leader, part.digest, part.gram) for part in record.parts],
            record.absent,
            record.interval,
        )
        for record in study.history
    ]


def on_real_nodes(site, agreed: StudySettings, elements: int, *last: str) -> Study:
    """The same with nodes and training scripts; ``last``: more arguments for the last member's script."""
    swarm = site.swarm(*MEMBERS)
    swarm.start()
    swarm.propose(agreed)
    trainers = [
        site.train(
            swarm,
            "aml",
            name,
            0.1 * place,
            *("--elements", str(elements), "--examples", str(10 * place)),
            *(last if place == len(MEMBERS) else ()),
        )
        for place, name in enumerate(MEMBERS, start=1)
    ]
    assert [trainer.end()[-1]["event"] for trainer in trainers] == ["ended"] * len(MEMBERS)
    return swarm.control("bonn").state().studies["aml"]


@pytest.mark.parametrize(
    ("elements", "changes"),
    [
        (ELEMENTS, {}),
        (ELEMENTS, {"rule": "trimmed_mean", "weighting": "equal"}),
        (ELEMENTS, {"rule": "geometric_median"}),
        (ELEMENTS, {"rule": "norm_clipping", "rule_options": {"factor": 0.7}}),
        (1000, {"rule": "nnm_trimmed_mean", "quorum": 5}),
        (1000, {"rule": "multi_krum", "quorum": 5}),
        (ELEMENTS, {"outer": Outer("yogi", learning_rate=0.3, tau=0.01)}),
        (1000, {"parts": "leader", "weighting": "capped", "cap_percent": 30}),
    ],
    ids=["mean", "trimmed-mean", "geometric-median", "norm-clipping", "nnm", "multi-krum", "outer", "capped"],
)
def test_a_simulated_swarm_and_real_nodes_write_the_same_rounds_on_the_ledger(site, elements, changes):
    agreed = settings(**changes)
    real, here = on_real_nodes(site, agreed, elements), simulated(agreed, elements)
    assert (here.schema, here.initial, here.data_bytes) == (real.schema, real.initial, real.data_bytes)
    assert without_times(here) == without_times(real)
    assert (here.phase, here.ended, here.settings_digest) == (real.phase, real.ended, real.settings_digest)


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ("inactive", {}),
        ("snapshot", {}),
        ("active", {}),
        ("active", {"outer": Outer("adam", learning_rate=0.3, tau=0.01)}),
    ],
    ids=["inactive", "snapshot", "active", "active-outer"],
)
def test_so_they_do_where_a_member_finishes_first(site, after, changes):
    agreed = settings(**changes)
    real = on_real_nodes(site, agreed, 1000, "--rounds", "1", "--after", after)
    here = simulated(agreed, 1000, rounds=1, after=after)
    assert without_times(here) == without_times(real)
    assert here.participants == real.participants
