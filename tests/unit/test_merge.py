import math
import statistics
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from konsil.core import merge
from konsil.core.digest import group_digest, leaf, part_range
from konsil.core.merge.blocks import store
from konsil.core.merge.gram import GRAM_BLOCK
from konsil.core.merge.reduce import _network
from konsil.core.parameters import Schema, check_finite, pack, views
from konsil.errors import ConfigError, FrameError, ParametersError

RULES = [
    merge.rule("mean", {}),
    merge.rule("median", {}),
    merge.rule("trimmed_mean", {"f": 1}),
    merge.rule("geometric_median", {}),
]
IDS = [each.name for each in RULES]

plain_floats = st.floats(-1e6, 1e6, width=32)
rosters = st.integers(3, 7).flatmap(
    lambda n: st.tuples(
        st.integers(1, 12).flatmap(
            lambda size: st.lists(
                st.lists(plain_floats, min_size=size, max_size=size), min_size=n, max_size=n
            )
        ),
        st.lists(st.integers(1, 2**29 - 1), min_size=n, max_size=n),
    )
)
small_weights = st.lists(st.integers(1, 4), min_size=3, max_size=7)


def merged(rule, rows, weights, dtype="F32"):
    """The merge of float rows [n, elements] as one chunk."""
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    arrays = [np.asarray(row, kind) for row in rows]
    runs = [(dtype, 0, arrays[0].nbytes)]
    chunks = [memoryview(array.tobytes()) for array in arrays]
    mixed = merge.mixing(rule, merge.gram_chunk(runs, chunks), weights)
    out = memoryview(bytearray(arrays[0].nbytes))
    merge.merge_chunk(rule, runs, chunks, weights, out, mixed)
    return np.frombuffer(out, kind)


def numbers(seed, count):
    """Numbers from -1 to 1 that no version of numpy and no processor changes."""
    raw = blake3(f"{seed}".encode()).digest(length=4 * count)
    return np.frombuffer(raw, "<i4").astype(np.float64) / 2**31


def model(seed, scale=1.0):
    """Arrays of all dtypes; large enough for several blocks and an odd rest."""
    values = numbers(seed, 77_275)
    return {
        "a": values[:42_770].reshape(70, 611) * scale,
        "b": (values[42_770:75_771] * scale).astype(np.float32),
        "c": values[75_771:76_774].astype(np.float16),
        "bits": (values[76_774:].astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
    }


def whole_merge(rule, models, weights, cuts=(), parts=1):
    """The merge of whole models, cut into chunks at some bytes, the Gram matrix summed part by part."""
    schema = Schema.of(models[0], ["bits"])
    datas = []
    for each in models:
        data = bytearray(schema.data_bytes)
        pack(schema, each, memoryview(data))
        datas.append(memoryview(data))
    ends = [0, *cuts, schema.data_bytes]
    ranges = list(pairwise(ends))
    mixed = None
    if rule.mix:
        grams = [merge.gram_chunk(schema.runs(a, b), [data[a:b] for data in datas]) for a, b in ranges]
        shares = [part_range(part, parts, len(grams)) for part in range(parts)]
        mixed = merge.mixing(
            rule, merge.sum_grams([merge.sum_grams([grams[i] for i in share]) for share in shares]), weights
        )
    out = memoryview(bytearray(schema.data_bytes))
    for a, b in ranges:
        merge.merge_chunk(rule, schema.runs(a, b), [data[a:b] for data in datas], weights, out[a:b], mixed)
    return schema, out


# --- the same bits everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_a_roster_in_sorted_order_gives_one_digest_whoever_came_first(rule):
    members = {name: (model(seed), 10 + seed) for seed, name in enumerate(["aachen", "kiel", "lyon", "ulm"])}
    found = set()
    for order in (["ulm", "aachen", "lyon", "kiel"], ["kiel", "lyon", "ulm", "aachen"]):
        arrived = {name: members[name] for name in order}
        roster = sorted(arrived)
        _, out = whole_merge(rule, [arrived[m][0] for m in roster], [arrived[m][1] for m in roster])
        found.add(group_digest([leaf(out)]))
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES[:3], ids=IDS[:3])
@given(cuts=st.lists(st.integers(1, (70 * 611) - 1), max_size=3, unique=True))
@settings(max_examples=10, deadline=None)
def test_chunks_give_bit_for_bit_what_the_whole_gives(rule, cuts):
    models = [model(seed) for seed in range(3)]
    whole = whole_merge(rule, models, [5, 7, 11])[1]
    assert whole_merge(rule, models, [5, 7, 11], cuts=sorted(8 * cut for cut in cuts))[1] == whole


