import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from konsil.core.digest import (
    CHUNK_BYTES,
    MAX_GROUPS,
    Manifest,
    bytes_digest,
    check_leaf,
    chunk_count,
    chunk_range,
    group_digest,
    is_digest,
    leaf,
    part_range,
    root_digest,
    root_from,
    schema_digest,
)
from konsil.core.messages import MAX_MANIFEST_BYTES
from konsil.errors import DigestMismatch, FrameError, ParametersError

leaves = st.binary(min_size=32, max_size=32)
manifests = st.builds(
    Manifest,
    st.binary(max_size=80),
    st.lists(st.lists(leaves, max_size=5).map(tuple), min_size=1, max_size=6).map(tuple),
)


def test_digests_stay_what_they_were_when_the_first_ledger_was_written():
    one = leaf(b"abc")
    assert one.hex() == "5e4ceeab2ef03951c26fdb178a219d5600fe27ced90474e74c722c763bc6b493"
    assert group_digest([one]) == "f4f461e515e734079b5895aac8e88b567f445ed4dd24d468f013e2a8defe84dc"
    assert schema_digest(b"header") == "f22d245bad46931df5a9f13ad94b4aa58ac8840a61cdf8019420190e67828a98"
    assert (
        root_digest(b"header", [group_digest([one])])
        == "94e19beeddc8b744b126a30abf10ca1e5cea36f7ab7f4b6fb3f9f63c0b5c90c4"
    )
    assert bytes_digest(b"abc", "state") == "c10dbf266102c7d2805d1c72e5402de19f0c1746b10e2d852cbb25612993a72a"


def test_the_same_bytes_have_another_digest_as_a_leaf_a_group_a_header_or_a_state():
    data = leaf(b"x")
    digests = [
        leaf(data).hex(),
        group_digest([data]),
        schema_digest(data),
        bytes_digest(data, "state"),
        bytes_digest(data, "genesis"),
        root_from(data.hex(), []),
    ]
    assert len(set(digests)) == len(digests)
    assert all(is_digest(each) for each in digests)


def test_threads_do_not_change_a_leaf():
    chunk = np.random.default_rng(1).bytes(CHUNK_BYTES)
    assert leaf(chunk, max_threads=4) == leaf(chunk) == leaf(memoryview(chunk)) == leaf(bytearray(chunk))


def test_the_contract_computes_a_merges_digest_from_the_schemas_and_the_parts_digests():
    manifest = Manifest(b"header", ((leaf(b"1"), leaf(b"2")), (leaf(b"3"),), ()))
    assert root_from(schema_digest(b"header"), manifest.group_digests) == manifest.digest
    assert manifest.leaves == (leaf(b"1"), leaf(b"2"), leaf(b"3"))


def test_how_chunks_are_grouped_is_part_of_the_digest():
    a, b = leaf(b"a"), leaf(b"b")
    assert len({Manifest(b"", g).digest for g in [((a, b),), ((a,), (b,)), ((b, a),), ((a, b), ())]}) == 4


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0x" + "0" * 62, " " + "0" * 63]
)
def test_what_is_no_digest_is_refused(text):
    assert not is_digest(text)
    with pytest.raises(DigestMismatch, match="64 lower-case"):
        root_from(text, [])
    with pytest.raises(DigestMismatch, match="64 lower-case"):
        root_from("0" * 64, [text])


def test_a_leaf_of_another_length_is_refused():
    with pytest.raises(DigestMismatch, match="32 bytes"):
        group_digest([b"x" * 31, b"x" * 33])


def test_a_right_chunk_passes_and_a_wrong_one_is_named_with_its_source():
    check_leaf(b"chunk", leaf(b"chunk"), index=3)
    with pytest.raises(DigestMismatch, match=r"Chunk 3 of aaaaaaaaaaaa from 'lyon'") as caught:
        check_leaf(b"chunk!", leaf(b"chunk"), index=3, digest="a" * 64, source="lyon")
    assert caught.value.fields == {"index": 3, "digest": "a" * 64, "source": "lyon"}


@given(manifests)
def test_a_manifest_survives_the_way_to_a_peer(manifest):
    again = Manifest.decode(memoryview(manifest.encode()))
    assert again == manifest
    assert again.digest == manifest.digest


@given(manifests, st.data())
def test_a_manifest_cut_short_or_followed_by_bytes_is_refused(manifest, data):
    raw = manifest.encode()
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(FrameError):
        Manifest.decode(raw[:cut])
    with pytest.raises(FrameError):
        Manifest.decode(raw + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_frame_error(raw):
    try:
        manifest = Manifest.decode(raw)
    except FrameError:
        return
    assert manifest.encode() == raw


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "cut short"),
        (b"\0" * 7, "cut short"),
        (b"\0" * 8, "0 groups"),
        (b"\0\0\0\0" + (MAX_GROUPS + 1).to_bytes(4, "little"), f"{MAX_GROUPS + 1} groups"),
        (b"\0\0\0\0" + (2).to_bytes(4, "little") + b"\0" * 4, "cut short"),
        (b"\0\0\0\0\1\0\0\0\xff\xff\xff\xff", "its own lengths say"),
        (bytes(MAX_MANIFEST_BYTES + 1), "over the limit"),
    ],
)
def test_a_manifest_that_breaks_a_limit_is_refused_with_the_reason(raw, why):
    with pytest.raises(FrameError, match=why):
        Manifest.decode(raw)


def test_a_manifest_that_no_peer_would_read_is_not_written():
    with pytest.raises(ParametersError, match="over the limit"):
        Manifest(b"", ((),) * (MAX_GROUPS + 1)).encode()
    with pytest.raises(ParametersError, match="over the limit"):
        Manifest(bytes(MAX_MANIFEST_BYTES), ((),)).encode()


@given(st.integers(1, 10 * CHUNK_BYTES))
def test_chunks_cover_the_data_without_holes(data_bytes):
    at = 0
    for index in range(chunk_count(data_bytes)):
        start, stop = chunk_range(index, data_bytes)
        assert start == at < stop <= start + CHUNK_BYTES
        at = stop
    assert at == data_bytes


@pytest.mark.parametrize("index", [-1, 2, 10**9])
def test_a_chunk_that_does_not_exist_is_refused(index):
    with pytest.raises(ParametersError, match=f"no chunk {index}"):
        chunk_range(index, CHUNK_BYTES + 1)


def test_even_nothing_has_one_chunk():
    assert chunk_count(0) == 1


@given(st.integers(1, 40), st.integers(1, 200))
def test_parts_cover_the_chunks_as_equally_as_can_be(n_parts, n_chunks):
    parts = [part_range(part, n_parts, n_chunks) for part in range(n_parts)]
    assert [chunk for part in parts for chunk in part] == list(range(n_chunks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", [-1, 3])
def test_a_part_that_does_not_exist_is_refused(part):
    with pytest.raises(ParametersError, match="no part"):
        part_range(part, 3, 10)
