"""Rules that look at whole updates: who is near whom, and how far each goes from where the round started."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konsil.core import merge
from konsil.core.merge.chunk import _mix
from konsil.core.parameters import Schema, check_finite
from konsil.errors import ConfigError, ParametersError

NAMES = ("multi_krum", "nnm_trimmed_mean", "norm_clipping")
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def merged(name, rows, weights=None, *, base=None, dtype="F64", cuts=(), **options):
    """The merge of float rows [n, elements], in chunks that end at some bytes."""
    rule, kind = merge.rule(name, options), KINDS[dtype]
    rows = [np.asarray(row, kind) for row in rows]
    weights = tuple(weights or [1] * len(rows))
    origin = np.zeros_like(rows[0]) if base is None else np.asarray(base, kind)
    ends = [0, *cuts, rows[0].nbytes]
    grams, chunked = [], []
    for start, stop in pairwise(ends):
        runs = [(dtype, 0, stop - start)]
        chunks = [row.tobytes()[start:stop] for row in rows]
        around = origin.tobytes()[start:stop] if rule.around_base else None
        grams.append(merge.gram_chunk(runs, chunks, around))
        chunked.append((runs, chunks, around))
    mixed = merge.mixing(rule, merge.sum_grams(grams), weights)
    out = memoryview(bytearray(rows[0].nbytes))
    for (start, stop), (runs, chunks, around) in zip(pairwise(ends), chunked, strict=True):
        merge.merge_chunk(rule, runs, chunks, weights, out[start:stop], mixed, around)
    return np.frombuffer(out, kind)


def updates(seed, n, elements=300, *, spread=0.1):
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(elements)
    return base, base + spread * generator.standard_normal((n, elements))


def distances(rows):
    return np.array([[np.linalg.norm(a - b) ** 2 for b in rows] for a in rows])


# --- Multi-Krum -----------------------------------------------------------------------------------


def krum(rows, weights, f, m):
    """Blanchard et al. 2017 from the vectors themselves."""
    near = np.sort(distances(rows), axis=1)[:, 1 : len(rows) - f - 1]
    selected = sorted(np.argsort(near.sum(axis=1), kind="stable")[:m])
    return np.average(rows[selected], axis=0, weights=np.array(weights)[selected])


@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(0, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_multi_krum_is_the_weighted_mean_of_the_m_updates_nearest_to_the_others(seed, f, more, data):
    n = 2 * f + 3 + more
    m = data.draw(st.integers(1, n - f))
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=n, max_size=n))
    _, rows = updates(seed, n)
    np.testing.assert_allclose(
        merged("multi_krum", rows, weights, f=f, m=m), krum(rows, weights, f, m), 1e-12
    )


def test_multi_krum_selects_all_but_f_unless_told_otherwise():
    _, rows = updates(0, 6)
    rows[4] += 50
    np.testing.assert_allclose(merged("multi_krum", rows), krum(rows, [1] * 6, 1, 5), 1e-12)
    np.testing.assert_allclose(merged("multi_krum", rows, f=1, m=1), krum(rows, [1] * 6, 1, 1), 1e-12)


def test_of_updates_equally_near_the_earlier_in_the_roster_is_selected():
    corners = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]]
    assert merged("multi_krum", [[0.0, 0.0], *corners], m=1).tolist() == [0.0, 0.0]
    assert merged("multi_krum", [[5.0]] * 5, m=2).tolist() == [5.0]
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    scores = np.sort(distances(square), axis=1)[:, 1:3].sum(axis=1)
    first = next(row for row in range(5) if scores[row] == scores.min())
    assert merged("multi_krum", square, m=1).tolist() == square[first].tolist()


@pytest.mark.parametrize("scale", [1e-3, 1e-6])
def test_who_is_near_whom_is_seen_in_updates_that_hardly_differ(scale):
    base, rows = updates(3, 7, 5_000, spread=scale)
    rows[2] = base + 5 * (rows[2] - base)
    np.testing.assert_allclose(merged("multi_krum", rows, f=1), krum(rows, [1] * 7, 1, 6), 1e-12)


# --- nearest-neighbour mixing ---------------------------------------------------------------------


def nnm_trimmed_mean(rows, weights, f):
    """Allouah et al. 2023 from the vectors themselves, weighted."""
    n, weights = len(rows), np.array(weights, float)
    near = np.argsort(distances(rows), axis=1, kind="stable")[:, : n - f]
    mixed = np.array([np.average(rows[each], axis=0, weights=weights[each]) for each in near])
    return np.sort(mixed, axis=0)[f : n - f].mean(axis=0)


@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_each_update_is_mixed_with_its_nearest_and_then_trimmed(seed, f, more):
    n = 2 * f + 1 + more
    _, rows = updates(seed, n)
    expected = nnm_trimmed_mean(rows, [1] * n, f)
    np.testing.assert_allclose(merged("nnm_trimmed_mean", rows, f=f), expected, 1e-9, 1e-12)


def test_neighbours_are_mixed_by_their_merge_weights():
    _, rows = updates(5, 6)
    weights = [5, 1, 9, 2, 7, 3]
    expected = nnm_trimmed_mean(rows, weights, 1)
    np.testing.assert_allclose(merged("nnm_trimmed_mean", rows, weights), expected, 1e-9, 1e-12)


# --- norm clipping --------------------------------------------------------------------------------


def clipped_mean(rows, weights, base, bound):
    steps = rows - base
    norms = np.linalg.norm(steps, axis=1)
    scales = np.minimum(1.0, bound / np.maximum(norms, 1e-300))
    return base + np.average(steps * scales[:, None], axis=0, weights=weights)


@given(st.integers(0, 10**6), st.integers(1, 9), st.floats(0.25, 4))
@settings(max_examples=40, deadline=None)
def test_no_update_goes_farther_than_the_factor_times_the_median(seed, n, factor):
    generator = np.random.default_rng(seed)
    base, rows = updates(seed, n)
    rows = base + (rows - base) * generator.uniform(0.1, 10, (n, 1))
    bound = factor * np.median(np.linalg.norm(rows - base, axis=1))
    expected = clipped_mean(rows, [1] * n, base, bound)
    np.testing.assert_allclose(merged("norm_clipping", rows, base=base, factor=factor), expected, 1e-9, 1e-12)


def test_where_most_stand_still_one_that_moves_alone_moves_nobody():
    base = [10.0, 10.0]
    for others in (2, 3, 6):
        updates = [base] * others + [[1e9, -1e9]]
        assert merged("norm_clipping", updates, [1] * (others + 1), base=base).tolist() == base


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=7))
@settings(deadline=None)
def test_the_bound_is_the_median_of_norms_repeated_by_weight(members):
    steps, weights = [float(step) for step, _ in members], [weight for _, weight in members]
    repeated = [step for step, weight in members for _ in range(weight)]
    bound = np.median(repeated)
    expected = np.average([min(step, bound) for step in steps], weights=weights)
    got = merged("norm_clipping", [[10.0, 10.0 + step] for step in steps], weights, base=[10.0, 10.0])
    np.testing.assert_allclose(got, [10.0, 10.0 + expected], 1e-13)


def test_a_bound_of_ones_own_is_in_the_unit_of_the_parameters():
    got = merged("norm_clipping", [[3.0, 4.0], [0.0, 1.0]], base=[0.0, 0.0], bound=2.5)
    np.testing.assert_allclose(got, [0.75, 1.5], 1e-15)


@pytest.mark.parametrize("scale", [1000.0, -1000.0, 1e30])
def test_a_site_with_0_6_percent_of_the_data_that_scales_its_update_a_thousand_times_is_stopped(scale):
    weights = [497, 497, 6]  # 0.6 % of all examples
    base, rows = updates(7, 3, 5_000, spread=0.01)
    honest = rows.copy()
    rows[2] = base + scale * (rows[2] - base)
    want = merged("mean", honest, weights)
    step = np.linalg.norm(want - base)
    assert np.linalg.norm(merged("mean", rows, weights) - want) > 5 * step
    assert np.linalg.norm(merged("norm_clipping", rows, weights, base=base) - want) < 0.02 * step


def test_who_commits_the_model_as_it_was_holds_the_others_back():
    base = [1.0, 1.0]
    got = merged("norm_clipping", [base, base, [1.0, 2.0], [1.0, 4.0]], base=base)
    assert got.tolist() == [1.0, 1.25]
    assert merged("norm_clipping", [base] * 3, base=base).tolist() == base


@pytest.mark.parametrize("relative", [1e-3, 1e-6, 1e-9, 1e-12])
def test_differences_far_smaller_than_the_parameters_keep_their_digits(relative):
    base, rows = updates(11, 5, 20_000, spread=relative)
    rows[1] = base + 40 * (rows[1] - base)
    bound = np.median(np.linalg.norm(rows - base, axis=1))
    expected = clipped_mean(rows, [1] * 5, base, bound) - base
    got = merged("norm_clipping", rows, base=base) - base
    # What is left of a difference of 1e-12 in float64 parameters has 4 digits.
    assert np.linalg.norm(got - expected) < max(1e-12, 1e-15 / relative) * np.linalg.norm(expected)


def test_float32_updates_are_clipped_by_their_true_differences():
    base, rows = updates(12, 4, 20_000, spread=1e-4)
    base, rows = base.astype("f4").astype("f8"), rows.astype("f4").astype("f8")
    rows[3] = (base + 1000 * (rows[3] - base)).astype("f4")
    bound = np.median(np.linalg.norm(rows - base, axis=1))
    expected = clipped_mean(rows, [1] * 4, base, bound).astype("f4")
    np.testing.assert_array_equal(merged("norm_clipping", rows, base=base, dtype="F32"), expected)


# --- what all of them keep ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [-1000.0, 1e30])
@pytest.mark.parametrize("hostile", [0, 2])
def test_one_member_however_far_away_does_not_move_the_merge_out_of_the_others(name, scale, hostile):
    base, honest = updates(1, 5, 5_000, spread=0.01)
    rows = np.insert(honest, hostile, base * scale, axis=0)
    spread = np.linalg.norm(honest - base, axis=1).max()
    assert np.linalg.norm(merged(name, rows, base=base) - base) < 2 * spread
    assert np.linalg.norm(merged("mean", rows) - base) > 100 * spread


@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.lists(st.integers(1, 69_999), max_size=3, unique=True))
@settings(max_examples=8, deadline=None)
def test_chunks_give_what_the_whole_gives(name, cuts):
    base, rows = updates(2, 5, 70_000)
    ends = sorted(8 * cut for cut in cuts)
    whole = merged(name, rows, [5, 7, 11, 2, 3], base=base)
    np.testing.assert_allclose(
        merged(name, rows, [5, 7, 11, 2, 3], base=base, cuts=ends), whole, 1e-12, 1e-13
    )
    again = merged(name, rows, [5, 7, 11, 2, 3], base=base, cuts=ends)
    assert again.tobytes() == merged(name, rows, [5, 7, 11, 2, 3], base=base, cuts=ends).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_equal_updates_give_that_update(name):
    rows = [[1.0, -2.5, 0.0, 1e-3]] * 5
    np.testing.assert_array_equal(merged(name, rows, [1, 9, 4, 2, 2], dtype="F32"), np.float32(rows[0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "top"), [("F64", 2.0**399), ("F32", 3.4e38), ("F16", 65504.0)])
def test_the_greatest_values_do_not_overflow(name, dtype, top):
    rows = np.array([[top, -top], [top, -top], [top, top], [top, -top], [-top, -top]])
    got = merged(name, rows, [2**29 - 1] * 5, base=[-top, top], dtype=dtype)
    check_finite(Schema.of({"w": got}), got.tobytes())
    assert np.abs(got).max() <= np.asarray(top, KINDS[dtype])


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("multi_krum", {"f": 0}, "whole number from 1"),
        ("multi_krum", {"m": 0.5}, "whole number from 0"),
        ("multi_krum", {"k": 1}, "no option 'k'; it has f, m"),
        ("nnm_trimmed_mean", {"f": math.nan}, "whole number"),
        ("norm_clipping", {"factor": 0.0}, "factor.*must be a number from"),
        ("norm_clipping", {"factor": math.nan}, "factor.*must be a number from"),
        ("norm_clipping", {"bound": -1.0}, "bound.*must be 0, or a distance"),
        ("norm_clipping", {"bound": math.nan}, "bound.*must be 0, or a distance"),
        ("norm_clipping", {"bound": 1.0, "factor": 2.0}, "0 where `factor` is given"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name, options, why):
    with pytest.raises(ConfigError, match=why):
        merge.rule(name, options)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("multi_krum", {}, 5),
        ("multi_krum", {"f": 2}, 7),
        ("multi_krum", {"f": 1, "m": 9}, 10),
        ("nnm_trimmed_mean", {"f": 2}, 5),
        ("norm_clipping", {}, 1),
    ],
)
def test_a_rule_says_how_many_members_it_needs(name, options, needed):
    assert merge.required_members(merge.rule(name, options)) == needed
    if needed > 1:
        with pytest.raises(ConfigError, match=f"needs {needed} members and the roster has {needed - 1}"):
            merged(name, np.ones((needed - 1, 3)), **options)


def test_the_base_is_taken_by_rules_around_it_and_by_no_other():
    runs, chunks, out = [("F64", 0, 8)], [bytes(8)] * 2, memoryview(bytearray(8))
    with pytest.raises(ConfigError, match="needs the model that the round started from"):
        merge.merge_chunk(
            merge.rule("norm_clipping", {}),
            runs,
            chunks,
            [1, 1],
            out,
            merge.Mixing((1, 1), ((1.0, 0.0), (0.0, 1.0))),
        )
    with pytest.raises(ConfigError, match="takes no base"):
        merge.merge_chunk(merge.rule("mean", {}), runs, chunks, [1, 1], out, None, bytes(8))
    with pytest.raises(ParametersError, match="model that the round started from has 4 bytes instead of 8"):
        merge.gram_chunk(runs, chunks, bytes(4))


def test_a_row_of_the_mixing_matrix_may_be_empty():
    mixed = np.full((2, 1), np.nan)  # as memory that was used before
    _mix(((0.0, 0.0), (0.0, 2.0)), np.array([[1.0], [3.0]]), mixed)
    assert mixed.tolist() == [[0.0], [6.0]]


@pytest.mark.parametrize("name", merge.rule_names())
def test_every_rule_that_comes_with_konsil_passes_the_trial_of_rules(name):
    merge.try_rule(lambda: merge.rule(name, {}))