def test_a_part_alone_gives_bit_for_bit_what_the_whole_merge_has_there():
    rule, models, weights = RULES[3], [model(seed) for seed in range(4)], [1, 2, 3, 4]
    cuts = (8 * 1000, 8 * 20_000, 8 * 42_000)
    schema, whole = whole_merge(rule, models, weights, cuts, parts=2)
    assert whole_merge(rule, models, weights, cuts, parts=2)[1] == whole
    ends = [0, *cuts, schema.data_bytes]
    datas = []
    for each in models:
        data = bytearray(schema.data_bytes)
        pack(schema, each, memoryview(data))
        datas.append(memoryview(data))
    grams = [merge.gram_chunk(schema.runs(a, b), [d[a:b] for d in datas]) for a, b in pairwise(ends)]
    total = merge.sum_grams([merge.sum_grams(grams[:2]), merge.sum_grams(grams[2:])])
    mixed = merge.mixing(rule, total, weights)
    for a, b in pairwise(ends):
        out = memoryview(bytearray(b - a))
        merge.merge_chunk(rule, schema.runs(a, b), [d[a:b] for d in datas], weights, out, mixed)
        assert out == whole[a:b]


def test_the_merge_does_not_touch_the_updates():
    chunks = [np.array([3.0, -0.0, 1.0]).tobytes(), np.array([1.0, 0.0, 2.0]).tobytes()]
    kept = [bytes(each) for each in chunks]
    for name in ("mean", "median"):
        merge.merge_chunk(merge.rule(name, {}), [("F64", 0, 24)], chunks, [1, 2], memoryview(bytearray(24)))
    assert chunks == kept


# --- against oracles ------------------------------------------------------------------------------


@given(rosters)
@settings(deadline=None)
def test_the_mean_is_the_exact_weighted_mean_to_the_last_bit_but_one(roster):
    rows, weights = roster
    for column, value in enumerate(merged(RULES[0], rows, weights, "F64")):
        exact = sum(Fraction(row[column]) * weight for row, weight in zip(rows, weights, strict=True))
        scale = max(abs(row[column]) for row in rows)
        assert abs(Fraction(float(value)) - exact / sum(weights)) <= Fraction(scale) * Fraction(
            len(rows), 2**52
        )


@given(rosters)
@settings(deadline=None)
def test_the_mean_of_equal_updates_is_that_update(roster):
    rows, weights = roster
    same = [rows[0]] * len(rows)
    np.testing.assert_array_equal(merged(RULES[0], same, weights), np.asarray(rows[0], "f4"))


@given(rosters)
@settings(deadline=None)
def test_with_equal_weights_the_median_is_numpys(roster):
    rows, weights = roster
    expected = np.median(np.array(rows), axis=0).astype("f4")
    np.testing.assert_array_equal(merged(RULES[1], rows, [weights[0]] * len(rows)), expected)


@given(st.data(), small_weights)
@settings(deadline=None)
def test_the_weighted_median_is_the_median_of_repeated_values(data, weights):
    values = data.draw(st.lists(st.integers(-3, 3).map(float), min_size=len(weights), max_size=len(weights)))
    repeated = [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]
    assert merged(RULES[1], [[value] for value in values], weights).tolist() == [statistics.median(repeated)]


