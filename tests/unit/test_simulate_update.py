"""Updates in place, and whole merges: bit for bit those of nodes and leaders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from konsil.core import merge
from konsil.core.digest import CHUNK_BYTES, chunk_count, chunk_range, group_digest, leaf, part_range
from konsil.core.parameters import Schema
from konsil.errors import NonFinite, SchemaMismatch
from konsil.node.store import model_of
from konsil.simulation.update import Layout
from konsil.wall.layout import seal_arrays

ELEMENTS = CHUNK_BYTES // 4


def arrays(seed):
    """Four chunks: one of small arrays together, two inside one array, one across two arrays."""
    rng = np.random.default_rng(seed)
    return {
        "a-small": rng.normal(size=(50, 3)),
        "b-turned": rng.normal(size=(700, 900)).astype(np.float32).T,
        "c-large": rng.normal(size=3 * ELEMENTS).astype(np.float32),
        "d-foreign": rng.normal(size=1000).astype(">f4"),
        "e-none": np.empty((0, 4), np.float32),
        "f-bits": rng.integers(0, 0x3F80, 333).astype(np.uint16),
        "g-half": rng.normal(size=()).astype(np.float16),
    }


SCHEMA = Schema.of(arrays(0), {"f-bits"})


def test_an_update_has_the_digest_that_a_node_gives_it():
    layout = Layout(SCHEMA)
    with seal_arrays(SCHEMA, arrays(1)) as memory:
        at_a_node = model_of(memory, SCHEMA)
        parcel = layout.parcel(arrays(1), layout.room())
        assert parcel.digest == at_a_node.digest
        for index, chunk in enumerate(parcel.chunks):
            with at_a_node.chunk(index) as expected:
                assert chunk == expected
        del expected
        at_a_node = None


def test_a_chunk_inside_one_array_is_read_where_it_is():
    layout, held = Layout(SCHEMA), arrays(1)
    parcel = layout.parcel(held, layout.room())
    inside = [np.shares_memory(np.frombuffer(chunk, np.uint8), held["c-large"]) for chunk in parcel.chunks]
    assert inside == [False, True, True, False]
    kept = parcel.copied()
    held["c-large"][:] = 0
    assert kept.digest == parcel.digest
    assert leaf(kept.chunks[1]) != leaf(parcel.chunks[1])


def test_an_update_that_is_not_finite_or_not_the_studys_is_refused_by_name():
    layout, spoiled = Layout(SCHEMA), arrays(1)
    spoiled["d-foreign"][7] = np.inf
    with pytest.raises(NonFinite, match=r"'d-foreign'.* at flat index 7"):
        layout.parcel(spoiled, layout.room())
    del spoiled["d-foreign"]
    with pytest.raises(SchemaMismatch, match="'d-foreign' is missing"):
        layout.parcel(spoiled, layout.room())


def as_leaders_do(rule, updates, weights, n_parts):
    """Part by part, chunk by chunk: the leaves and the Gram matrix's digest."""
    n_chunks = chunk_count(SCHEMA.data_bytes)
    parts = [part_range(part, n_parts, n_chunks) for part in range(n_parts)]
    spans = [chunk_range(index, SCHEMA.data_bytes) for index in range(n_chunks)]
    runs = [SCHEMA.runs(*span) for span in spans]
    mixed, digest = None, ""
    if rule.mix is not None:
        grams = [
            merge.sum_grams([merge.gram_chunk(runs[i], [update[i] for update in updates]) for i in part])
            for part in parts
        ]
        digest = merge.gram_digest(merge.sum_grams(grams))
        mixed = merge.mixing(rule, merge.sum_grams(grams), weights)
    groups = []
    for part in parts:
        leaves = []
        for i in part:
            out = memoryview(bytearray(spans[i][1] - spans[i][0]))
            merge.merge_chunk(rule, runs[i], [update[i] for update in updates], weights, out, mixed)
            leaves.append(leaf(out))
        groups.append(tuple(leaves))
    return merge.Whole(tuple(groups), digest)


@pytest.mark.parametrize("name", ["mean", "geometric_median"])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_whole_merge_is_what_the_leaders_of_its_parts_make_in_any_number_of_threads(name, n_parts):
    layout, rule, weights = Layout(SCHEMA), merge.rule(name, {}), [3, 1, 2]
    updates = [layout.parcel(arrays(seed), layout.room()).chunks for seed in (1, 2, 3)]
    expected = as_leaders_do(rule, updates, weights, n_parts)
    out = layout.room()
    assert merge.merge_whole(rule, SCHEMA, updates, weights, n_parts, out) == expected
    with ThreadPoolExecutor(3) as pool:
        again = layout.room()
        assert merge.merge_whole(rule, SCHEMA, updates, weights, n_parts, again, pool.map) == expected
    assert again == out
    assert [group_digest([leaf(chunk)]) for chunk in layout.whole(out)] == [
        group_digest([each]) for group in expected.groups for each in group
    ]
