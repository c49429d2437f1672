"""Our merge rules against byzfl, a library of robust rules and of attacks on them, with equal weights.

Where the definitions differ: byzfl's Multi-Krum counts n - f - 1 others as neighbours, Blanchard et al. and we
n - f - 2, so its f + 1 is our f; its geometric median makes T steps from zero, so it gets enough of them; it has
no clipping at the median norm, but its adaptive clipping (ARC) is that for n = 2f + 1; it has no weights.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konsil.core import merge

try:
    import byzfl
except ImportError:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip("NOT TESTED: byzfl is not installed; install the group 'frameworks'", allow_module_level=True)

pytestmark = pytest.mark.real

SEEDS = st.integers(0, 10**6)


def merged(name, rows, base=None, **options):
    """The merge of rows float64 [n, elements] with equal weights."""
    rule, weights = merge.rule(name, options), (1,) * len(rows)
    runs, chunks = [("F64", 0, rows[0].nbytes)], [row.tobytes() for row in rows]
    around = base.tobytes() if rule.around_base else None
    mixed = merge.mixing(rule, merge.gram_chunk(runs, chunks, around), weights)
    out = memoryview(bytearray(rows[0].nbytes))
    merge.merge_chunk(rule, runs, chunks, weights, out, mixed, around)
    return np.frombuffer(out)


def updates(seed, n, elements=200):
    """A model and n updates of it, some of them wrong."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(elements)
    steps = generator.standard_normal((n, elements)) * generator.uniform(0.1, 3, (n, 1))
    return base, base + steps


def same(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@given(SEEDS, st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_the_median_is_byzfls(seed, n):
    _, rows = updates(seed, n)
    same(merged("median", rows), byzfl.Median()(rows.copy()))


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_trimmed_mean_is_byzfls(seed, f, more):
    _, rows = updates(seed, 2 * f + more)
    same(merged("trimmed_mean", rows, f=f), byzfl.TrMean(f)(rows.copy()))


@given(SEEDS, st.integers(3, 10))
@settings(max_examples=10, deadline=None)
def test_the_geometric_median_is_where_byzfls_steps_end(seed, n):
    _, rows = updates(seed, n)
    # Both go towards it by the same steps from different beginnings: what is left is what steps still change.
    same(merged("geometric_median", rows), byzfl.GeometricMedian(nu=1e-6, T=400)(rows.copy()), 1e-6)


@given(SEEDS, st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_multi_krum_is_byzfls_for_one_more_that_may_be_wrong(seed, f, more):
    n = 2 * f + 3 + more
    _, rows = updates(seed, n, elements=2)  # few, so that how many neighbours count decides who is selected
    same(merged("multi_krum", rows, f=f, m=n - f - 1), byzfl.MultiKrum(f + 1)(rows.copy()))


@given(SEEDS, st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_mixing_with_neighbours_and_trimming_are_byzfls(seed, f, more):
    _, rows = updates(seed, 2 * f + 1 + more)
    same(merged("nnm_trimmed_mean", rows, f=f), byzfl.TrMean(f)(byzfl.NNM(f)(rows.copy())))


@given(SEEDS, st.integers(1, 9), st.floats(0.5, 60))
@settings(max_examples=25, deadline=None)
def test_clipping_at_a_bound_is_byzfls_on_the_differences(seed, n, bound):
    base, rows = updates(seed, n)
    expected = base + byzfl.Average()(byzfl.Clipping(bound)(rows - base))
    same(merged("norm_clipping", rows, base, bound=bound), expected)


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_clipping_at_the_median_is_byzfls_adaptive_clipping_where_half_may_be_wrong(seed, f):
    base, rows = updates(seed, 2 * f + 1)
    same(merged("norm_clipping", rows, base), base + byzfl.Average()(byzfl.ARC(f)(rows - base)))


# --- attacks --------------------------------------------------------------------------------------

ATTACKS = {
    "sign flipping": byzfl.SignFlipping(),
    "inner product manipulation": byzfl.InnerProductManipulation(tau=3.0),
    "a little is enough": byzfl.ALittleIsEnough(tau=1.5),
    "a lot": byzfl.ALittleIsEnough(tau=100.0),
}
ROBUST = {
    "median": False,
    "trimmed_mean": True,
    "geometric_median": False,
    "multi_krum": True,
    "nnm_trimmed_mean": True,
}


def attacked(attack, n, f, seed=0, elements=2_000):
    """A model, the honest updates, and all updates, of which f are made by an attack that knows the honest."""
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(elements)
    direction = generator.standard_normal(elements)
    honest = base + direction + 0.1 * generator.standard_normal((n - f, elements))
    hostile = base + ATTACKS[attack](honest - base)
    return base, honest, np.concatenate([np.tile(hostile, (f, 1)), honest])


def beyond(got, honest):
    """How far a merge is from the honest mean, in the honest updates' own largest distance from it."""
    middle = honest.mean(axis=0)
    return np.linalg.norm(got - middle) / np.linalg.norm(honest - middle, axis=1).max()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (9, 3)])
def test_under_attack_robust_rules_stay_within_the_honest_updates(attack, n, f):
    base, honest, rows = attacked(attack, n, f)
    for name, takes_f in ROBUST.items():
        assert beyond(merged(name, rows, base, **({"f": f} if takes_f else {})), honest) < 1, name
    if attack != "a little is enough":  # which is made to look honest, and moves even a mean by little
        assert beyond(merged("mean", rows), honest) > 2


@pytest.mark.parametrize("attack", ["inner product manipulation", "a lot"])
def test_under_attack_clipping_bounds_how_far_the_merge_goes_but_not_where(attack):
    base, honest, rows = attacked(attack, 7, 2)
    bound = np.median(np.linalg.norm(rows - base, axis=1))
    middle = honest.mean(axis=0)
    moved = np.linalg.norm(merged("norm_clipping", rows, base) - middle)
    assert moved <= 2 / 7 * 2 * bound * 1.01
    assert moved < np.linalg.norm(merged("mean", rows) - middle) / 1.5