@given(rosters, st.integers(1, 2))
@settings(deadline=None)
def test_with_equal_weights_the_trimmed_mean_is_the_mean_of_the_middle(roster, f):
    rows, weights = roster
    if len(rows) <= 2 * f:
        return
    rule = merge.rule("trimmed_mean", {"f": f})
    expected = np.sort(np.array(rows), axis=0)[f : len(rows) - f].mean(axis=0)
    got = merged(rule, rows, [weights[0]] * len(rows), "F64")
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-9)


@given(st.data(), st.integers(3, 7))
@settings(deadline=None)
def test_the_trimmed_mean_weighs_what_is_left(data, n):
    values = data.draw(st.lists(st.integers(-99, 99), min_size=n, max_size=n, unique=True))
    weights = data.draw(st.lists(st.integers(1, 2**29 - 1), min_size=n, max_size=n))
    kept = sorted(zip(values, weights, strict=True))[1:-1]
    expected = sum(value * weight for value, weight in kept) / sum(weight for _, weight in kept)
    assert merged(RULES[2], [[value] for value in values], weights, "F64")[0] == pytest.approx(
        expected, 1e-14
    )


def test_where_all_that_is_left_weighs_nothing_the_trimmed_mean_is_the_plain_one():
    values = np.array([[9.0, 1.0], [1.0, 4.0], [2.0, 2.0], [6.0, 9.0]])
    out = np.empty(2)
    RULES[2].reduce(values, (3, 1, 0, 0), out)
    assert out.tolist() == [4.0, 4.0]


def weiszfeld(points, weights, epsilon=1e-6):
    """The geometric median from the vectors themselves."""
    middle = np.median(points, axis=0)
    for _ in range(300):
        shares = weights / np.maximum(np.linalg.norm(points - middle, axis=1), epsilon)
        middle = (shares[:, None] * points).sum(axis=0) / shares.sum()
    return middle


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_is_that_of_the_vectors(seed):
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((7, 3_000)) + generator.standard_normal(3_000) * 10
    weights = generator.integers(1, 5, 7).tolist()
    got = merged(RULES[3], points, weights, "F64")
    np.testing.assert_allclose(got, weiszfeld(points, np.array(weights)), rtol=0, atol=1e-6)


def test_the_geometric_median_of_updates_that_hardly_differ_keeps_its_digits():
    generator = np.random.default_rng(0)
    base = generator.standard_normal(3_000)
    points = base + 1e-4 * generator.standard_normal((5, 3_000)) * np.array([[1], [1], [1], [1], [30]])
    got = merged(RULES[3], points, [1] * 5, "F64")
    expected = weiszfeld(points, np.ones(5))
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected - base)


def test_the_geometric_median_of_equal_updates_is_that_update():
    np.testing.assert_array_equal(merged(RULES[3], [[1.0, 2.0, 0.0]] * 3, [1, 9, 4]), [1.0, 2.0, 0.0])
    np.testing.assert_array_equal(merged(RULES[3], [[0.0, 0.0]] * 3, [1, 9, 4]), [0.0, 0.0])


@pytest.mark.parametrize("rule", RULES[1:], ids=IDS[1:])
@pytest.mark.parametrize("scale", [-1000.0, 1e30])
@pytest.mark.parametrize("hostile", [0, 2])
def test_one_member_however_far_away_does_not_move_a_robust_merge_out_of_the_others(rule, scale, hostile):
    generator = np.random.default_rng(1)
    base = generator.standard_normal(5_000)
    honest = base + 0.01 * generator.standard_normal((4, 5_000))
    rows = np.insert(honest, hostile, base * scale, axis=0)
    spread = np.linalg.norm(honest - base, axis=1).max()
    assert np.linalg.norm(merged(rule, rows, [1] * 5, "F64") - base) < 2 * spread
    assert np.linalg.norm(merged(RULES[0], rows, [1] * 5, "F64") - base) > 100 * spread


def test_a_few_steps_find_the_geometric_median_however_far_away_one_member_is():
    rows = numbers(3, 20_000).reshape(5, 4_000)
    expected = weiszfeld(rows[1:], np.ones(4))
    rows[0] = 1e40
    got = merged(merge.rule("geometric_median", {"iterations": 5}), rows, [1] * 5, "F64")
    assert np.linalg.norm(got - expected) < np.linalg.norm(rows[1] - expected) / 2


@pytest.mark.parametrize("n", range(1, 18))
def test_the_sorting_network_sorts_every_pattern_of_zeros_and_ones(n):
    patterns = min(2**n, 4096)
    bits = np.random.default_rng(0).integers(0, 2**n, patterns) if 2**n > patterns else np.arange(2**n)
    table = ((bits[:, None] >> np.arange(n)) & 1).T.copy()
    for low, high in _network(n):
        table[[low, high]] = np.minimum(table[low], table[high]), np.maximum(table[low], table[high])
    assert (np.diff(table, axis=0) >= 0).all()


# --- dtypes and edges ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES[1:3], ids=IDS[1:3])
@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 4]])
@pytest.mark.parametrize("zeros", [[-0.0, -0.0, -0.0], [-0.0, 0.0, -0.0]])
def test_a_sorted_negative_zero_is_zero_on_every_processor(rule, weights, zeros):
    assert not np.signbit(merged(rule, [[zero] * 9 for zero in zeros], weights)).any()


@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize(("dtype", "kind"), [("F64", "f8"), ("F32", "f4"), ("F16", "f2")])
def test_the_greatest_values_do_not_overflow(rule, dtype, kind):
    top = 2.0**399 if dtype == "F64" else float(np.finfo(kind).max)
    rows = np.array([[top, -top], [top, -top], [top, top], [top, -top]])
    got = merged(rule, rows, [2**29 - 1] * 4, dtype)
    check_finite(Schema.of({"w": got}), got.tobytes())
    assert got[0] == np.asarray(top, kind)


@given(st.floats(-3e38, 3e38), st.floats(-3e38, 3e38))
@settings(deadline=None)
def test_bfloat16_is_rounded_once_to_the_nearest_even(a, b):
    for value in (
        a,
        b,
        (a + b) / 2**20,
        math.ldexp(1 + 2**-8, 3),
        math.ldexp(1 + 2**-8 + 2**-40, 3),
        math.ldexp(1 + 2**-8 - 2**-40, 3),
    ):
        out = bytearray(2)
        store("BF16", np.array([value]), memoryview(out), 0)
        got = int.from_bytes(out, "little")
        near = [(bits << 16) for bits in ({got, max(got - 1, got & 0x8000), min(got + 1, got | 0x7FFF)})]
        steps = {bits: np.array([bits], "<u4").view("<f4")[0] for bits in near}
        exact = Fraction(value)
        distances = {
            bits: abs(Fraction(float(step)) - exact) for bits, step in steps.items() if np.isfinite(step)
        }
        best = min(distances.values())
        assert distances[got << 16] == best
        if list(distances.values()).count(best) > 1:
            assert got % 2 == 0


def test_bfloat16_updates_are_merged_as_numbers():
    ones, threes = np.full(5, 0x3F80, "<u2"), np.full(5, 0x4040, "<u2")
    out = memoryview(bytearray(10))
    merge.merge_chunk(RULES[0], [("BF16", 0, 10)], [ones.tobytes(), threes.tobytes()], [1, 1], out)
    assert np.frombuffer(out, "<u2").tolist() == [0x4000] * 5


def test_float16_is_rounded_once():
    # 1 + 2^-11 is half way between two float16 values; a little more must go up.
    rows = [[1.0], [1.0 + 2.0**-10]]
    assert merged(RULES[0], rows, [1, 1], "F16").tolist() == [1.0]
    assert merged(RULES[0], rows, [2**28 - 1, 2**28 + 1], "F16").tolist() == [1.0 + 2.0**-10]


def test_every_dtype_of_a_model_is_merged_in_one_chunk():
    models = [model(seed) for seed in range(3)]
    schema, out = whole_merge(RULES[0], models, [1, 1, 2])
    got = views(schema, out)
    expected = (models[0]["a"] + models[1]["a"] + 2 * models[2]["a"]) / 4
    np.testing.assert_allclose(got["a"], expected, rtol=1e-12)
    halves = (models[0]["c"].astype("f8") + models[1]["c"] + 2 * models[2]["c"].astype("f8")) / 4
    np.testing.assert_array_equal(got["c"], halves.astype("f2"))


# --- Gram matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 5, 32_768, 70_001])
def test_the_gram_matrix_holds_the_inner_products(elements):
    rows = np.random.default_rng(elements).standard_normal((4, elements))
    gram = merge.gram_chunk([("F64", 0, elements * 8)], [row.tobytes() for row in rows])
    exact = [[math.fsum(a * b) for b in rows] for a in rows]
    np.testing.assert_allclose(gram, exact, rtol=1e-13, atol=1e-13 * elements)
    assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("elements", [1, 2, 3, 5, 64, 1000, GRAM_BLOCK - 1, GRAM_BLOCK, GRAM_BLOCK + 7])
def test_a_block_that_is_not_full_is_folded_to_the_bits_of_one_filled_with_zeros(elements):
    rows = np.random.default_rng(elements).normal(size=(3, elements)) * [[1.0], [1e-8], [-0.0]]
    blocks = -(-elements // GRAM_BLOCK)
    padded = np.zeros((3, blocks * GRAM_BLOCK))
    padded[:, :elements] = rows
    exact = np.zeros((3, 3))
    for block in np.split(padded, blocks, axis=1):
        products = block[:, None, :] * block[None, :, :]
        while products.shape[-1] > 1:
            half = products.shape[-1] // 2
            products = products[..., :half] + products[..., half:]
        exact += products[..., 0]
    runs = [("F64", 0, elements * 8)]
    assert merge.gram_chunk(runs, [row.tobytes() for row in rows]).tobytes() == exact.tobytes()
    around = merge.gram_chunk(runs, [row.tobytes() for row in rows], np.zeros(elements).tobytes())
    assert around.tobytes() == exact.tobytes()


def test_a_gram_matrix_survives_the_way_to_a_peer():
    values = numbers(1, 600).reshape(3, 200)
    gram = merge.gram_chunk([("F64", 0, 1600)], [row.tobytes() for row in values])
    again = merge.decode_gram(memoryview(merge.encode_gram(gram)), 3)
    assert merge.gram_digest(again) == merge.gram_digest(gram)
    gram[1, 2] = np.nextafter(gram[1, 2], 1)
    assert merge.gram_digest(again) != merge.gram_digest(gram)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(31),
        bytes(33),
        np.array([[1.0, 2.0], [3.0, 1.0]]).tobytes(),
        np.array([[np.nan, 0.0], [0.0, 1.0]]).tobytes(),
        np.array([[1.0, np.inf], [np.inf, 1.0]]).tobytes(),
    ],
)
def test_a_hostile_gram_matrix_is_refused(data):
    with pytest.raises(FrameError, match="Gram matrix cannot be read"):
        merge.decode_gram(data, 2)


def test_gram_matrices_of_other_rosters_are_not_summed():
    with pytest.raises(ParametersError, match="same roster"):
        merge.sum_grams([np.zeros((2, 2)), np.zeros((3, 3))])
    with pytest.raises(ParametersError, match="same roster"):
        merge.sum_grams([])
    with pytest.raises(ConfigError, match="does not fit"):
        merge.mixing(RULES[3], np.zeros((2, 2)), [1, 1, 1])


# --- rules by name --------------------------------------------------------------------------------


def test_the_rules_that_come_with_konsil():
    assert set(IDS) <= set(merge.rule_names())
    assert merge.required_members(merge.rule("trimmed_mean", {"f": 2})) == 5
    assert merge.required_members(merge.rule("mean", {})) == 1


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("krum", {}, "no merge rule 'krum' in Konsil; there are .*mean"),
        ("mean", {"f": 1}, "no option 'f'; it has none"),
        ("median", {"x": 1}, "no option 'x'"),
        ("trimmed_mean", {"g": 1}, "no option 'g'; it has f"),
        ("trimmed_mean", {"f": 0}, "whole number from 1"),
        ("trimmed_mean", {"f": 1.5}, "whole number"),
        ("trimmed_mean", {"f": math.inf}, "whole number"),
        ("trimmed_mean", {"f": math.nan}, "whole number"),
        ("geometric_median", {"iterations": 0}, "whole number"),
        ("geometric_median", {"iterations": 1e9}, "whole number"),
        ("geometric_median", {"epsilon": 0.0}, "must be a distance"),
        ("geometric_median", {"epsilon": math.nan}, "must be a distance"),
    ],
)
def test_a_rule_or_option_that_makes_no_sense_is_refused(name, options, why):
    with pytest.raises(ConfigError, match=why):
        merge.rule(name, options)


@pytest.mark.parametrize(
    ("rule", "weights", "why"),
    [
        (RULES[0], [1, 0, 1], "from 1 to 536870911"),
        (RULES[0], [1, -1, 1], "from 1 to"),
        (RULES[0], [1, 2**29, 1], "from 1 to"),
        (RULES[0], [1, 1], "2 merge weights for 3 members"),
        (merge.rule("trimmed_mean", {"f": 2}), [1, 1, 1], "needs 5 members and the roster has 3"),
        (RULES[3], [1, 1, 1], "needs the coefficients"),
    ],
)
def test_a_merge_that_cannot_be_is_refused(rule, weights, why):
    with pytest.raises(ConfigError, match=why):
        merge.merge_chunk(rule, [("F32", 0, 4)], [bytes(4)] * 3, weights, memoryview(bytearray(4)))


@pytest.mark.parametrize(
    "mixed",
    [
        merge.Mixing((0, 0)),
        merge.Mixing((1, 2**29)),
        merge.Mixing((1, -1)),
        merge.Mixing((1, 1, 1)),
        merge.Mixing((1, 1), ((1.0, 0.0),)),
        merge.Mixing((1,), ((1.0,),)),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(mixed):
    with pytest.raises(ConfigError):
        merge.merge_chunk(RULES[3], [("F32", 0, 4)], [bytes(4)] * 2, [1, 1], memoryview(bytearray(4)), mixed)


def test_coefficients_for_a_rule_that_does_not_mix_are_refused():
    with pytest.raises(ConfigError, match="has no mixing step"):
        merge.merge_chunk(
            RULES[0], [("F32", 0, 4)], [bytes(4)], [1], memoryview(bytearray(4)), merge.Mixing((1,))
        )


@pytest.mark.parametrize(
    ("runs", "sizes", "why"),
    [
        ([("F32", 0, 8)], [8, 4], "member 1 of the roster has 4 bytes instead of 8"),
        ([("F32", 0, 6)], [6, 6], "do not follow"),
        ([("F32", 0, 4), ("F16", 6, 8)], [8, 8], "do not follow"),
        ([("F32", 0, 8)], [], "no chunk"),
    ],
)
def test_chunks_that_do_not_fit_their_schema_are_refused(runs, sizes, why):
    chunks = [bytes(size) for size in sizes]
    with pytest.raises(ParametersError, match=why):
        merge.gram_chunk(runs, chunks)


def test_a_rule_of_ones_own_selects_scales_and_mixes():
    def nearest(gram, weights):
        assert gram.shape == (3, 3)
        return merge.Mixing((1, 0, 3), ((0.5, 0.5, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 2.0)))

    def largest(values, weights, out):
        np.multiply(values[0], weights[0], out=out)
        for row, weight in zip(values[1:], weights[1:], strict=True):
            np.maximum(out, row * weight, out=out)

    rule = merge.Rule("largest", {}, largest, nearest)
    assert merged(rule, [[2.0, 8.0], [4.0, 2.0], [0.5, -1.0]], [1, 1, 1]).tolist() == [3.0, 5.0]


# --- merge weights --------------------------------------------------------------------------------


def test_example_counts_are_the_weights_and_none_weighs_nothing():
    assert merge.merge_weights("examples", {"ulm": 7, "kiel": 0}, {}) == {"kiel": 1, "ulm": 7}
    assert list(merge.merge_weights("examples", {"ulm": 7, "kiel": 0}, {})) == ["kiel", "ulm"]


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 10**15), min_size=1, max_size=9))
def test_weights_stay_in_range_and_in_proportion(examples):
    weights = merge.merge_weights("examples", examples, {})
    assert all(1 <= weight < 2**29 for weight in weights.values())
    most = max(examples.values())
    if most >= 2**29:
        for member, weight in weights.items():
            assert abs(Fraction(examples[member], most) - Fraction(weight, 2**29 - 1)) <= Fraction(
                1, 2**29 - 1
            )


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9), st.integers(1, 99))
def test_nobody_has_more_than_the_cap_and_the_others_keep_their_proportion(counts, cap):
    examples = {f"m{place}": count for place, count in enumerate(counts)}
    weights = merge.merge_weights("capped", examples, {}, cap)
    total = sum(weights.values())
    assert all(1 <= weight < 2**29 for weight in weights.values())
    if len(counts) * cap < 100:
        assert set(weights.values()) == {1}
        return
    largest = max(weights.values())
    # One part in 2^29 is lost where large counts are scaled down.
    assert all(100 * weight <= cap * total + 100 * len(counts) for weight in weights.values())
    free = [name for name, weight in weights.items() if weight < largest]
    for one, other in pairwise(free):
        ratio = Fraction(weights[one], weights[other]) / Fraction(examples[one], examples[other])
        assert abs(ratio - 1) < Fraction(1, 100)


def test_a_cap_lowers_the_largest_only():
    examples = {"berlin": 900, "bonn": 100, "ulm": 100, "kiel": 50}
    weights = merge.merge_weights("capped", examples, {}, 40)
    assert weights["berlin"] * 10 == sum(weights.values()) * 4
    assert weights["bonn"] == weights["ulm"] == 2 * weights["kiel"]
    assert merge.merge_weights("capped", {"bonn": 100, "ulm": 90, "kiel": 80}, {}, 40) == {
        "bonn": 100,
        "kiel": 80,
        "ulm": 90,
    }


def test_equal_and_given_weights():
    assert merge.merge_weights("equal", {"ulm": 7, "kiel": 9}, {}) == {"kiel": 1, "ulm": 1}
    assert merge.merge_weights("given", {"ulm": 7}, {"ulm": 3, "away": 4}) == {"ulm": 3}


@pytest.mark.parametrize(
    ("weighting", "examples", "given_weights", "why"),
    [
        ("given", {"ulm": 1}, {}, "no merge weight to 'ulm'"),
        ("given", {"ulm": 1}, {"ulm": 0}, "it must be 1 to"),
        ("given", {"ulm": 1}, {"ulm": 2**29}, "it must be 1 to"),
        ("examples", {"ulm": -1}, {}, "'ulm' says that it trained on -1"),
    ],
)
def test_weights_that_cannot_be_are_refused(weighting, examples, given_weights, why):
    with pytest.raises(ConfigError, match=why):
        merge.merge_weights(weighting, examples, given_weights)
